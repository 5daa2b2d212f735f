"""From shapes to specs: what a projector, the keys and values, and a LoRA must be to have tensors of these shapes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from imprompt.adapter.spec import (
    FacePlusSpec,
    KeyValueSpec,
    LinearKVSpec,
    LinearSpec,
    LoraSpec,
    MLPSpec,
    NormedKVSpec,
    PerceiverKVSpec,
    PooledMLPSpec,
    ProjectorSpec,
    ResamplerSpec,
    TimedKVSpec,
    TimeResamplerSpec,
)
from imprompt.core.errors import CheckpointError, UnknownFormat

Shapes = Mapping[str, tuple[int, ...]]

HEAD_WIDTH = 64  # of every published resampler
FLUX_HEAD_WIDTH = 128  # of FLUX, and so of InstantX's norms and PuLID's attentions
FULL_TOKENS = 257  # ViT/14 at 224 pixels: CLS and 16 x 16 patches


@dataclass(frozen=True)
class Sites:
    """The attentions that a file has keys and values for.

    Attributes:
        widths: of each one's queries, by its number, in order.
        token_width: width of the tokens they read.
        key_values: how they make keys and values.
    """

    widths: dict[int, int]
    token_width: int
    key_values: KeyValueSpec

    @property
    def is_counted(self) -> bool:
        """Whether they are counted from 0 without gaps, as a transformer's blocks are."""
        return list(self.widths) == list(range(len(self.widths)))


def read_sites(shapes: Shapes) -> Sites:
    """The sites, in the official layout.

    Raises:
        UnknownFormat: there are none.
    """
    indices = numbered(shapes, r"ip_adapter\.(\d+)\.(?:to_k_ip|to_kv)\.weight")
    if not indices:
        raise UnknownFormat(
            f"no image prompt adapter: expected keys like 'ip_adapter.1.to_k_ip.weight' and 'image_proj.*', "
            f"got {some(shapes)}"
        )
    first = f"ip_adapter.{indices[0]}."
    if f"{first}to_kv.weight" in shapes:
        widths = {index: shapes[f"ip_adapter.{index}.to_q.weight"][1] for index in indices}
        heads = shapes[f"{first}to_q.weight"][0] // FLUX_HEAD_WIDTH
        kind: KeyValueSpec = PerceiverKVSpec(num_heads=heads, head_width=FLUX_HEAD_WIDTH)
        return Sites(widths, shapes[f"{first}norm1.weight"][0], kind)
    widths = {index: shapes[f"ip_adapter.{index}.to_k_ip.weight"][0] for index in indices}
    kind = LinearKVSpec(bias=f"{first}to_k_ip.bias" in shapes)
    if f"{first}norm_ip.linear.weight" in shapes:
        time_width = shapes[f"{first}norm_ip.linear.weight"][1]
        kind = TimedKVSpec(head_width=shapes[f"{first}norm_q.weight"][0], time_width=time_width)
    return Sites(widths, shapes[f"{first}to_k_ip.weight"][1], kind)


def read_lora(shapes: Shapes) -> LoraSpec | None:
    """The LoRA inside, if there is one."""
    indices = numbered(shapes, r"ip_adapter\.(\d+)\.to_[qkv]_lora\.down\.weight")
    if not indices:
        return None
    parts = [f"ip_adapter.{index}.to_" for index in indices]
    return LoraSpec(
        rank=shapes[f"{parts[0]}q_lora.down.weight"][0],
        indices=tuple(indices),
        widths=tuple(shapes[f"{part}q_lora.down.weight"][1] for part in parts),
        key_widths=tuple(shapes[f"{part}k_lora.down.weight"][1] for part in parts),
    )


def normed(sites: Sites) -> Sites:
    """The same sites with InstantX's norms, which have no tensors of their own."""
    return Sites(sites.widths, sites.token_width, NormedKVSpec(head_width=FLUX_HEAD_WIDTH))


