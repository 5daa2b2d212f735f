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
        null_scale: strength of the null tokens: a factor on `scale` (0 where the negative half shall see no image at
            all), or a table of its own in its place.
        swap: at which sites, in which rows, the negative half reads the image's tokens in place of the null tokens.
        by_noise: in which rows tables go by the noise level of the training schedule, from pure noise to none, and not
            by steps; None for none.
        key_scale: factor on the keys, laid out as `scale`; None for 1.
        gain: factor on the values of single tokens; None for 1.
        match: how far, from 0 to 1, the image's part of a site's output is brought to the length of the host's own part
            before `scale`; None for not at all.
        joint: which rows share one softmax with what the host attends to, and with each other's joint branches: `scale`
            and `gain` are then factors on the mass of the image's keys, and must not be negative; None for none.
    """

    tokens: Float[Tensor, "rows tokens token_width"]
    null_tokens: Float[Tensor, "rows tokens token_width"] | None
    scale: Float[Tensor, "steps sites rows"]
    region: Float[Tensor, "rows height width"] | None = None
    token_mask: Bool[Tensor, "rows tokens"] | None = None
    adapter: int = 0
    null_scale: float | Float[Tensor, "steps sites rows"] = 1.0
    swap: Bool[Tensor, "sites rows"] | None = None
    by_noise: Bool[Tensor, " rows"] | None = None
    key_scale: Float[Tensor, "steps sites rows"] | None = None
    gain: Float[Tensor, "rows tokens"] | None = None
    match: Float[Tensor, " rows"] | None = None
    joint: Bool[Tensor, " rows"] | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.tokens.shape[0]

    @property
    def is_scheduled(self) -> bool:
        """Whether its strength changes during a run."""
        tables = (self.scale, self.null_scale, self.key_scale)
        return any(isinstance(table, Tensor) and table.shape[0] > 1 for table in tables)


@dataclass(frozen=True, kw_only=True)
class TextBranch:
    """A text of its own for a region of every row; see `adapter.regional_text`.

    Attributes:
        states: the text's, as the denoiser is given them.
        share: how much of each place is this text's, 0 to 1; what all shares leave is the denoiser's own text's.
        token_mask: which tokens are real, where rows have different numbers of them; None if all are.
        scale: factor on the share over the run; one step if it is constant, else `NUM_PROGRESS` of them.
        by_noise: as in `Branch`.
    """

    states: Float[Tensor, "rows tokens text_width"]
    share: Float[Tensor, "rows height width"]
    token_mask: Bool[Tensor, "rows tokens"] | None
    scale: Float[Tensor, "steps rows"]
    by_noise: Bool[Tensor, " rows"] | None = None


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """The image prompts of a batch: branches whose outputs are summed; and texts of regions.

    Attributes:
        branches: one for each prompt position; a row with fewer prompts has scale 0 in the others.
        rows: number of rows; one row serves a batch of any size.
        texts: one for each position among a row's regions; a row with fewer has share 0 in the others.
    """

    branches: tuple[Branch, ...]
    rows: int
    texts: tuple[TextBranch, ...] = ()

    def __post_init__(self) -> None:
        for number, branch in enumerate(self.branches):
            found = {branch.rows, branch.scale.shape[-1]}
            if found != {self.rows}:
                raise ConditioningError(
                    f"branch {number} has tokens for {branch.rows} rows and scales for {branch.scale.shape[-1]}, "
                    f"expected {self.rows} of both"
                )
            _check_tables(number, branch)
            _check_parts(number, branch)
            _check_joint(number, branch)
        for number, text in enumerate(self.texts):
            found = {len(text.states), len(text.share), text.scale.shape[-1]}
            if found != {self.rows}:
                raise ConditioningError(
                    f"text {number} has states, shares and scales for {len(text.states)}, {len(text.share)} and "
                    f"{text.scale.shape[-1]} rows, expected {self.rows} of each"
                )


def _check_tables(number: int, branch: Branch) -> None:
    for name in ("scale", "null_scale", "key_scale"):
        table = getattr(branch, name)
        if not isinstance(table, Tensor):
            continue
        if table.shape[0] not in (1, NUM_PROGRESS):
            raise ConditioningError(
                f"branch {number} has {table.shape[0]} steps of {name}, expected 1 or {NUM_PROGRESS}"
            )
        if table.shape[1:] != branch.scale.shape[1:]:
            raise ConditioningError(
                f"branch {number} has {name} for {tuple(table.shape[1:])} sites and rows, expected "
                f"{tuple(branch.scale.shape[1:])} as in scale"
            )


def _check_parts(number: int, branch: Branch) -> None:
    rows, num_tokens, _width = branch.tokens.shape
    wanted = {
        "null_tokens": tuple(branch.tokens.shape),
        "token_mask": (rows, num_tokens),
        "region": (rows,),
        "swap": tuple(branch.scale.shape[1:]),
        "by_noise": (rows,),
        "gain": (rows, num_tokens),
        "match": (rows,),
        "joint": (rows,),
    }
    for name, shape in wanted.items():
        part = getattr(branch, name)
        if part is not None and tuple(part.shape[: len(shape)]) != shape:
            raise ConditioningError(
                f"branch {number} has {name} of shape {tuple(part.shape)}, expected {shape}"
                f"{' and a height and width' if name == 'region' else ''}, to go with its tokens"
            )
    for name in ("scale", "null_scale", "key_scale", "gain", "match", "region"):
        part = getattr(branch, name)
        if isinstance(part, Tensor) and not torch.isfinite(part).all():
            raise ConditioningError(f"branch {number} has a {name} that is not finite; give finite numbers")


def _check_joint(number: int, branch: Branch) -> None:
    """A share of a softmax is not negative."""
    if branch.joint is None:
        return
    tables = {name: torch.as_tensor(getattr(branch, name)) for name in ("scale", "null_scale")}
    tables = {name: table[..., branch.joint] if table.ndim else table for name, table in tables.items()}
    if branch.gain is not None:
        tables["gain"] = branch.gain[branch.joint]
    for name, table in tables.items():
        if bool((table < 0).any()):
            raise ConditioningError(
                f"branch {number} has a negative {name} in a joint softmax, whose parts are at least 0; give other "
                "numbers, or another attention"
            )
