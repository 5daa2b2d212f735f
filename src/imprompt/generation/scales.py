"""How strongly prompts act, as tables of numbers: over the run, at every site, in both halves of guidance."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from imprompt.adapter.conditioning import NUM_PROGRESS
from imprompt.prompts.blocks import BlockFactors, block_factors, without_middle
from imprompt.prompts.image_prompt import ImagePrompt
from imprompt.prompts.schedule import factors_over_run
from imprompt.prompts.text_region import TextRegion

# A run's step falls on the nearest bin of the table, so a prompt's edges reach half a bin further; the rest is for
# rounding. A start of 1/3 in 30 steps is step 10, whose bin is 0.333.
HALF_BIN = 0.5 / (NUM_PROGRESS - 1) + 1e-9

FULL_WIDTH = 1280  # at which "channel penalty" leaves a weight as it is

Column = Sequence[ImagePrompt | None]

Timed = Sequence[ImagePrompt | TextRegion | None]


def column_scales(
    column: Column, labels: Sequence[str], widths: Sequence[int], *, null_scale: float = 1.0
) -> dict[str, Any]:
    """Everything about strength that a branch holds, by the names of its fields.

    Args:
        column: the prompt of every row, None where a row has none.
        labels: the block of each of the adapter's sites.
        widths: the width of each.
        null_scale: factor in the negative half of guidance where a prompt says nothing of it.

    Raises:
        PromptError: a prompt names blocks that the base lacks.
    """
    factors = [_factors(prompt, labels) for prompt in column]
    over_time = time_table(column)[:, None]
    penalty = _penalties(column, widths)
    positive = torch.tensor([each.positive for each in factors], dtype=torch.float32).T * penalty
    negative = torch.tensor([each.negative for each in factors], dtype=torch.float32).T * penalty
    swap = torch.tensor([each.swapped for each in factors]).T
    scale, swapped_scale = over_time * positive, over_time * negative
    has_negative = [prompt is not None and prompt.negative is not None for prompt in column]
    has_own_null = bool(swap.any()) or (null_scale != 1.0 and any(has_negative))
    null = torch.where(swap, swapped_scale, scale * torch.tensor([1.0 if has else null_scale for has in has_negative]))
    return {
        "scale": scale,
        "null_scale": null if has_own_null else null_scale,
        "swap": swap if bool(swap.any()) else None,
        "by_noise": by_noise(column),
        "key_scale": _key_scale(column, torch.where(swap, swapped_scale, scale)),
        "match": _match(column),
        "joint": _joint(column),
    }


def time_table(column: Timed) -> Float[Tensor, "steps rows"]:
    """The factor of every row over the run: one step if none changes, else one a bin."""
    if not any(prompt is not None and _changes(prompt) for prompt in column):
        return torch.ones(1, len(column))
    return torch.stack([_over_time(prompt) for prompt in column], dim=-1)


def _changes(prompt: ImagePrompt | TextRegion) -> bool:
    is_constant = isinstance(prompt.curve, str) and prompt.curve == "constant"
    return not is_constant or (prompt.start, prompt.end) != (0.0, 1.0)


def _over_time(prompt: ImagePrompt | TextRegion | None) -> Float[Tensor, " steps"]:
    if prompt is None or not _changes(prompt):
        return torch.ones(NUM_PROGRESS)
    return torch.tensor(factors_over_run(prompt.curve, prompt.start, prompt.end, count=NUM_PROGRESS, slack=HALF_BIN))


def _factors(prompt: ImagePrompt | None, labels: Sequence[str]) -> BlockFactors:
    if prompt is None:
        return block_factors(None, labels, weight=0.0)
    factors = block_factors(prompt.blocks, labels, weight=prompt.weight, second=prompt.second_weight)
    return factors if prompt.compat is None else without_middle(factors, labels)


def _penalties(column: Column, widths: Sequence[int]) -> Float[Tensor, "sites rows"]:
    narrow = torch.tensor(widths, dtype=torch.float32)[:, None] / FULL_WIDTH
    return torch.where(_chosen(column, "channel penalty"), narrow, 1.0)


def _key_scale(column: Column, scale: Tensor) -> Float[Tensor, "steps sites rows"] | None:
    chosen = _chosen(column, "keys and values", "channel penalty")
    return torch.where(chosen, scale, 1.0) if bool(chosen.any()) else None


def _joint(column: Column) -> Bool[Tensor, " rows"] | None:
    chosen = _chosen(column, "joint softmax")
    return chosen if bool(chosen.any()) else None


def _match(column: Column) -> Float[Tensor, " rows"] | None:
    chosen = _chosen(column, "norm matched")
    return chosen.float() if bool(chosen.any()) else None


def by_noise(column: Timed) -> Bool[Tensor, " rows"] | None:
    """Rows without a prompt go along with the others, so that steps are asked for only where some row counts them."""
    if not any(prompt is not None and prompt.unit == "noise" for prompt in column):
        return None
    return torch.tensor([prompt is None or prompt.unit == "noise" for prompt in column])


def _chosen(column: Column, *modes: str) -> Bool[Tensor, " rows"]:
    return torch.tensor([prompt is not None and prompt.attention in modes for prompt in column])
