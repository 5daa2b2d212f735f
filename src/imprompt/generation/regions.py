"""The masks of a batch at one size."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from imprompt.core.errors import ImageError
from imprompt.prompts.image_prompt import ImagePrompt
from imprompt.prompts.masks import read_mask
from imprompt.prompts.text_region import TextRegion

MASK_TOLERANCE = 0.02  # of the aspect ratio: pipelines round sizes to multiples of 8
MAX_CELLS = 4_000_000  # of a size that whole numbers of every mask's pixels fit in


def stack_regions(
    column: Sequence[ImagePrompt | None], size: tuple[int, int] | None = None
) -> Float[Tensor, "rows height width"] | None:
    """The masks of every row at one size, ones where a row has none; None if no row has one.

    That size is the picture's where it is known, so that no row's mask depends on another's; else one in which every
    mask's pixels are repeated alike.

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
    if all(mask is None for mask in masks):
        return None
    target = _target_size([mask for mask in masks if mask is not None], size)
    return torch.stack([torch.ones(target) if mask is None else resize_mask(mask, target) for mask in masks])


def share_places(
    rows: Sequence[Sequence[TextRegion]], size: tuple[int, int] | None = None
) -> list[Float[Tensor, "rows height width"]]:
    """How much of each place of the picture each region of every row has: the first of all rows, the second, ...

    A region has its weight times its mask, and where a row's come to more than 1, each its part of their sum.

    Args:
        rows: of every row; some may have none, but not all.
        size: height and width of the picture to be made; see `stack_regions`.

    Raises:
        ImageError: a mask has another shape than the picture.
    """
    masks = [
        [(region, read_mask(region.mask, size, region.feather)) for region in row if region.mask is not None]
        for row in rows
    ]
    target = _target_size([mask for row in masks for _, mask in row], size)
    count = max(map(len, rows))
    shares = torch.zeros(len(rows), count, *target)
    for number, row in enumerate(masks):
        for place, (region, mask) in enumerate(row):
            shares[number, place] = region.weight * resize_mask(mask, target)
    shares = shares / shares.sum(dim=1, keepdim=True).clamp(min=1.0)
    return list(shares.unbind(dim=1))


def _target_size(masks: Sequence[Float[Tensor, "_ _"]], size: tuple[int, int] | None) -> tuple[int, int]:
    sizes = {(mask.shape[0], mask.shape[1]) for mask in masks}
    for height, width in sizes:
        _check_mask(height, width, size)
    return _common_size(sizes) if size is None else size


def _common_size(sizes: set[tuple[int, int]]) -> tuple[int, int]:
    """A size in which every mask's pixels are repeated alike; the largest of each side where that is too much."""
    exact = math.lcm(*(height for height, _ in sizes)), math.lcm(*(width for _, width in sizes))
    if exact[0] * exact[1] <= MAX_CELLS:
        return exact
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def _check_mask(height: int, width: int, size: tuple[int, int] | None) -> None:
    if size is not None and abs(width / height * size[0] / size[1] - 1) > MASK_TOLERANCE:
        raise ImageError(
            f"a mask has {width} x {height} pixels, the picture {size[1]} x {size[0]}; give one of the picture's shape"
        )


def resize_mask(mask: Float[Tensor, "height width"], size: tuple[int, int]) -> Float[Tensor, "new_height new_width"]:
    """A mask whose pixels are the means of what they cover, to fractions of a pixel: its mean stays what it was."""
    if tuple(mask.shape) == size:
        return mask
    down, across = (_shares(new, old) for new, old in zip(size, mask.shape, strict=True))
    return down @ mask @ across.T


def _shares(new: int, old: int) -> Float[Tensor, "new old"]:
    """How much of each new pixel every old one makes up, along one side."""
    starts, ends = (torch.arange(first, first + new, dtype=torch.float64)[:, None] * old for first in (0, 1))
    places = torch.arange(old, dtype=torch.float64) * new
    overlap = torch.minimum(ends, places + new) - torch.maximum(starts, places)
    return (overlap.clamp(min=0) / old).float()