def read_projector(shapes: Shapes) -> ProjectorSpec:
    """The projector, in the official layout.

    Raises:
        UnknownFormat: none that is known.
        CheckpointError: parts of one are missing.
    """
    shapes = {key.removeprefix("image_proj."): shape for key, shape in shapes.items() if key.startswith("image_proj.")}
    match shapes:
        case {"proj.weight": (rows, feature_width), "norm.weight": (width,)}:
            return LinearSpec(feature_width=feature_width, num_tokens=rows // width, width=width)
        case {"proj.0.weight": (hidden, feature_width), "proj.3.weight": (width,)}:
            return MLPSpec(feature_width=feature_width, hidden_width=hidden, num_tokens=FULL_TOKENS, width=width)
        case {"perceiver_resampler.proj_in.weight": _}:
            return _face_plus(shapes)
        case {"proj.0.weight": (hidden, feature_width), "proj.2.weight": (rows, _), "norm.weight": (width,)}:
            tokens = rows // width
            return PooledMLPSpec(feature_width=feature_width, hidden_width=hidden, num_tokens=tokens, width=width)
        case {"latents": (_, _, _), "proj_in.weight": _}:
            return _resampler(shapes)
        case _:
            raise UnknownFormat(f"no known projector among the keys {some(shapes)}")


def _face_plus(shapes: Shapes) -> FacePlusSpec:
    (width,) = shapes["norm.weight"]
    hidden, feature_width = shapes["proj.0.weight"]
    depth, mlp_ratio = _layers(shapes, "perceiver_resampler.", width)
    heads = shapes["perceiver_resampler.layers.0.0.to_q.weight"][0] // HEAD_WIDTH
    if heads * HEAD_WIDTH != width:
        raise CheckpointError(
            f"a face projector whose queries have width {heads * HEAD_WIDTH}, expected its tokens' {width}; "
            "get the file again"
        )
    return FacePlusSpec(
        feature_width=feature_width,
        hidden_width=hidden,
        crop_width=shapes["perceiver_resampler.proj_in.weight"][1],
        depth=depth,
        head_width=HEAD_WIDTH,
        num_tokens=shapes["proj.2.weight"][0] // width,
        width=width,
        mlp_ratio=mlp_ratio,
    )


def _resampler(shapes: Shapes) -> ResamplerSpec | TimeResamplerSpec:
    _, num_tokens, inner = shapes["latents"]
    depth, mlp_ratio = _layers(shapes, "", inner)
    query_width = shapes["layers.0.0.to_q.weight"][0]
    if query_width % HEAD_WIDTH:
        raise CheckpointError(
            f"a resampler with queries of width {query_width}, which is no multiple of {HEAD_WIDTH}: its heads cannot "
            "be told from the tensors; save it with imprompt, which writes the spec into the file"
        )
    sizes = {
        "feature_width": shapes["proj_in.weight"][1],
        "inner_width": inner,
        "depth": depth,
        "num_heads": query_width // HEAD_WIDTH,
        "head_width": HEAD_WIDTH,
        "num_tokens": num_tokens,
        "width": shapes["norm_out.weight"][0],
        "mlp_ratio": mlp_ratio,
    }
    if "time_embedding.linear_1.weight" in shapes:
        return TimeResamplerSpec(**sizes, time_width=shapes["time_embedding.linear_1.weight"][1])
    return ResamplerSpec(**sizes)


def _layers(shapes: Shapes, prefix: str, width: int) -> tuple[int, int]:
    """Number of layers of a resampler, and how much wider its MLPs are."""
    depth = len(numbered(shapes, rf"{re.escape(prefix)}layers\.(\d+)\.0\.to_q\.weight"))
    if depth == 0 or f"{prefix}layers.0.1.1.weight" not in shapes:
        raise CheckpointError(f"the resampler's layers ('{prefix}layers.0.1.1.weight') are missing; get the file again")
    return depth, shapes[f"{prefix}layers.0.1.1.weight"][0] // width


def numbered(shapes: Shapes, pattern: str) -> list[int]:
    """The numbers in keys that match, in order."""
    found = (re.fullmatch(pattern, key) for key in shapes)
    return sorted({int(match[1]) for match in found if match})


def some(shapes: Shapes, most: int = 3) -> str:
    """The first few keys, for a message."""
    return ", ".join(repr(key[:80]) for key in list(shapes)[:most]) + (", ..." if len(shapes) > most else "")
