"""Conditioning: image prompts resolved into numbers, row by row. Attention reads nothing else."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from imprompt.core.errors import ConditioningError

# A schedule is sampled at this many points over a run's progress 0..1, so its table's shape, and with it a compiled
# graph, does not depend on the number of steps.
NUM_PROGRESS = 1001


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One image prompt for every row: its own softmax, strength and region.

    Attributes:
        tokens: image tokens of each row.
        null_tokens: the tokens that stand for "no image" in the negative half of guidance; None where there is none.
        scale: strength [steps, sites, rows]; one step if it is constant, else `NUM_PROGRESS` of them.
        region: where in the picture it acts, 0..1; None for everywhere.
        token_mask: which tokens are real, where rows have different numbers of them; None if all are.
        adapter: position of the adapter it belongs to among those attached.
        null_scale: factor on the strength of the null tokens; 0 where the negative half shall see no image at all.
    """

    tokens: Float[Tensor, "rows tokens token_width"]
    null_tokens: Float[Tensor, "rows tokens token_width"] | None
    scale: Float[Tensor, "steps sites rows"]
    region: Float[Tensor, "rows height width"] | None = None
    token_mask: Bool[Tensor, "rows tokens"] | None = None
    adapter: int = 0
    null_scale: float = 1.0

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.tokens.shape[0]

    @property
    def is_scheduled(self) -> bool:
        """Whether its strength changes during a run."""
        return self.scale.shape[0] > 1


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """The image prompts of a batch: branches whose outputs are summed.

    Attributes:
        branches: one for each prompt position; a row with fewer prompts has scale 0 in the others.
        rows: number of rows; one row serves a batch of any size.
    """

    branches: tuple[Branch, ...]
    rows: int

    def __post_init__(self) -> None:
        for number, branch in enumerate(self.branches):
            found = {branch.rows, branch.scale.shape[-1]}
            if found != {self.rows}:
                raise ConditioningError(
                    f"branch {number} has tokens for {branch.rows} rows and scales for {branch.scale.shape[-1]}, "
                    f"expected {self.rows} of both"
                )
            if branch.scale.shape[0] not in (1, NUM_PROGRESS):
                raise ConditioningError(
                    f"branch {number} has {branch.scale.shape[0]} steps of scale, expected 1 or {NUM_PROGRESS}"
                )
            _check_parts(number, branch)


def _check_parts(number: int, branch: Branch) -> None:
    rows, num_tokens, _width = branch.tokens.shape
    wanted = {"null_tokens": tuple(branch.tokens.shape), "token_mask": (rows, num_tokens), "region": (rows,)}
    for name, shape in wanted.items():
        part = getattr(branch, name)
        if part is not None and tuple(part.shape[: len(shape)]) != shape:
            raise ConditioningError(
                f"branch {number} has {name} of shape {tuple(part.shape)}, expected {shape}"
                f"{' and a height and width' if name == 'region' else ''}, to go with its tokens"
            )
    for name in ("scale", "region"):
        part = getattr(branch, name)
        if part is not None and not torch.isfinite(part).all():
            raise ConditioningError(f"branch {number} has a {name} that is not finite; give finite numbers")
