"""UNets: Stable Diffusion 1, 2 and XL, Kolors, what was made of them, and those beside them."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from imprompt.adapter.families.base import TEXT_KEYS, Arguments, Family, table_row, whole_latent
from imprompt.adapter.sites import Place, Site, find_places, site_at
from imprompt.core.errors import HostMismatch

# Published checkpoints number the attentions of a UNet in the order in which its blocks were registered,
# which is not the order of the forward pass (tencent-ailab/IP-Adapter at 62e4af9, ip_adapter.py:137).
BLOCK_ORDER = ("down_blocks", "up_blocks", "mid_block")
# What was put into such a UNet later has no number: AnimateDiff's motion, and ControlNet-XS beside its base.
HOSTS = ("UNet2DConditionModel", "UNetMotionModel", "UNetControlNetXSModel")
LATER, BASE = re.compile(r"\.(motion_modules|ctrl_\w+)\."), re.compile(r"base_(midblock\.)?")
CROSS = Place(attention="{}", layout="heads_first", own=TEXT_KEYS)  # found by its number


def attentions(host: nn.Module) -> Iterator[tuple[str, Any]]:
    """Path and module of every attention, in checkpoint order."""
    for root in BLOCK_ORDER:
        block = getattr(host, root, None)
        if isinstance(block, nn.Module):
            for name, module in block.named_modules(prefix=root):
                if hasattr(module, "get_processor") and hasattr(module, "to_q") and not LATER.search(name):
                    yield name, module


def numbered(host: nn.Module) -> dict[int, str]:
    """Path of every attention by its number in checkpoints, self-attentions included."""
    return dict(enumerate(name for name, _ in attentions(host)))


def find_sites(host: nn.Module) -> tuple[Site, ...]:
    """All sites of a UNet, in checkpoint order (down, up, mid).

    Raises:
        HostMismatch: the host has no cross-attention named `attn2`.
    """
    sites = tuple(
        _site(host, index, name, module)
        for index, (name, module) in enumerate(attentions(host))
        if name.endswith(".attn2")
    )
    if not sites:
        raise HostMismatch(
            f"{type(host).__name__} has no cross-attention to attach to: expected modules named 'attn2' in "
            f"{', '.join(BLOCK_ORDER)}. Pass a pipeline with a UNet2DConditionModel, or that UNet itself."
        )
    return sites


def _site(host: nn.Module, index: int, name: str, module: Any) -> Site:
    block = BASE.sub("", name.split(".transformer_blocks")[0])
    return replace(site_at(host, name, module, CROSS, index), block=block)


def has_shape(width: int, num_sites: int) -> Callable[[nn.Module], bool]:
    """Whether a UNet attends to tokens of a width at so many sites, and takes its text as it comes."""

    def matches(host: nn.Module) -> bool:
        found = [module for name, module in attentions(host) if name.endswith(".attn2")]
        return len(found) == num_sites and found[0].to_k.in_features == width and not projects_text(host)

    return matches


def projects_text(host: Any) -> bool:
    """Whether a UNet projects its text first, which tells Kolors from SDXL, whose shape it has.

    Where diffusers has loaded an adapter of its own, the configuration no longer says so.
    """
    is_moved = getattr(host, "text_encoder_hid_proj", None) is not None
    return is_moved or getattr(host.config, "encoder_hid_dim_type", None) == "text_proj"


def through_text_projection(host: Any, tokens: Tensor) -> Tensor:
    """Kolors' projection of its text states, which its face adapter's tokens pass too.

    Those of other adapters beside it are as wide as what the projection gives, and stay as they are.
    """
    projection = _text_projection(host)
    if tokens.shape[-1] != projection.in_features:
        return tokens
    weight = next(projection.parameters())
    return projection(tokens.to(weight.device, weight.dtype)).to(tokens.dtype)


def text_projection_width(host: nn.Module) -> int | None:
    """Width of the text states that a host projects; None if it takes them as they are."""
    return getattr(_text_projection(host), "in_features", None)


def _text_projection(host: Any) -> Any:
    """Kolors' projection of its text; diffusers moves it aside where it has loaded an adapter of its own."""
    return getattr(host, "text_encoder_hid_proj", None) or getattr(host, "encoder_hid_proj", None)


