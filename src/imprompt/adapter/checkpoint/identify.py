"""Which adapter is this? Answered from keys and shapes, once; a file's name is never asked.

Facts: the published variants of tencent-ailab/IP-Adapter (at 62e4af9) and their tensors' shapes.
"""

import re
from collections.abc import Mapping

from imprompt.adapter.spec import (
    AdapterSpec,
    FeatureSpec,
    Layer,
    LinearSpec,
    MLPSpec,
    ProjectorSpec,
    ResamplerSpec,
    check_spec,
)
from imprompt.core.errors import CheckpointError, UnknownFormat

Shapes = Mapping[str, tuple[int, ...]]

HEAD_WIDTH = 64  # of every published resampler
FULL_TOKENS = 257  # ViT/14 at 224 pixels: CLS and 16 x 16 patches
FACE_WIDTH = 512  # of every published face embedding

ENCODERS: dict[tuple[Layer, int], str] = {
    ("image_embeds", 768): "CLIP ViT-L/14",
    ("image_embeds", 1024): "OpenCLIP ViT-H/14",
    ("image_embeds", 1280): "OpenCLIP ViT-bigG/14",
    ("hidden_states", 1024): "CLIP ViT-L/14-336",
    ("hidden_states", 1280): "OpenCLIP ViT-H/14",
    ("hidden_states", 1664): "OpenCLIP ViT-bigG/14",
}

# (cross_attention_dim, number of sites) -> family; every other UNet is plain "unet".
FAMILIES: dict[tuple[int, int], str] = {(768, 16): "sd1", (1024, 16): "sd2", (2048, 70): "sdxl"}

# (projector, cross_attention_dim, feature width, tokens) -> the published name. Files that share all four are the same
# network trained on other data (plus and plus-face, base and light).
VARIANTS: dict[tuple[type[ProjectorSpec], int, int, int], str] = {
    (LinearSpec, 768, 1024, 4): "ip-adapter_sd15",
    (LinearSpec, 768, 1280, 4): "ip-adapter_sd15_vit-G",
    (ResamplerSpec, 768, 1280, 16): "ip-adapter-plus_sd15",
    (MLPSpec, 768, 1280, FULL_TOKENS): "ip-adapter-full-face_sd15",
    (LinearSpec, 2048, 1280, 4): "ip-adapter_sdxl",
    (LinearSpec, 2048, 1024, 4): "ip-adapter_sdxl_vit-h",
    (ResamplerSpec, 2048, 1280, 16): "ip-adapter-plus_sdxl_vit-h",
    (ResamplerSpec, 2048, 1024, 16): "kolors-ip-adapter-plus",
}


def identify(shapes: Shapes) -> AdapterSpec:
    """The spec of an adapter whose tensors have these keys and shapes, in the official flat layout.

    Raises:
        UnknownFormat: no adapter of a kind that imprompt knows.
        CheckpointError: an adapter with parts missing.
    """
    try:
        spec = _identify(shapes)
        check_spec(spec)
    except (ArithmeticError, LookupError, ValueError) as error:
        raise CheckpointError(
            f"an adapter whose tensors have shapes that no adapter has ({error}); get the file again"
        ) from error
    return spec


def _identify(shapes: Shapes) -> AdapterSpec:
    widths, token_width = _sites(shapes)
    projector = _projector({key.removeprefix("image_proj."): shape for key, shape in shapes.items()})
    if projector.width != token_width:
        raise CheckpointError(
            f"the projector makes tokens of width {projector.width}, but the keys and values read {token_width}; "
            "the file joins halves of two adapters"
        )
    pooled = isinstance(projector, LinearSpec)
    layer: Layer = "image_embeds" if pooled else "hidden_states"
    known = (type(projector), token_width, projector.feature_width, projector.num_tokens)
    unknown_encoder = f"an image encoder of {'projection' if pooled else 'hidden'} width {projector.feature_width}"
    return AdapterSpec(
        name=VARIANTS.get(known, "ip-adapter"),
        family=FAMILIES.get((token_width, len(widths)), "unet"),
        projector=projector,
        features=FeatureSpec(
            layer=layer,
            index=None if pooled else -2,
            width=projector.feature_width,
            encoder=ENCODERS.get((layer, projector.feature_width), unknown_encoder),
        ),
        null_image="zero_features" if pooled else "zero_pixels",
        cross_attention_dim=token_width,
        site_indices=tuple(widths),
        site_widths=tuple(widths.values()),
    )


