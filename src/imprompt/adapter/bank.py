"""Keys and values of image tokens, computed once for a set of prompts and read at every step."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.attention import (
    frames_of,
    image_attention,
    level_size,
    matched_length,
    per_frame,
    region_weight,
    split_heads,
)
from imprompt.adapter.conditioning import Branch
from imprompt.adapter.sites import Site
from imprompt.adapter.strengths import Strengths, bank_strengths, on_all_sites, site_positions
from imprompt.core.errors import ConditioningError

# How a site attends, where that is not plain attention: what was read, keys, values, which tokens are real.
Attention = Callable[[tuple[Tensor, ...], Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, kw_only=True)
class Bank:
    """One branch at every site: positive rows first, then the negative ones.

    Keys and values alone lie the other way around, negative rows first: as guidance asks for them, so that a call uses
    them where they lie and they are in memory once.

    A constant scale is multiplied into the values once, so it costs nothing at any step and a changed one changes no
    graph. A scheduled scale stays a table. Sites that the adapter does not act on have None.
    """

    keys: list[Float[Tensor, "bank _heads tokens _head"] | None]
    values: list[Float[Tensor, "bank _heads tokens _head"] | None]
    token_mask: Bool[Tensor, "bank 1 1 tokens"] | None
    region: Float[Tensor, "bank height width"] | None
    strengths: Strengths
    rows: int
    has_null: bool
    attentions: list[Attention | None]

    # Whether keys and values are those of one timestep, and must be made again at the next.
    is_timed = False

    @property
    def schedule(self) -> Tensor | None:
        """Scales that are looked up at every step; None where they are in the values."""
        return self.strengths.scale

    def bind(
        self,
        index: Int[Tensor, " batch"],
        schedule: Float[Tensor, "sites batch"] | None,
        timestep: Any = None,
        *,
        rows: tuple[int, ...] | None = None,
    ) -> "BoundBranch":
        """The rows of the denoiser's batch, each with its own keys, values, mask and scale.

        Args:
            index: which row of the bank each row of the batch takes.
            schedule: strength of every row at each site, where it changes during a run.
            timestep: of no meaning here.
            rows: `index` as numbers, where they are known without asking the device.
        """
        size, first = (2 * self.rows, self.rows) if self.has_null else (self.rows, 0)
        span = None if rows is None else _span(tuple((row + first) % size for row in rows))
        place = (index + first) % size
        return BoundBranch(
            keys=[_rows(keys, place, span) for keys in self.keys],
            values=[_rows(values, place, span) for values in self.values],
            token_mask=_rows(self.token_mask, index),
            region=_rows(self.region, index),
            schedule=schedule,
            attentions=self.attentions,
            match=_rows(self.strengths.match, index),
        )


@dataclass(frozen=True, kw_only=True)
class TimedBank:
    """One branch whose keys and values depend on the timestep: it keeps the features, and makes them at every step."""

    adapter: Adapter
    sites: Sequence[Site]
    positions: list[int]
    features: Float[Tensor, "bank tokens feature"]
    token_mask: Bool[Tensor, "bank 1 1 tokens"] | None
    region: Float[Tensor, "bank height width"] | None
    strengths: Strengths
    gain: Float[Tensor, "bank 1 tokens 1"] | None
    rows: int
    has_null: bool
    dtype: torch.dtype

    is_timed = True

    @property
    def schedule(self) -> Tensor | None:
        """Scales that are looked up at every step."""
        return self.strengths.scale

    def bind(
        self,
        index: Int[Tensor, " batch"],
        schedule: Float[Tensor, "sites batch"] | None,
        timestep: Any = None,
        *,
        rows: tuple[int, ...] | None = None,
    ) -> "BoundBranch":
        """The rows of the denoiser's batch, with keys and values of this timestep; see `Bank.bind`."""
        if self.adapter.device != index.device:  # the pipeline has moved
            self.adapter.to(index.device)
        features = self.features.to(index.device).index_select(0, index)
        times = torch.as_tensor(timestep, device=index.device).reshape(-1).expand(len(index))
        gain = _rows(self.gain, index)
        keys: list[Tensor | None] = [None] * len(self.sites)
        values = list(keys)
        attentions: list[Attention | None] = [None] * len(self.sites)
        made = self.adapter.timed_keys_values(features, times, _rows(self.token_mask, index))
        for position, pair, part in zip(self.positions, made, self.adapter.sites, strict=True):
            heads = self.sites[position].num_heads
            keys[position], value = (split_heads(x.to(index.device, self.dtype), heads) for x in pair)
            values[position] = value if gain is None else value * gain
            attentions[position] = part.attend
        return BoundBranch(
            keys=keys,
            values=values,
            token_mask=None,
            region=_rows(self.region, index),
            schedule=schedule,
            attentions=attentions,
            match=_rows(self.strengths.match, index),
        )


def _rows(stored: Tensor | None, index: Int[Tensor, " batch"], span: slice | None = None) -> Any:
    """Chosen rows, on the index's device: the pipeline may have moved since the prompts were set.

    Neighbours are not copied.
    """
    if stored is None:
        return None
    here = stored.to(index.device)
    return here.index_select(0, index) if span is None else here[span]


