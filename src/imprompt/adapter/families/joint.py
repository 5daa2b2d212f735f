"""Image transformers in which picture and text are streams of their own that attend to one another.

A double block keeps the streams apart and hands the picture's attention to `to_out.0` alone; a single block has both in
one sequence, and often joins attention and MLP in front of `proj_out`.
"""

from typing import Any

from imprompt.adapter.families.base import TEXT_KEYS, Family, packed_tokens, patched_grid, table_row, thousandths
from imprompt.adapter.families.calls import behind_text, first_shape, raster_of_ids
from imprompt.adapter.families.flux import DOUBLE, OWN_SINGLE, SINGLE, grid_of_ids
from imprompt.adapter.sites import Place

FLUX2_SINGLE = Place(
    attention="single_transformer_blocks.{}.attn",
    query=("norm_q",),
    sink="to_out",
    keys="to_qkv_mlp_proj",
    fused_at=1,
    query_span="last",
    sink_span="last",
    **OWN_SINGLE,  # pyright: ignore
)
# FLUX.3's first blocks are each for text, picture or references alone; the picture meets the text in these.
FLUX3 = Place(
    attention="single_transformer_blocks.{}.attn",
    query_span="indexed",
    sink_span="indexed",
    **OWN_SINGLE,  # pyright: ignore
)

# References follow the picture's tokens, where there are some.
BEFORE_REFERENCES = Place(
    attention="transformer_blocks.{}.attn", keys="add_k_proj", query_span="first", sink_span="first"
)
AURA_DOUBLE = Place(
    attention="joint_transformer_blocks.{}.attn",
    keys="add_k_proj",
    own=(("norm_added_k", "add_k_proj"), ("norm_k", "to_k")),
)
AURA_SINGLE = Place(attention="single_transformer_blocks.{}.attn", query_span="last", sink_span="last", own=TEXT_KEYS)
# HunyuanImage and HunyuanVideo have text behind the picture, and turn the picture alone.
OWN_PICTURE_FIRST = {
    "own": (("norm_k", "to_k"), ("norm_added_k", "add_k_proj")),
    "own_part": 0,
    "rotations": "image_rotary_emb",
}
DOUBLE_PICTURE_FIRST = Place(attention="transformer_blocks.{}.attn", keys="add_k_proj", **OWN_PICTURE_FIRST)  # pyright: ignore
PICTURE_FIRST = Place(
    attention="single_transformer_blocks.{}.attn",
    sink="^proj_out",
    query_span="first",
    sink_span="first",
    **OWN_SINGLE,  # pyright: ignore
)
# HiDream pads the picture's tokens behind.
HIDREAM = {"query": ("q_rms_norm",), "sink": "to_out", "query_span": "first", "sink_span": "first"}
HIDREAM_DOUBLE = Place(attention="double_stream_blocks.{}.block.attn1", keys="to_k_t", **HIDREAM)  # pyright: ignore
HIDREAM_SINGLE = Place(attention="single_stream_blocks.{}.block.attn1", **HIDREAM)  # pyright: ignore
JOY = Place(
    attention="double_blocks.{}.attn",
    query=("img_attn_q_norm",),
    sink="img_attn_proj",
    keys="txt_attn_qkv",
    fused_at=1,
    query_span="first",
    sink_span="first",
)


def _like_flux(name: str, title: str, host: str, *places: Place, **options: Any) -> Family:
    """Packed tokens, whose ids alone tell the picture's size."""
    usual = {"grid": packed_tokens, "positions": "img_ids", "measure": grid_of_ids, "guidance": "separate"}
    return table_row(name, title, (host,), *places, **{**usual, **options})


FAMILIES = (
    _like_flux("flux2", "FLUX.2", "Flux2Transformer2DModel", DOUBLE, FLUX2_SINGLE, clock=thousandths),
    _like_flux(
        "flux3",
        "FLUX.3",
        "Flux3Transformer2DModel",
        FLUX3,
        clock=thousandths,
        index=behind_text,
        measure=raster_of_ids,
    ),
    _like_flux("chroma", "Chroma", "ChromaTransformer2DModel", DOUBLE, SINGLE, clock=thousandths),
    _like_flux("bria", "Bria 3", "BriaTransformer2DModel", DOUBLE, SINGLE, guidance="cfg"),
    _like_flux("bria-fibo", "Bria Fibo", "BriaFiboTransformer2DModel", DOUBLE, SINGLE, guidance="cfg"),
    _like_flux("longcat-image", "LongCat-Image", "LongCatImageTransformer2DModel", DOUBLE, SINGLE, clock=thousandths),
    _like_flux("ovis-image", "Ovis-Image", "OvisImageTransformer2DModel", DOUBLE, SINGLE, clock=thousandths),
    table_row(
        "qwen-image",
        "Qwen-Image",
        ("QwenImageTransformer2DModel",),
        BEFORE_REFERENCES,
        grid=first_shape,
        clock=thousandths,
        guidance="separate",
    ),
    table_row(
        "nucleus-image",
        "NucleusMoE-Image",
        ("NucleusMoEImageTransformer2DModel",),
        BEFORE_REFERENCES,
        grid=first_shape,
        clock=thousandths,
        guidance="separate",
    ),
    table_row("auraflow", "AuraFlow", ("AuraFlowTransformer2DModel",), AURA_DOUBLE, AURA_SINGLE, clock=thousandths),
    table_row(
        "hunyuan-image",
        "HunyuanImage 2.1",
        ("HunyuanImageTransformer2DModel",),
        DOUBLE_PICTURE_FIRST,
        PICTURE_FIRST,
        guidance="separate",
    ),
    table_row(
        "hidream",
        "HiDream-I1",
        ("HiDreamImageTransformer2DModel",),
        HIDREAM_DOUBLE,
        HIDREAM_SINGLE,
        timestep="timesteps",
    ),
    table_row(
        "joyimage-edit",
        "JoyImage-Edit",
        ("JoyImageEditTransformer3DModel",),
        JOY,
        grid=patched_grid,
        guidance="separate",
    ),
    table_row(
        "joyimage-edit-plus", "JoyImage-Edit Plus", ("JoyImageEditPlusTransformer3DModel",), JOY, grid=first_shape
    ),
)