def _sites(shapes: Shapes) -> tuple[dict[int, int], int]:
    found = (re.fullmatch(r"ip_adapter\.(\d+)\.to_k_ip\.weight", key) for key in shapes)
    indices = sorted(int(match[1]) for match in found if match)
    if not indices:
        raise UnknownFormat(
            f"no image prompt adapter: expected keys like 'ip_adapter.1.to_k_ip.weight' and 'image_proj.*', "
            f"got {_some(shapes)}"
        )
    if any(".to_q_lora." in key for key in shapes):
        raise UnknownFormat("a FaceID adapter with a LoRA inside; this version reads adapters without face embeddings")
    kernels = [shapes[f"ip_adapter.{index}.to_k_ip.weight"] for index in indices]
    return {index: kernel[0] for index, kernel in zip(indices, kernels, strict=True)}, kernels[0][1]


def _projector(shapes: Shapes) -> ProjectorSpec:
    match shapes:
        case {"proj.weight": (rows, feature_width), "norm.weight": (width,)}:
            return LinearSpec(feature_width=feature_width, num_tokens=rows // width, width=width)
        case {"proj.0.weight": (hidden, feature_width), "proj.3.weight": (width,)}:
            return MLPSpec(feature_width=feature_width, hidden_width=hidden, num_tokens=FULL_TOKENS, width=width)
        case {"latents": (_, num_tokens, inner), "proj_in.weight": (_, feature_width), "norm_out.weight": (width,)}:
            return _resampler(shapes, num_tokens, inner, feature_width, width)
        case {"perceiver_resampler.proj_in.weight": _} | {"proj.2.weight": _, "norm.weight": _}:
            raise UnknownFormat("a FaceID adapter; this version reads adapters without face embeddings")
        case _:
            raise UnknownFormat(f"no known projector among the keys {_some(shapes)}")


def _resampler(shapes: Shapes, num_tokens: int, inner: int, feature_width: int, width: int) -> ResamplerSpec:
    if feature_width == FACE_WIDTH:
        raise UnknownFormat(
            "a resampler of 512-wide face embeddings (Portrait-unnorm or InstantID); "
            "this version reads adapters without face embeddings"
        )
    depth = sum(bool(re.fullmatch(r"layers\.\d+\.0\.to_q\.weight", key)) for key in shapes)
    if depth == 0 or "layers.0.1.1.weight" not in shapes:
        raise CheckpointError("the resampler's layers are missing; get the file again")
    query_width = shapes["layers.0.0.to_q.weight"][0]
    if query_width % HEAD_WIDTH:
        raise CheckpointError(
            f"a resampler with queries of width {query_width}, which is no multiple of {HEAD_WIDTH}: its heads cannot "
            "be told from the tensors; save it with imprompt, which writes the spec into the file"
        )
    return ResamplerSpec(
        feature_width=feature_width,
        inner_width=inner,
        depth=depth,
        num_heads=query_width // HEAD_WIDTH,
        head_width=HEAD_WIDTH,
        num_tokens=num_tokens,
        width=width,
        mlp_ratio=shapes["layers.0.1.1.weight"][0] // inner,
    )


def _some(shapes: Shapes, most: int = 3) -> str:
    return ", ".join(repr(key) for key in list(shapes)[:most]) + (", ..." if len(shapes) > most else "")