def _span(rows: tuple[int, ...]) -> slice | None:
    """Rows as a slice, where each is the next of the one before it."""
    span = slice(rows[0], rows[0] + len(rows))
    return span if rows == tuple(range(span.start, span.stop)) else None


@dataclass(kw_only=True)
class BoundBranch:
    """One branch with its rows in the order of the denoiser's batch."""

    keys: list[Float[Tensor, "batch _heads tokens _head"] | None]
    values: list[Float[Tensor, "batch _heads tokens _head"] | None]
    token_mask: Bool[Tensor, "batch 1 1 tokens"] | None
    region: Float[Tensor, "batch height width"] | None
    schedule: Float[Tensor, "sites batch"] | None
    attentions: list[Attention | None]
    match: Float[Tensor, " batch"] | None = None
    key_schedule: Float[Tensor, "sites batch"] | None = None
    placed: Float[Tensor, "batch 1 tokens 1"] | None = None
    _region_weights: dict[tuple[int, int, int, int], Tensor] = field(default_factory=dict)

    # Whether it replaces a part of the host's own, which image branches then take for it.
    is_text = False

    def attend(
        self,
        reads: tuple[Float[Tensor, "batch heads length head"], ...],
        position: int,
        size: tuple[int, int] | None,
        num_tokens: int | None = None,
        own: Float[Tensor, "batch heads length head"] | None = None,
    ) -> Float[Tensor, "batch heads length head"] | None:
        """This branch's output at one site; None where its adapter has no part.

        Args:
            reads: what the site reads, heads split; as a rule the queries alone.
            position: which site, in the order of `Attachment.sites`.
            size: height and width of what regions are placed on.
            num_tokens: how many of the queries are the picture's, where others may stand before them.
            own: what the host itself attends to here, whose length the image's part may be brought to.
        """
        keys, values, attention = self.keys[position], self.values[position], self.attentions[position]
        if keys is None or values is None:
            return None
        query = reads[0]
        frames = query.shape[0] // keys.shape[0]  # more than one where a host folds its frames into the batch
        weight = per_frame(self._weight(query, position, size, num_tokens), frames)
        if self.key_schedule is not None:
            keys = keys * self.key_schedule[position].view(-1, 1, 1, 1).to(keys)
        keys, values = (per_frame(x.to(query.dtype), frames) for x in (keys, values))
        token_mask = per_frame(self.token_mask, frames)
        if attention is None and self.match is None:
            return image_attention(query, keys, values, token_mask=token_mask, weight=weight)
        if attention is None:
            attended = image_attention(query, keys, values, token_mask=token_mask)
        else:
            attended = attention(reads, keys, values, token_mask)
        if self.match is not None and own is not None:
            attended = matched_length(attended, own, per_frame(self.match.view(-1, 1, 1, 1), frames))
        return attended if weight is None else attended * weight

    def _weight(
        self, query: Tensor, position: int, size: tuple[int, int] | None, num_tokens: int | None
    ) -> Tensor | None:
        weight = None if self.schedule is None else self.schedule[position].view(-1, 1, 1, 1)
        if self.region is not None:
            num_others = 0 if num_tokens is None else max(0, query.shape[2] - num_tokens)
            region = self._region_weight(query.shape[2] - num_others, num_others, size)
            weight = region if weight is None else region * weight
        return None if weight is None else weight.to(query.dtype)

    def _region_weight(self, num_queries: int, num_others: int, size: tuple[int, int] | None) -> Tensor:
        """Factor of every query. Tokens that are not the picture's, but act on all of it, have the region's mean."""
        if self.placed is not None:
            return _with_others(self.placed, num_others)
        height, width, times = _cells(num_queries, size)
        if torch.compiler.is_compiling():
            return self._placed_on(height, width, times, num_others)
        key = (height, width, times, num_others)
        if key not in self._region_weights:
            self._region_weights[key] = self._placed_on(*key)
        return self._region_weights[key]

    def _placed_on(self, height: int, width: int, times: int, num_others: int) -> Tensor:
        assert self.region is not None
        return _with_others(region_weight(self.region, (height, width)).repeat(1, 1, times, 1), num_others)


def place_regions(
    regions: Float[Tensor, "batch height width"], size: tuple[int, int] | None, num_queries: int
) -> Float[Tensor, "batch 1 tokens 1"]:
    """Factor of each of the picture's tokens, for regions of all rows.

    Raises:
        ConditioningError: the size is not known, or is not that of so many tokens.
    """
    height, width, times = _cells(num_queries, size)
    return region_weight(regions, (height, width)).repeat(1, 1, times, 1)


def _cells(num_queries: int, size: tuple[int, int] | None) -> tuple[int, int, int]:
    """Height, width and frames of what so many queries are."""
    if size is None:
        raise ConditioningError(
            "a mask cannot be placed: this denoiser's calls do not tell the height and width of the picture; "
            "leave the mask out for this pipeline"
        )
    frames, cells = frames_of(size, num_queries), level_size(size, num_queries)
    if cells is None and frames is None:
        raise ConditioningError(
            f"a mask cannot be placed: no level of a {size[0]} x {size[1]} latent has {num_queries} positions; "
            "leave the mask out for this pipeline"
        )
    return (*cells, 1) if cells is not None else (*size, frames or 1)


