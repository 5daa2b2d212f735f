"""Video transformers. Frames follow one another in one sequence, or are rows of the batch inside."""

from typing import Any

from imprompt.adapter.families.base import TEXT_KEYS, Arguments, Family, table_row
from imprompt.adapter.families.calls import (
    behind_history,
    channels_last,
    frames_first,
    listed_videos,
    no_size,
    packed_indices,
    patched_size,
    told_indices,
    told_size,
)
from imprompt.adapter.families.cross_attention import BLOCKS
from imprompt.adapter.families.flux import OWN_SINGLE
from imprompt.adapter.families.joint import DOUBLE_PICTURE_FIRST, OWN_PICTURE_FIRST, PICTURE_FIRST
from imprompt.adapter.sites import Place

WAN = Place(attention="blocks.{}.attn2", own=TEXT_KEYS)
WAN_ANIMATE2 = Place(attention="blocks.{}.cross_attn", own=TEXT_KEYS)
# Where an older Helios lets its history see the text too, that stands before the frames to make.
HELIOS = Place(attention="blocks.{}.attn2", query_span="last", sink_span="last", own=TEXT_KEYS)
COSMOS = Place(attention="transformer_blocks.{}.attn2", layout="heads_first", own=TEXT_KEYS)
COSMOS3 = Place(
    attention="layers.{}.self_attn",
    query=("norm_added_q",),
    sink="to_add_out",
    keys="add_k_proj",
    layout="packed",
    query_span="indexed",
    sink_span="indexed",
)
SANA_WM = Place(
    attention="blocks.{}.cross_attn", query=("q_norm",), sink="proj", keys="kv_linear", fused_at=0, own=(("k_norm",),)
)
KANDINSKY6 = Place(
    attention="visual_transformer_blocks.{}.video_dec_block.cross_attention",
    query=("query_norm",),
    sink="out_layer",
    keys="to_key",
    own=(("key_norm",),),
)

HISTORY = {"query_span": "indexed", "sink_span": "indexed"}
FRAMEPACK_DOUBLE = Place(attention="transformer_blocks.{}.attn", keys="add_k_proj", **HISTORY, **OWN_PICTURE_FIRST)  # pyright: ignore
FRAMEPACK_SINGLE = Place(attention="single_transformer_blocks.{}.attn", sink="^proj_out", **HISTORY, **OWN_SINGLE)  # pyright: ignore
COGVIDEO = Place(
    attention="transformer_blocks.{}.attn1",
    layout="heads_first",
    query_span="last",
    sink_span="last",
    is_overwritten=True,
    own=TEXT_KEYS,
    rotations="image_rotary_emb",
)
# Its second attention to the text is added before `to_out`, so the first one's own part is not to be seen there.
MOTIF_DOUBLE = Place(attention="transformer_blocks.{}.attn", keys="add_k_proj")
MOCHI = Place(attention="transformer_blocks.{}.attn1", keys="add_k_proj")
MINIMAX = Place(attention="transformer_blocks.{}.attn", query=("norm_q",), query_span="indexed", sink_span="indexed")


def asked_again(arguments: Arguments) -> str | None:
    """LTX-2 asks once more for the positive rows alone, with attentions left out, and says so."""
    is_again = arguments.get("spatio_temporal_guidance_blocks") or arguments.get("isolate_modalities")
    return "none" if is_again else None


def told_half(arguments: Arguments) -> str:
    """Wan-Animate 2 says which call is the negative half. The one that reads the reference sees the positive text."""
    return "negative" if arguments.get("is_uncondtion") else "none"


def _cross(name: str, title: str, hosts: tuple[str, ...], place: Place, **options: Any) -> Family:
    return table_row(name, title, hosts, place, **{"grid": patched_size, **options})


