"""FLUX.1: adapters of one's own, and the two published ways of acting on it.

Queries are read after their norm and before their rotation, as diffusers' `FluxIPAdapterAttnProcessor` does (diffusers
0.42, `models/transformers/transformer_flux.py`).
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from imprompt.adapter.families.base import Family, packed_tokens, thousandths
from imprompt.adapter.families.calls import measured_once
from imprompt.adapter.sites import Place, find_places

HOSTS = ("FluxTransformer2DModel",)

# Text before picture, and both turned.
OWN_DOUBLE = {"own": (("norm_added_k", "add_k_proj"), ("norm_k", "to_k")), "rotations": "image_rotary_emb"}
OWN_SINGLE = {"own": (("norm_k", "to_k"),), "rotations": "image_rotary_emb"}

DOUBLE = Place(attention="transformer_blocks.{}.attn", keys="add_k_proj", **OWN_DOUBLE)  # pyright: ignore
SINGLE = Place(
    attention="single_transformer_blocks.{}.attn",
    sink="^proj_out",
    query_span="last",
    sink_span="last",
    **OWN_SINGLE,  # pyright: ignore
)

# XLabs: the double blocks alone, added to the picture's stream after the block and so without an output layer.
AFTER_DOUBLE = Place(attention="transformer_blocks.{}.attn", keys="add_k_proj", sink="^", after=True, item=1)

# InstantX: before the output layer, in the single blocks too, and there the text's tokens attend to the image as the
# picture's do (`attention_processor.py` of InstantX/FLUX.1-dev-IP-Adapter, as ford442/StableDiffusion35_IP_Adapter at
# 7a06853 and HatmanStack/instant-style at f39b756 keep it: `hidden_states + self.scale * ip_hidden_states` of the whole
# sequence, which the block then joins with its MLP for `proj_out`).
SINGLE_WITH_TEXT = Place(attention="single_transformer_blocks.{}.attn", sink="^proj_out", **OWN_SINGLE)  # pyright: ignore

# PuLID: after every second double block and every fourth single one, on the picture's tokens alone
# (ToTheBeginning/PuLID at 30b9f15, `flux/model.py`).
PULID = (
    Place(attention="transformer_blocks.{}.attn", sink="^", after=True, item=1, query=(), every=2),
    Place(attention="single_transformer_blocks.{}.attn", sink="^", after=True, item=1, query=(), every=4),
)


@measured_once
def grid_of_ids(ids: Tensor) -> tuple[int, int] | None:
    """Height and width of packed latents, of the rows and columns that `img_ids` gives every token.

    None where some tokens are not the picture's: Kontext puts those of references behind, under another first number.
    """
    ids = ids[0] if ids.ndim == 3 else ids
    is_own = (ids[:, 0] == ids[0, 0]).all()
    sides = ids[:, 1:3].amax(0) - ids[:, 1:3].amin(0) + 1
    all_own, height, width = torch.cat([is_own[None].to(sides), sides]).tolist()
    return (int(height), int(width)) if all_own else None


def _family(name: str, title: str, *places: Place, **options: Any) -> Family:
    return Family(
        name=name,
        title=title,
        hosts=HOSTS,
        sites=partial(find_places, places=places),
        clock=thousandths,
        grid=packed_tokens,
        positions="img_ids",
        measure=grid_of_ids,
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
