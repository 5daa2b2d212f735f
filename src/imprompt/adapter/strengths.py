"""How strongly a branch acts: tables of scales for all rows of a bank, in the values where they are constant."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from imprompt.adapter.conditioning import NUM_PROGRESS, Branch
from imprompt.adapter.sites import Site
from imprompt.adapter.spec import AdapterSpec


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """What is looked up at every step, for positive rows and the negative ones after them.

    Attributes:
        scale: factor on the image's part; None where it is in the values.
        keys: factor on the keys; None where it is in them, or 1.
        by_noise: which rows' tables go by noise level; None if none do.
        has_steps: whether any row's tables go by steps.
        match: see `Branch.match`.
        joint: see `Branch.joint`, as numbers 0 and 1.
    """

    scale: Float[Tensor, "steps sites bank"] | None
    keys: Float[Tensor, "steps sites bank"] | None
    by_noise: Bool[Tensor, " bank"] | None = None
    has_steps: bool = False
    match: Float[Tensor, " bank"] | None = None
    joint: Float[Tensor, " bank"] | None = None

    @property
    def changes(self) -> bool:
        """Whether what is looked up depends on where in its run the denoiser is."""
        return self.has_steps or self.by_noise is not None

    def to(self, device: torch.device, dtype: torch.dtype) -> "Strengths":
        """The same where the host computes, in its number format."""

        def moved(table: Tensor | None) -> Tensor | None:
            return None if table is None else table.to(device, dtype)

        by_noise = None if self.by_noise is None else self.by_noise.to(device)
        return Strengths(
            scale=moved(self.scale),
            keys=moved(self.keys),
            by_noise=by_noise,
            has_steps=self.has_steps,
            match=moved(self.match),
            joint=moved(self.joint),
        )

    def bins(self, step: Int[Tensor, " n"] | None, level: Int[Tensor, " n"]) -> Int[Tensor, "n bank"]:
        """Where in the tables every row is, of the places of a run's step and of its noise level."""
        if self.by_noise is None or step is None:
            return (level if step is None else step)[:, None]
        return torch.where(self.by_noise.to(step.device), level[:, None], step[:, None])


def bank_strengths(branch: Branch, spec: AdapterSpec, sites: Sequence[Site]) -> tuple[Strengths, Strengths]:
    """The strengths of a bank: those that go into keys and values once, and those that are looked up.

    Args:
        branch: one image prompt for every row.
        spec: of its adapter.
        sites: the host's.
    """
    scale, keys = _both_halves(branch, spec, sites)
    none = Strengths(scale=None, keys=None)
    is_product = branch.match is None and branch.joint is None and not spec.is_timed
    is_constant = is_product and not branch.is_scheduled
    if is_constant:
        return Strengths(scale=scale, keys=keys), none
    copies = 1 if branch.null_tokens is None else 2
    by_noise = None if branch.by_noise is None else branch.by_noise.repeat(copies)
    looked_up = Strengths(
        scale=_over_run(scale),
        keys=None if keys is None else _over_run(keys),
        by_noise=by_noise,
        has_steps=branch.is_scheduled and (by_noise is None or not bool(by_noise.all())),
        match=None if branch.match is None else branch.match.repeat(copies),
        joint=None if branch.joint is None else branch.joint.float().repeat(copies),
    )
    return none, looked_up


def _over_run(table: Float[Tensor, "steps sites bank"]) -> Float[Tensor, "all_steps sites bank"]:
    """A table for the whole run, also of what is constant: a compiled graph looks at shapes, not at schedules."""
    return table.expand(NUM_PROGRESS, -1, -1).contiguous()


def _both_halves(branch: Branch, spec: AdapterSpec, sites: Sequence[Site]) -> tuple[Tensor, Tensor | None]:
    scale = on_all_sites(branch.scale, spec, sites)
    keys = None if branch.key_scale is None else on_all_sites(branch.key_scale, spec, sites)
    if branch.null_tokens is None:
        return scale, keys
    given = branch.null_scale
    null = on_all_sites(given, spec, sites) if isinstance(given, Tensor) else scale * given
    steps = max(len(scale), len(null))
    halves = [table.expand(steps, -1, -1) for table in (scale, null)]
    return torch.cat(halves, dim=-1), None if keys is None else torch.cat([keys, keys], dim=-1)


def look_up(
    table: Float[Tensor, "steps sites bank"], bins: Int[Tensor, "n _bank"], index: Int[Tensor, " batch"]
) -> Float[Tensor, "sites batch"]:
    """A table's entries for the rows of a call.

    Args:
        table: over the run.
        bins: places in such a table: for the whole call or for each row of it, alike for all rows of the bank or not.
        index: the bank's row of every row of the call.
    """
    bins = bins.expand(len(index), table.shape[2]).gather(1, index[:, None])[:, 0]
    return table[bins, :, index].T


def on_all_sites(
    table: Shaped[Tensor, "steps some rows"], spec: AdapterSpec, sites: Sequence[Site]
) -> Shaped[Tensor, "steps sites rows"]:
    """A table for all of the host's sites, of one for those of the adapter."""
    if table.shape[1] == len(sites):
        return table
    full = table.new_zeros(table.shape[0], len(sites), table.shape[2])
    full[:, site_positions(spec.site_indices, sites)] = table
    return full


def site_positions(indices: Sequence[int], sites: Sequence[Site]) -> list[int]:
    """Which of the host's sites an adapter's parts belong to."""
    places = {site.index: position for position, site in enumerate(sites)}
    return [places[index] for index in indices]
