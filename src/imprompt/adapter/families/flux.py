"""FLUX.1: adapters of one's own, and the two published ways of acting on it.

Queries are read after their norm and before their rotation, as diffusers' `FluxIPAdapterAttnProcessor` does (diffusers
0.42, `models/transformers/transformer_flux.py`).
"""

from functools import partial
from typing import Any

import torch

from imprompt.adapter.families.base import Arguments, Family, thousandths
from imprompt.adapter.sites import Place, find_places

HOSTS = ("FluxTransformer2DModel",)

DOUBLE = Place(attention="transformer_blocks.{}.attn", keys="add_k_proj")
SINGLE = Place(attention="single_transformer_blocks.{}.attn", sink="^proj_out", query_span="last", sink_span="last")

# XLabs: the double blocks alone, added to the picture's stream after the block and so without an output layer.
AFTER_DOUBLE = Place(attention="transformer_blocks.{}.attn", keys="add_k_proj", sink="^", after=True, item=1)

# InstantX: in the single blocks the text's tokens attend to the image too.
SINGLE_WITH_TEXT = Place(attention="single_transformer_blocks.{}.attn", sink="^proj_out")

# PuLID: after every second double block and every fourth single one.
PULID = (
    Place(attention="transformer_blocks.{}.attn", sink="^", after=True, item=1, query=(), every=2),
    Place(attention="single_transformer_blocks.{}.attn", sink="^", after=True, item=1, query=(), every=4),
)


def image_grid(latents: Any, arguments: Arguments, _host: Any) -> tuple[tuple[int, int] | None, int | None]:
    """Height and width of packed latents, of the rows and columns that `img_ids` gives every token.

    Reference tokens, which Kontext puts behind, have another first number and are left out of the picture's size.
    """
    ids = arguments.get("img_ids")
    if ids is None or torch.compiler.is_compiling():
        return None, latents.shape[1]
    ids = ids[0] if ids.ndim == 3 else ids
    own = ids[ids[:, 0] == ids[0, 0]]
    height, width = (int(side) for side in (own[:, 1:3].amax(0) - own[:, 1:3].amin(0) + 1).tolist())
    return (height, width) if len(own) == len(ids) else None, latents.shape[1]


def _family(name: str, title: str, *places: Place, **options: Any) -> Family:
    return Family(
        name=name,
        title=title,
        hosts=HOSTS,
        sites=partial(find_places, places=places),
        clock=thousandths,
        grid=image_grid,
        guidance="separate",
        has_free_tokens=True,
        **options,
    )


FAMILIES = (
    _family("flux", "FLUX.1", DOUBLE, SINGLE),
    _family("flux-xlabs", "FLUX.1, as XLabs' adapters act on it", AFTER_DOUBLE, is_default=False),
    _family("flux-instantx", "FLUX.1, as InstantX's adapters act on it", DOUBLE, SINGLE_WITH_TEXT, is_default=False),
    _family("flux-pulid", "FLUX.1, as PuLID acts on it", *PULID, is_default=False),
)
