"""What stays of an adapter where the denoiser computes, once its keys and values are made?

For Stable Diffusion XL's true shapes, half precision, one picture under guidance. Nothing is estimated: the denoiser
and the adapter are built at full size on torch's meta device, which has shapes and no memory; prompts are set, a
denoising call runs, and then all tensors that the attachment holds are counted, each storage once. Every operation of
that call is watched: one that read a weight of the adapter would show that it had to stay. The rest of the adapter may
be elsewhere, which is where `offload=True` puts it.

    python benchmarks/adapter_memory.py
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.attach import Attachment, attach
from imprompt.adapter.conditioning import Branch, Conditioning
from imprompt.adapter.families.unet import attentions, find_sites
from imprompt.adapter.spec import (
    AdapterSpec,
    FacePlusSpec,
    FeatureSpec,
    LinearSpec,
    LoraSpec,
    PooledMLPSpec,
    ProjectorSpec,
    ResamplerSpec,
)

WIDTH, FACE, RANK = 2048, 512, 128
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "cross_attention_dim": WIDTH,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
RESAMPLER: dict[str, Any] = {
    "inner_width": 1280,
    "depth": 4,
    "num_heads": 20,
    "head_width": 64,
    "num_tokens": 16,
    "width": WIDTH,
}
POOLED: dict[str, Any] = {"feature_width": FACE, "hidden_width": 2 * FACE, "width": WIDTH}


@dataclass(frozen=True)
class Variant:
    """A published adapter: its projector, whether it has a LoRA, and how many pictures are shown to it."""

    name: str
    projector: ProjectorSpec
    has_lora: bool = False
    pictures: int = 1


VARIANTS = (
    Variant("global", LinearSpec(feature_width=1280, num_tokens=4, width=WIDTH)),
    Variant("plus", ResamplerSpec(feature_width=1280, **RESAMPLER)),
    Variant("plus, four pictures", ResamplerSpec(feature_width=1280, **RESAMPLER), pictures=4),
    Variant("InstantID", ResamplerSpec(feature_width=FACE, **RESAMPLER)),
    Variant("FaceID Portrait", PooledMLPSpec(num_tokens=16, **POOLED)),
    Variant("FaceID Portrait, five faces", PooledMLPSpec(num_tokens=16, **POOLED), pictures=5),
    Variant("FaceID", PooledMLPSpec(num_tokens=4, **POOLED), has_lora=True),
    Variant(
        "FaceID-Plus-V2",
        FacePlusSpec(num_tokens=4, crop_width=1280, depth=4, head_width=64, **POOLED),
        has_lora=True,
    ),
)


class ReadTensors(TorchDispatchMode):
    """Notes the storage of every tensor that an operation reads."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.storages |= {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        return func(*args, **(kwargs or {}))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def held(attachment: Attachment) -> dict[str, int]:
    """Bytes of all tensors that an attachment holds, host and adapters apart: of its LoRA, and of all else."""
    parts = {"lora": attachment._loras, "rest": [attachment._banks, attachment._bound, attachment._frame]}
    return {name: sum(_storages(part).values()) for name, part in parts.items()}


def _storages(value: Any) -> dict[int, int]:
    return {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in _tensors(value)}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        return  # the host and the adapter's own layers
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif type(value).__module__.startswith("imprompt."):
        yield from _tensors(vars(value))


def sdxl() -> UNet2DConditionModel:
    """The denoiser."""
    with without_memory():
        return UNet2DConditionModel(**SDXL)


def spec_of(host: nn.Module, variant: Variant) -> AdapterSpec:
    """The variant as it was published for a host."""
    sites, found = find_sites(host), [module for _, module in attentions(host)]
    lora = LoraSpec(
        rank=RANK,
        indices=tuple(range(len(found))),
        widths=tuple(module.to_q.out_features for module in found),
        key_widths=tuple(module.to_k.in_features for module in found),
    )
    return AdapterSpec(
        name=variant.name,
        family="sdxl",
        projector=variant.projector,
        features=FeatureSpec(layer="image_embeds", width=variant.projector.feature_width, encoder="any"),
        null_image="zero_features",
        cross_attention_dim=WIDTH,
        site_indices=tuple(site.index for site in sites),
        site_widths=tuple(site.query_width for site in sites),
        lora=lora if variant.has_lora else None,
    )


def inputs(rows: int) -> dict[str, Any]:
    """Arguments of one call of the denoiser."""
    return {
        "sample": torch.empty(rows, 4, 128, 128),
        "timestep": torch.empty((), dtype=torch.int64),
        "encoder_hidden_states": torch.empty(rows, 77, WIDTH),
        "added_cond_kwargs": {"text_embeds": torch.empty(rows, 1280), "time_ids": torch.empty(rows, 6)},
    }


@contextmanager
def without_memory() -> Iterator[None]:
    """Tensors made here have shapes, in half precision, and nothing else."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def measure(host: nn.Module, variant: Variant) -> tuple[int, dict[str, int]]:
    """Bytes of an adapter, and of what is held after a denoising call."""
    with without_memory():
        return _measured(host, Adapter(spec_of(host, variant)), variant.pictures)


def _measured(host: nn.Module, adapter: Adapter, pictures: int) -> tuple[int, dict[str, int]]:
    tokens = torch.empty(1, pictures * adapter.spec.num_tokens, WIDTH)
    scale = torch.ones(1, len(adapter.spec.site_indices), 1, device="cpu")
    branch = Branch(tokens=tokens, null_tokens=torch.empty_like(tokens), scale=scale)
    with attach(host, adapter, guidance="cfg") as images:
        images.set(Conditioning(branches=(branch,), rows=1))
        with ReadTensors() as read:
            host(**inputs(rows=2))
        size = sum(parameter.nbytes for parameter in adapter.parameters())
        bytes_held = held(images)
        apart = {_storage(part) for part in adapter.parameters()} - _storages(images._loras).keys()
        assert not apart & read.storages, "a denoising call reads the adapter's own weights"
    return size, bytes_held


def main() -> None:
    """Print the table."""
    host = sdxl()
    print(f"{'adapter':<28} {'MB':>8} {'stays, MB':>10} {'of it LoRA':>11} {'ratio':>8}")
    for variant in VARIANTS:
        size, stays = measure(host, variant)
        total, lora = sum(stays.values()), stays["lora"]
        print(f"{variant.name:<28} {size / 1e6:8.1f} {total / 1e6:10.2f} {lora / 1e6:11.2f} {total / size:8.2%}")


if __name__ == "__main__":
    main()
