"""Image transformers that put text and picture into one sequence, which attends to itself."""

from typing import Any

from imprompt.adapter.families.base import TEXT_KEYS, Arguments, packed_tokens, table_row, thousandths
from imprompt.adapter.families.calls import (
    behind_gist,
    behind_real_text,
    from_noise,
    last_shape,
    listed_pictures,
    no_size,
    one_less,
    told_places,
)
from imprompt.adapter.families.flux import grid_of_ids
from imprompt.adapter.sites import Place, Span


def _place(attention: str, span: Span, **options: Any) -> Place:
    return Place(attention=attention, query_span=span, sink_span=span, **options)


def prefilled(arguments: Arguments) -> str | None:
    """GLM-Image first reads the pictures that it is to change, in calls of their own: no image prompt acts on those."""
    caches = arguments.get("kv_caches")
    return "skip" if caches is not None and any(cache.mode == "write" for cache in caches.caches) else None


def with_pictures(arguments: Arguments) -> str:
    """OmniGen is guided always, and where it is given pictures by those too."""
    return "pix2pix" if arguments.get("input_img_latents") else "cfg-reversed"


# Krea 2 multiplies its attention by a gate of every token before `to_out`. The branch is added behind the gate, which
# was learned for what the host's own attention brings: so a weight means here what it means everywhere.
KREA2 = _place("transformer_blocks.{}.attn", "last")
COGVIEW = "transformer_blocks.{}.attn1"
FIBO2 = (
    _place("noise_refiner.{}.attention", "first"),
    _place("layers.{}.attention", "indexed"),
)

FAMILIES = (
    table_row(
        "qwen-image-2.1",
        "Qwen-Image 2.1",
        ("QwenImage21Transformer2DModel",),
        _place("transformer_blocks.{}.attn", "last"),
        grid=last_shape,
        clock=thousandths,
        guidance="separate",
    ),
    table_row(
        "z-image",
        "Z-Image",
        ("ZImageTransformer2DModel",),
        _place("layers.{}.attention", "first"),
        latents="x",
        timestep="t",
        grid=listed_pictures,
        clock=from_noise,
        guidance="cfg-reversed",
    ),
    table_row(
        "lumina2",
        "Lumina 2",
        ("Lumina2Transformer2DModel",),
        _place("layers.{}.attn", "indexed"),
        index=behind_real_text,
        clock=from_noise,
        guidance="separate",
    ),
    table_row(
        "cogview3-plus",
        "CogView3-Plus",
        ("CogView3PlusTransformer2DModel",),
        _place(COGVIEW, "last", layout="heads_first", own=TEXT_KEYS),
    ),
    table_row(
        "cogview4",
        "CogView4",
        ("CogView4Transformer2DModel",),
        _place(COGVIEW, "last", layout="heads_first", is_overwritten=True),
        guidance="separate",
    ),
    table_row(
        "glm-image",
        "GLM-Image",
        ("GlmImageTransformer2DModel",),
        _place(COGVIEW, "last", is_overwritten=True),
        clock=one_less,
        part=prefilled,
        guidance="separate",
    ),
    table_row(
        "krea2",
        "Krea 2",
        ("Krea2Transformer2DModel",),
        KREA2,
        grid=packed_tokens,
        positions="position_ids",
        measure=grid_of_ids,
        clock=thousandths,
        guidance="separate",
    ),
    # Its pipeline asks another model for the negative half.
    table_row(
        "ideogram4",
        "Ideogram 4",
        ("Ideogram4Transformer2DModel",),
        _place("layers.{}.attention", "indexed"),
        grid=no_size,
        index=told_places,
        clock=from_noise,
        guidance="none",
    ),
    table_row(
        "ernie-image", "ERNIE-Image", ("ErnieImageTransformer2DModel",), _place("layers.{}.self_attention", "first")
    ),
    table_row(
        "omnigen",
        "OmniGen",
        ("OmniGenTransformer2DModel",),
        _place("layers.{}.self_attn", "last"),
        layout=with_pictures,
        guidance="cfg-reversed",
    ),
    table_row(
        "bria-fibo2",
        "Bria Fibo 2",
        ("BriaFibo2Transformer2DModel",),
        *FIBO2,
        index=behind_gist,
        clock=thousandths,
        guidance="separate",
    ),
)
