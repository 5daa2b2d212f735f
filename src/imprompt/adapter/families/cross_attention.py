"""Image transformers whose text reaches the picture through a cross-attention of its own, as in a UNet."""

from typing import Any

from imprompt.adapter.families.base import TEXT_KEYS, Arguments, Family, table_row
from imprompt.adapter.families.calls import channels_last, from_noise, patched_size, scaled, thousandths_of_all
from imprompt.adapter.sites import Place

BLOCKS = Place(attention="transformer_blocks.{}.attn2", own=TEXT_KEYS)
HUNYUAN = Place(attention="blocks.{}.attn2", layout="heads_first")
LUMINA_NEXT = Place(attention="layers.{}.attn2")
KANDINSKY = Place(
    attention="visual_transformer_blocks.{}.cross_attention",
    query=("query_norm",),
    sink="out_layer",
    keys="to_key",
    own=(("key_norm",),),
)
# PRX has no module for its queries alone; text is among the keys that they attend to.
PRX = Place(attention="blocks.{}.attention", query=("norm_q",), keys="txt_kv_proj", fused_at=0, layout="heads_first")


def distilled(arguments: Arguments) -> str | None:
    """SANA-Sprint is told its guidance as a number, and asked for positive rows alone."""
    return None if arguments.get("guidance") is None else "none"


def _row(name: str, title: str, hosts: tuple[str, ...], place: Place, **options: Any) -> Family:
    return table_row(name, title, hosts, place, **{"grid": patched_size, **options})


FAMILIES = (
    _row("pixart", "PixArt-alpha and -Sigma", ("PixArtTransformer2DModel",), BLOCKS),
    _row("sana", "SANA", ("SanaTransformer2DModel",), BLOCKS, clock=scaled, layout=distilled),
    _row("hunyuan-dit", "Hunyuan-DiT", ("HunyuanDiT2DModel",), HUNYUAN),
    _row(
        "lumina-next",
        "Lumina-Next",
        ("LuminaNextDiT2DModel",),
        LUMINA_NEXT,
        clock=from_noise,
        guidance="cfg-reversed",
    ),
    _row(
        "kandinsky5",
        "Kandinsky 5",
        ("Kandinsky5Transformer3DModel",),
        KANDINSKY,
        grid=channels_last,
        guidance="separate",
    ),
    _row("prx", "PRX", ("PRXTransformer2DModel",), PRX, clock=thousandths_of_all),
)
