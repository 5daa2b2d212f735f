"""Keys and values of image tokens, computed once for a set of prompts and read at every step."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.attention import split_heads
from imprompt.adapter.bound import Attention, BoundBranch
from imprompt.adapter.conditioning import Branch
from imprompt.adapter.sites import Site
from imprompt.adapter.strengths import Strengths, bank_strengths, on_all_sites, site_positions

# Added to the logits of a token of no weight: in every number format it leaves the token nothing.
NOTHING = -1e4


@dataclass(frozen=True, kw_only=True)
class BranchBank(ABC):
    """One branch for every row and both halves of guidance: positive rows first, then the negative ones.

    Attributes:
        token_mask: which tokens are real, or what is added to their logits; None if all count alike.
        region: where in the picture it acts; None for everywhere.
        strengths: what is looked up at every step.
        rows: of the conditioning.
        has_null: whether there are negative rows.
    """

    token_mask: Bool[Tensor, "bank 1 1 tokens"] | Float[Tensor, "bank 1 1 tokens"] | None
    region: Float[Tensor, "bank height width"] | None
    strengths: Strengths
    rows: int
    has_null: bool

    # Whether keys and values are those of one timestep, and must be made again at the next.
    is_timed = False

    @property
    def schedule(self) -> Tensor | None:
        """Scales that are looked up at every step; None where they are in the values."""
        return self.strengths.scale

    @abstractmethod
    def bind(
        self,
        index: Int[Tensor, " batch"],
        schedule: Float[Tensor, "sites batch"] | None,
        timestep: Any = None,
        *,
        rows: tuple[int, ...] | None = None,
    ) -> BoundBranch:
        """The rows of the denoiser's batch, each with its own keys, values, mask and scale.

        Args:
            index: which row of the bank each row of the batch takes.
            schedule: strength of every row at each site, where it changes during a run.
            timestep: that of the call, where keys and values depend on it.
            rows: `index` as numbers, where they are known without asking the device.
        """

    def _bound(self, index: Tensor, schedule: Tensor | None, **parts: Any) -> BoundBranch:
        """What all kinds of bank have in common."""
        return BoundBranch(
            region=chosen_rows(self.region, index),
            schedule=schedule,
            match=chosen_rows(self.strengths.match, index),
            joint=chosen_rows(self.strengths.joint, index),
            **parts,
        )


@dataclass(frozen=True, kw_only=True)
class Bank(BranchBank):
    """A branch whose keys and values are the same at every step.

    They alone lie the other way around, negative rows first: as guidance asks for them, so that a call uses them where
    they lie and they are in memory once.

    A constant scale is multiplied into the values once, so it costs nothing at any step and a changed one changes no
    graph. A scheduled scale stays a table. Sites that the adapter does not act on have None.
    """

    keys: list[Float[Tensor, "bank _heads tokens _head"] | None]
    values: list[Float[Tensor, "bank _heads tokens _head"] | None]
    attentions: list[Attention | None]

    def bind(
        self,
        index: Int[Tensor, " batch"],
        schedule: Float[Tensor, "sites batch"] | None,
        timestep: Any = None,
        *,
        rows: tuple[int, ...] | None = None,
    ) -> BoundBranch:
        """See `BranchBank.bind`; the timestep is of no meaning here."""
        size, first = (2 * self.rows, self.rows) if self.has_null else (self.rows, 0)
        span = None if rows is None else _span(tuple((row + first) % size for row in rows))
        place = (index + first) % size
        return self._bound(
            index,
            schedule,
            keys=[chosen_rows(keys, place, span) for keys in self.keys],
            values=[chosen_rows(values, place, span) for values in self.values],
            token_mask=chosen_rows(self.token_mask, index),
            attentions=self.attentions,
        )


@dataclass(frozen=True, kw_only=True)
class TimedBank(BranchBank):
    """One branch whose keys and values depend on the timestep: it keeps the features, and makes them at every step."""

    adapter: Adapter
    sites: Sequence[Site]
    positions: list[int]
    features: Float[Tensor, "bank tokens feature"]
    gain: Float[Tensor, "bank 1 tokens 1"] | None
    dtype: torch.dtype

    is_timed = True

    def bind(
        self,
        index: Int[Tensor, " batch"],
        schedule: Float[Tensor, "sites batch"] | None,
        timestep: Any = None,
        *,
        rows: tuple[int, ...] | None = None,
    ) -> BoundBranch:
        """See `BranchBank.bind`: keys and values are those of this timestep."""
        if self.adapter.device != index.device:  # the pipeline has moved
            self.adapter.to(index.device)
        features = self.features.to(index.device).index_select(0, index)
        times = torch.as_tensor(timestep, device=index.device).reshape(-1).expand(len(index))
        gain = chosen_rows(self.gain, index)
        keys: list[Tensor | None] = [None] * len(self.sites)
        values = list(keys)
        attentions: list[Attention | None] = [None] * len(self.sites)
        made = self.adapter.timed_keys_values(features, times, chosen_rows(self.token_mask, index))
        for position, pair, part in zip(self.positions, made, self.adapter.sites, strict=True):
            heads = self.sites[position].num_heads
            keys[position], value = (split_heads(x.to(index.device, self.dtype), heads) for x in pair)
            values[position] = value if gain is None else value * gain
            attentions[position] = part.attend
        return self._bound(index, schedule, keys=keys, values=values, token_mask=None, attentions=attentions)


def chosen_rows(stored: Tensor | None, index: Int[Tensor, " batch"], span: slice | None = None) -> Any:
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
    tokens = branch.tokens if branch.null_tokens is None else torch.cat([branch.tokens, branch.null_tokens])
    positions = site_positions(adapter.spec.site_indices, sites)
    constant, strengths = bank_strengths(branch, adapter.spec, sites)
    gain = _value_gain(branch, copies, device, dtype)
    common: dict[str, Any] = {
        "token_mask": _bank_token_mask(branch, copies, device, dtype),
        "region": None if branch.region is None else branch.region.to(device, dtype).repeat(copies, 1, 1),
        "strengths": strengths.to(device, dtype),
        "rows": branch.rows,
        "has_null": has_null,
    }
    if adapter.spec.is_timed:
        return TimedBank(
            adapter=_staying(adapter),
            sites=sites,
            positions=positions,
            features=tokens.to(device),
            gain=gain,
            dtype=dtype,
            **common,
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
    return Bank(keys=keys, values=values, attentions=attentions, **common)


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


def _value_gain(branch: Branch, copies: int, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """Factors on values. In a joint softmax they are factors on masses instead, as `_bank_token_mask` has them."""
    if branch.gain is None:
        return None
    gain = branch.gain.to(device, dtype)
    if branch.joint is not None:
        gain = torch.where(branch.joint.to(device)[:, None], 1.0, gain)
    return gain.repeat(copies, 1)[:, None, :, None]


def _bank_token_mask(branch: Branch, copies: int, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """Which tokens are real; with gains in a joint softmax, what is added to their logits."""
    mask = None if branch.token_mask is None else branch.token_mask.to(device)
    if mask is not None:
        # A row without tokens has scale 0; it still must not divide zero by zero.
        mask = mask | ~mask.any(dim=1, keepdim=True)
    if branch.joint is not None and branch.gain is not None:
        gain = torch.where(branch.joint.to(device)[:, None], branch.gain.to(device), 1.0)
        mask = (gain if mask is None else gain * mask.to(gain)).log().clamp(min=NOTHING).to(dtype)
    return None if mask is None else mask.repeat(copies, 1)[:, None, None, :]