def text_layer(host: nn.Module) -> nn.Module | None:
    """The layer that a UNet's text passes first; None if it is taken as it comes."""
    return _text_projection(host) if projects_text(host) else None


def _family(name: str, title: str, matches: Callable[[nn.Module], bool] | None, **options: Any) -> Family:
    return Family(
        name=name,
        title=title,
        hosts=HOSTS,
        sites=find_sites,
        matches=matches,
        latents="sample",
        grid=whole_latent,
        lora_names=numbered,
        text_layer=text_layer,
        **options,
    )


def _at(*attentions: str) -> tuple[Place, ...]:
    """Places whose block is the transformer that they are in: the middle's path is shorter than the others'."""
    return tuple(
        Place(attention=attention, own=TEXT_KEYS, block=3 if "mid_block" in attention else 4)
        for attention in attentions
    )


# Temporal attentions have an `attn2` too, in which a pixel attends to itself in other frames.
IN_FRAMES = _at(
    "down_blocks.{}.attentions.{}.transformer_blocks.{}.attn2",
    "up_blocks.{}.attentions.{}.transformer_blocks.{}.attn2",
    "mid_block.attentions.{}.transformer_blocks.{}.attn2",
)
CASCADE = _at("down_blocks.{}.{}.attention", "up_blocks.{}.{}.attention")
AMUSED = (
    Place(attention="down_block.attention_blocks.{}.attn2", block=3, own=TEXT_KEYS),
    Place(attention="transformer_layers.{}.attn2", own=TEXT_KEYS),
    Place(attention="up_block.attention_blocks.{}.attn2", block=3, own=TEXT_KEYS),
)


def find_kandinsky3(host: nn.Module) -> tuple[Site, ...]:
    """The first attention of a level is to the picture itself, the others are to the text."""
    places = _at("down_blocks.{}.attentions.{}.attention", "up_blocks.{}.attentions.{}.attention")
    sites = (site for site in find_places(host, places) if ".attentions.0." not in site.name)
    return tuple(replace(site, index=index) for index, site in enumerate(sites))


def as_many_as_sizes(arguments: Arguments) -> str | None:
    """DreamLite is guided always, where it edits by the picture too; one size for every part of the batch tells."""
    sizes = (arguments.get("added_cond_kwargs") or {}).get("time_ids")
    return None if sizes is None else {1: "none", 2: "cfg", 3: "edit"}.get(len(sizes))


def _beside(name: str, title: str, hosts: tuple[str, ...], *places: Place, **options: Any) -> Family:
    return table_row(name, title, hosts, *places, **{"latents": "sample", "grid": whole_latent, **options})


FAMILIES = (
    _family("kolors", "Kolors", projects_text),
    _family("sd1", "Stable Diffusion 1.x", has_shape(768, 16)),
    _family("sd2", "Stable Diffusion 2.x", has_shape(1024, 16)),
    _family("sdxl", "Stable Diffusion XL", has_shape(2048, 70)),
    _family(
        "kolors-text",
        "Kolors, image tokens by way of its text projection",
        None,
        is_default=False,
        beside=("kolors",),
        host_tokens=through_text_projection,
        host_token_width=text_projection_width,
    ),
    _family("unet", "a model of its own shape", None),
    _beside("unet-video", "ModelScope and I2VGen-XL", ("UNet3DConditionModel", "I2VGenXLUNet"), *IN_FRAMES),
    _beside("svd", "Stable Video Diffusion", ("UNetSpatioTemporalConditionModel",), *IN_FRAMES),
    _beside("dreamlite", "DreamLite", ("DreamLiteUNetModel",), *IN_FRAMES, layout=as_many_as_sizes),
    Family(
        name="kandinsky3",
        title="Kandinsky 3",
        hosts=("Kandinsky3UNet",),
        sites=find_kandinsky3,
        latents="sample",
        grid=whole_latent,
        has_free_tokens=True,
    ),
    _beside(
        "stable-cascade",
        "Stable Cascade",
        ("StableCascadeUNet",),
        *CASCADE,
        timestep="timestep_ratio",
        guidance="cfg-reversed",
    ),
    _beside("amused", "aMUSEd", ("UVit2DModel",), *AMUSED, latents="input_ids", timestep=None),
)
