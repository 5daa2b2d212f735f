"""Stable Diffusion 3 and 3.5: adapters of one's own, and InstantX's, whose tokens depend on the timestep."""

from functools import partial
from typing import Any

from imprompt.adapter.families.base import Arguments, Family
from imprompt.adapter.sites import Place, find_places

JOINT = Place(
    attention="transformer_blocks.{}.attn",
    keys="add_k_proj",
    layout="heads_first",
    own=(("norm_k", "to_k"), ("norm_added_k", "add_k_proj")),
    own_part=0,
)

# InstantX reads queries, keys and values before their norms, and has norms of its own (diffusers 0.42,
# `models/attention_processor.py`, `SD3IPAdapterJointAttnProcessor2_0`).
BESIDE_PICTURE = Place(attention="transformer_blocks.{}.attn", query=("to_q",), also_reads=("to_k", "to_v"))


def skipped_layers(arguments: Arguments) -> str | None:
    """Skip-layer guidance asks once more for the positive rows alone, and says so by the layers that it skips."""
    return "none" if arguments.get("skip_layers") is not None else None


def _family(name: str, title: str, place: Place, **options: Any) -> Family:
    return Family(
        name=name,
        title=title,
        hosts=("SD3Transformer2DModel",),
        sites=partial(find_places, places=(place,)),
        part=skipped_layers,
        has_free_tokens=True,
        **options,
    )


FAMILIES = (
    _family("sd3", "Stable Diffusion 3 and 3.5", JOINT),
    _family("sd3-instantx", "Stable Diffusion 3.5, as InstantX's adapter acts on it", BESIDE_PICTURE, is_default=False),
)