def _with_others(weights: Float[Tensor, "batch 1 tokens 1"], num_others: int) -> Float[Tensor, "batch 1 length 1"]:
    if not num_others:
        return weights
    return torch.cat([weights.mean(dim=2, keepdim=True).expand(-1, -1, num_others, -1), weights], dim=2)


def build_bank(
    adapter: Adapter,
    branch: Branch,
    sites: Sequence[Site],
    *,
    device: torch.device,
    dtype: torch.dtype,
    host_tokens: Callable[[Tensor], Tensor] | None = None,
) -> Bank | TimedBank:
    """Project a branch's tokens to keys and values at every site.

    Args:
        adapter: the adapter that the branch belongs to.
        branch: its tokens, scales and region.
        sites: the host's sites, in checkpoint order.
        device: where the host computes.
        dtype: the host's number format.
        host_tokens: what the host does to tokens before keys and values are made of them.
    """
    has_null = branch.null_tokens is not None
    copies = 2 if has_null else 1
    region = None if branch.region is None else branch.region.to(device, dtype).repeat(copies, 1, 1)
    tokens = branch.tokens if branch.null_tokens is None else torch.cat([branch.tokens, branch.null_tokens])
    token_mask = _bank_token_mask(branch, copies, device)
    positions = site_positions(adapter.spec.site_indices, sites)
    constant, strengths = bank_strengths(branch, adapter.spec, sites)
    strengths, gain = strengths.to(device, dtype), _bank_gain(branch, copies, device, dtype)
    if adapter.spec.is_timed:
        return TimedBank(
            adapter=_staying(adapter),
            sites=sites,
            positions=positions,
            features=tokens.to(device),
            token_mask=token_mask,
            region=region,
            strengths=strengths,
            gain=gain,
            rows=branch.rows,
            has_null=has_null,
            dtype=dtype,
        )
    tokens = tokens if host_tokens is None else host_tokens(tokens)
    keys: list[Tensor | None] = [None] * len(sites)
    values = list(keys)
    attentions: list[Attention | None] = [None] * len(sites)
    swap = None if branch.swap is None else on_all_sites(branch.swap[None], adapter.spec, sites)[0].to(device)
    for position, (key, value), part in zip(positions, adapter.keys_values(tokens), adapter.sites, strict=True):
        num_heads = getattr(part, "num_heads", sites[position].num_heads)
        key, value = (split_heads(x.to(device, dtype), num_heads) for x in (key, value))
        if swap is not None:
            key, value = (_swapped(x, swap[position]) for x in (key, value))
        if constant.scale is not None:
            value = value * constant.scale[0, position].to(value).view(-1, 1, 1, 1)
        if constant.keys is not None:
            key = key * constant.keys[0, position].to(key).view(-1, 1, 1, 1)
        value = value if gain is None else value * gain
        keys[position], values[position] = (_negative_first(x, copies) for x in (key, value))
        attentions[position] = getattr(part, "attend", None)
    return Bank(
        keys=keys,
        values=values,
        token_mask=token_mask,
        region=region,
        strengths=strengths,
        rows=branch.rows,
        has_null=has_null,
        attentions=attentions,
    )


def _staying(adapter: Adapter) -> Adapter:
    """The same adapter, its weights in memory once, which stays where it is when the given one goes elsewhere.

    One that is being trained is given back itself, so that gradients reach it.
    """
    weights = [*adapter.parameters(), *adapter.buffers()]
    if any(weight.requires_grad for weight in weights):
        return adapter
    memo = {
        id(weight): nn.Parameter(weight.detach(), False) if isinstance(weight, nn.Parameter) else weight.detach()
        for weight in weights
    }
    return copy.deepcopy(adapter, memo)


def _negative_first(stored: Float[Tensor, "bank heads tokens head"], copies: int) -> Tensor:
    """Keys or values in the order in which they lie in a bank."""
    return torch.cat(stored.chunk(copies)[::-1]).contiguous()


def _swapped(stored: Float[Tensor, "bank heads tokens head"], swap: Bool[Tensor, " rows"]) -> Tensor:
    """Keys or values whose negative rows are the positive ones where the swap says so."""
    positive, negative = stored.chunk(2)
    return torch.cat([positive, torch.where(swap.view(-1, 1, 1, 1), positive, negative)])


def _bank_gain(branch: Branch, copies: int, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    return None if branch.gain is None else branch.gain.to(device, dtype).repeat(copies, 1)[:, None, :, None]


def _bank_token_mask(branch: Branch, copies: int, device: torch.device) -> Tensor | None:
    if branch.token_mask is None:
        return None
    mask = branch.token_mask.to(device)
    # A row without tokens has scale 0; it still must not divide zero by zero.
    mask = mask | ~mask.any(dim=1, keepdim=True)
    return mask.repeat(copies, 1)[:, None, None, :]
