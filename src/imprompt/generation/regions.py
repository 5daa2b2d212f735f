"""The masks of a batch at one size."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from imprompt.core.errors import ImageError
from imprompt.prompts.image_prompt import ImagePrompt
from imprompt.prompts.masks import read_mask

MASK_TOLERANCE = 0.02  # of the aspect ratio: pipelines round sizes to multiples of 8
MAX_CELLS = 4_000_000  # of a size that whole numbers of every mask's pixels fit in


def stack_regions(
    column: Sequence[ImagePrompt | None], size: tuple[int, int] | None = None
) -> Float[Tensor, "rows height width"] | None:
    """The masks of every row at one size, ones where a row has none; None if no row has one.

    Args:
        column: the prompt of every row, each with one mask at most.
        size: height and width of the picture to be made.

    Raises:
        ImageError: a mask has another shape than the picture.
    """
    masks = [
        read_mask(prompt.masks[0], size, prompt.feather) if prompt is not None and prompt.masks else None
        for prompt in column
    ]
    sizes = {(mask.shape[0], mask.shape[1]) for mask in masks if mask is not None}
    if not sizes:
        return None
    for height, width in sizes:
        _check_mask(height, width, size)
    target = _common_size(sizes)
    return torch.stack([_resize_mask(mask, target) for mask in masks])


def _common_size(sizes: set[tuple[int, int]]) -> tuple[int, int]:
    """A size in which every mask's pixels are repeated alike, so that no row's mask depends on another's; or nearly."""
    exact = math.lcm(*(height for height, _ in sizes)), math.lcm(*(width for _, width in sizes))
    if exact[0] * exact[1] <= MAX_CELLS:
        return exact
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def _check_mask(height: int, width: int, size: tuple[int, int] | None) -> None:
    if size is not None and abs(width / height * size[0] / size[1] - 1) > MASK_TOLERANCE:
        raise ImageError(
            f"a mask has {width} x {height} pixels, the picture {size[1]} x {size[0]}; give one of the picture's shape"
        )


def _resize_mask(mask: Tensor | None, target: tuple[int, int]) -> Tensor:
    """A mask enlarged by repeating pixels, so that its mean over any region stays what it was."""
    if mask is None:
        return torch.ones(target)
    return functional.interpolate(mask[None, None], target, mode="nearest-exact")[0, 0]
