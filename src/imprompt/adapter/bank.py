"""Keys and values of image tokens, computed once for a set of prompts and read at every step."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.attention import image_attention, level_size, region_weight, split_heads
from imprompt.adapter.conditioning import Branch
from imprompt.adapter.sites import Site
from imprompt.core.errors import ConditioningError


@dataclass(frozen=True, kw_only=True)
class Bank:
    """One branch at every site: positive rows first, then the negative ones.

    A constant scale is multiplied into the values once, so it costs nothing at any step and a changed one changes no
    graph. A scheduled scale stays a table.
    """

    keys: list[Float[Tensor, "bank _heads tokens _head"]]
    values: list[Float[Tensor, "bank _heads tokens _head"]]
    token_mask: Bool[Tensor, "bank 1 1 tokens"] | None
    region: Float[Tensor, "bank height width"] | None
    schedule: Float[Tensor, "steps sites rows"] | None
    rows: int
    has_null: bool

    def bind(self, index: Int[Tensor, " batch"], schedule: Float[Tensor, "sites batch"] | None) -> "BoundBranch":
        """The rows of the denoiser's batch, each with its own keys, values, mask and scale."""
        return BoundBranch(
            keys=[_rows(keys, index) for keys in self.keys],
            values=[_rows(values, index) for values in self.values],
            token_mask=None if self.token_mask is None else _rows(self.token_mask, index),
            region=None if self.region is None else _rows(self.region, index),
            schedule=schedule,
        )


def _rows(stored: Tensor, index: Int[Tensor, " batch"]) -> Tensor:
    """Chosen rows, on the index's device: the pipeline may have moved since the prompts were set."""
    return stored.to(index.device).index_select(0, index)


@dataclass(kw_only=True)
class BoundBranch:
    """One branch with its rows in the order of the denoiser's batch."""

    keys: list[Float[Tensor, "batch _heads tokens _head"]]
    values: list[Float[Tensor, "batch _heads tokens _head"]]
    token_mask: Bool[Tensor, "batch 1 1 tokens"] | None
    region: Float[Tensor, "batch height width"] | None
    schedule: Float[Tensor, "sites batch"] | None
    _region_weights: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def attend(
        self, query: Float[Tensor, "batch heads length head"], position: int, size: tuple[int, int]
    ) -> Float[Tensor, "batch heads length head"]:
        """This branch's output at one site.

        Args:
            query: the host's queries, heads split.
            position: which site, in the order of `Attachment.sites`.
            size: height and width of the host's latent.
        """
        return image_attention(
            query,
            self.keys[position].to(query.dtype),
            self.values[position].to(query.dtype),
            token_mask=self.token_mask,
            weight=self._weight(query, position, size),
        )

    def _weight(self, query: Tensor, position: int, size: tuple[int, int]) -> Tensor | None:
        weight = None if self.schedule is None else self.schedule[position].view(-1, 1, 1, 1)
        if self.region is not None:
            region = self._region_weight(query.shape[2], size)
            weight = region if weight is None else region * weight
        return None if weight is None else weight.to(query.dtype)

    def _region_weight(self, num_queries: int, size: tuple[int, int]) -> Tensor:
        assert self.region is not None
        cells = level_size(size, num_queries)
        if cells is None:
            raise ConditioningError(
                f"a mask cannot be placed: no level of a {size[0]} x {size[1]} latent has {num_queries} positions; "
                "leave the mask out for this pipeline"
            )
        if torch.compiler.is_compiling():
            return region_weight(self.region, cells)
        if cells not in self._region_weights:
            self._region_weights[cells] = region_weight(self.region, cells)
        return self._region_weights[cells]


def build_bank(
    adapter: Adapter, branch: Branch, sites: Sequence[Site], *, device: torch.device, dtype: torch.dtype
) -> Bank:
    """Project a branch's tokens to keys and values at every site.

    Args:
        adapter: the adapter that the branch belongs to.
        branch: its tokens, scales and region.
        sites: the host's sites, in checkpoint order.
        device: where the host computes.
        dtype: the host's number format.
    """
    has_null = branch.null_tokens is not None
    tokens = branch.tokens if branch.null_tokens is None else torch.cat([branch.tokens, branch.null_tokens])
    copies = 2 if has_null else 1
    scale = branch.scale.to(device, dtype)
    keys, values = [], []
    for position, (site, (key, value)) in enumerate(zip(sites, adapter.keys_values(tokens), strict=True)):
        value = split_heads(value.to(device, dtype), site.num_heads)
        if not branch.is_scheduled:
            value = value * scale[0, position].repeat(copies).view(-1, 1, 1, 1)
        keys.append(split_heads(key.to(device, dtype), site.num_heads))
        values.append(value)
    return Bank(
        keys=keys,
        values=values,
        token_mask=_bank_token_mask(branch, copies, device),
        region=None if branch.region is None else branch.region.to(device, dtype).repeat(copies, 1, 1),
        schedule=scale if branch.is_scheduled else None,
        rows=branch.rows,
        has_null=has_null,
    )


def _bank_token_mask(branch: Branch, copies: int, device: torch.device) -> Tensor | None:
    if branch.token_mask is None:
        return None
    mask = branch.token_mask.to(device)
    # A row without tokens has scale 0; it still must not divide zero by zero.
    mask = mask | ~mask.any(dim=1, keepdim=True)
    return mask.repeat(copies, 1)[:, None, None, :]