FAMILIES = (
    _cross(
        "wan",
        "Wan 2.1 and 2.2, VACE, Animate",
        ("WanTransformer3DModel", "WanVACETransformer3DModel", "WanAnimateTransformer3DModel"),
        WAN,
        guidance="separate",
    ),
    _cross(
        "wan-animate2",
        "Wan-Animate 2",
        ("WanAnimate2Transformer3DModel",),
        WAN_ANIMATE2,
        grid=listed_videos,
        part=told_half,
        guidance="separate",
    ),
    _cross("chronoedit", "ChronoEdit", ("ChronoEditTransformer3DModel",), WAN, guidance="separate"),
    _cross("skyreels-v2", "SkyReels V2", ("SkyReelsV2Transformer3DModel",), WAN, guidance="separate"),
    _cross("anyflow", "AnyFlow", ("AnyFlowTransformer3DModel",), WAN),
    _cross("anyflow-far", "AnyFlow, frame by frame", ("AnyFlowFARTransformer3DModel",), WAN, grid=no_size),
    table_row("helios", "Helios", ("HeliosTransformer3DModel",), HELIOS, guidance="separate"),
    _cross("ltx", "LTX-Video", ("LTXVideoTransformer3DModel",), BLOCKS, grid=told_size),
    _cross("ltx2", "LTX-2", ("LTX2VideoTransformer3DModel",), BLOCKS, grid=told_size, part=asked_again),
    _cross(
        "ltx2-refiner",
        "SANA-WM's refiner, an LTX-2",
        ("SanaWMLTX2RefinerTransformer3DModel",),
        BLOCKS,
        grid=no_size,
        guidance="none",
    ),
    _cross("cosmos", "Cosmos", ("CosmosTransformer3DModel",), COSMOS, clock=None, guidance="separate"),
    _cross("sana-video", "SANA-Video", ("SanaVideoTransformer3DModel",), BLOCKS),
    _cross("sana-wm", "SANA-WM", ("SanaWMTransformer3DModel",), SANA_WM),
    _cross("latte", "Latte", ("LatteTransformer3DModel",), BLOCKS),
    _cross("allegro", "Allegro", ("AllegroTransformer3DModel",), BLOCKS),
    _cross(
        "kandinsky6",
        "Kandinsky 6",
        ("Kandinsky6Transformer3DModel",),
        KANDINSKY6,
        grid=channels_last,
        guidance="separate",
    ),
    table_row(
        "cosmos3",
        "Cosmos 3",
        ("Cosmos3OmniTransformer",),
        COSMOS3,
        latents="vision_tokens",
        timestep=None,
        grid=no_size,
        index=packed_indices,
        is_packed=True,
        guidance="separate",
    ),
    table_row(
        "hunyuan-video",
        "HunyuanVideo",
        ("HunyuanVideoTransformer3DModel",),
        DOUBLE_PICTURE_FIRST,
        PICTURE_FIRST,
        guidance="separate",
    ),
    table_row(
        "framepack",
        "HunyuanVideo, FramePack",
        ("HunyuanVideoFramepackTransformer3DModel",),
        FRAMEPACK_DOUBLE,
        FRAMEPACK_SINGLE,
        index=behind_history,
        guidance="separate",
    ),
    table_row(
        "hunyuan-video-1.5",
        "HunyuanVideo 1.5",
        ("HunyuanVideo15Transformer3DModel",),
        DOUBLE_PICTURE_FIRST,
        guidance="separate",
    ),
    table_row(
        "motif-video",
        "Motif-Video",
        ("MotifVideoTransformer3DModel",),
        MOTIF_DOUBLE,
        PICTURE_FIRST,
        guidance="separate",
    ),
    table_row(
        "cogvideox",
        "CogVideoX and ConsisID",
        ("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel"),
        COGVIDEO,
        grid=frames_first,
    ),
    table_row("easyanimate", "EasyAnimate", ("EasyAnimateTransformer3DModel",), COGVIDEO),
    table_row("mochi", "Mochi", ("MochiTransformer3DModel",), MOCHI),
    table_row(
        "minimax-h3",
        "MiniMax-H3",
        ("MiniMaxH3Transformer3DModel",),
        MINIMAX,
        grid=no_size,
        index=told_indices,
        clock=None,
        guidance="separate",
    ),
)
