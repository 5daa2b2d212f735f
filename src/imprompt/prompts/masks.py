"""Where a reference acts: pictures, arrays, boxes and polygons as masks, with soft edges."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from imprompt.core.errors import PromptError
from imprompt.core.images import ImageSource, load_mask

SIDE = 512  # of a drawn shape where the picture's size is not known, in pixels; masks are averaged anyway
_FINER = 4  # a shape is drawn so much finer and averaged, which smooths its edges


@dataclass(frozen=True)
class Box:
    """A rectangle, in fractions of the picture's width and height from its upper left corner.

    Raises:
        PromptError: it is empty or reaches out of the picture.
    """

    left: float
    top: float
    right: float
    bottom: float

    def __post_init__(self) -> None:
        inside = all(_is_fraction(value) for value in (self.left, self.top, self.right, self.bottom))
        if not inside or not (self.left < self.right and self.top < self.bottom):
            raise PromptError(
                "a box needs 0 <= left < right <= 1 and 0 <= top < bottom <= 1, fractions of the picture; "
                f"got {self.left!r}, {self.top!r}, {self.right!r}, {self.bottom!r}."
            )

    @property
    def corners(self) -> tuple[tuple[float, float], ...]:
        """Its corners in turn."""
        return (self.left, self.top), (self.right, self.top), (self.right, self.bottom), (self.left, self.bottom)


@dataclass(frozen=True)
class Polygon:
    """A region with any number of corners (x, y), in fractions of the picture's width and height.

    Raises:
        PromptError: fewer than three corners, or one outside of the picture.
    """

    points: Sequence[tuple[float, float]]

    def __post_init__(self) -> None:
        points = tuple(tuple(point) for point in self.points)
        object.__setattr__(self, "points", points)
        if len(points) < 3 or any(len(point) != 2 or not all(map(_is_fraction, point)) for point in points):
            raise PromptError(
                f"a polygon needs three corners (x, y) or more, fractions of the picture; got {self.points!r:.80}."
            )

    @property
    def corners(self) -> tuple[tuple[float, float], ...]:
        """Its corners in turn."""
        return tuple((x, y) for x, y in self.points)


Shape: TypeAlias = Box | Polygon
Mask: TypeAlias = ImageSource | Shape


def paint(shape: Shape, size: tuple[int, int]) -> Float[Tensor, "height width"]:
    """Draw a shape: 1 inside, 0 outside, in between where its edge crosses a pixel.

    Args:
        shape: what to draw.
        size: height and width, in pixels.
    """
    height, width = size[0] * _FINER, size[1] * _FINER
    canvas = Image.new("1", (width, height))
    # Pillow fills the pixels on the outline too, so right and lower edges would reach one too far.
    corners = [(x * width - 0.5, y * height - 0.5) for x, y in shape.corners]
    if isinstance(shape, Box):
        left, top, right, bottom = (*map(round, (shape.left * width, shape.top * height)), *_ends(shape, width, height))
        canvas.paste(1, (left, top, max(left + 1, right), max(top + 1, bottom)))
    else:
        ImageDraw.Draw(canvas).polygon(corners, fill=1)
    fine = torch.tensor(np.asarray(canvas, dtype=np.float32))
    return functional.avg_pool2d(fine[None, None], _FINER)[0, 0]


def soften(mask: Float[Tensor, "height width"], feather: float) -> Float[Tensor, "height width"]:
    """Blur the edges of a mask.

    Args:
        mask: 0 to 1.
        feather: the deviation of the Gaussian, as a fraction of the mask's shorter side; 0 leaves it as it is.
    """
    deviation = feather * min(mask.shape)
    reach = min(math.ceil(3 * deviation), min(mask.shape) - 1)
    if reach < 1:
        return mask
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / deviation) ** 2)
    kernel = kernel / kernel.sum()
    padded = functional.pad(mask[None, None], (reach,) * 4, mode="replicate")
    return functional.conv2d(functional.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])[0, 0]


def read_mask(mask: Mask, size: tuple[int, int] | None, feather: float = 0.0) -> Float[Tensor, "height width"]:
    """A mask of any kind as numbers from 0 to 1.

    Args:
        mask: a picture, an array or a shape.
        size: height and width of the picture to be made, at which shapes are drawn; `SIDE` squared if None.
        feather: see `soften`.

    Raises:
        ImageError: it cannot be read.
    """
    plane = paint(mask, size or (SIDE, SIDE)) if isinstance(mask, Box | Polygon) else load_mask(mask)
    return soften(plane, feather)


def _ends(box: Box, width: int, height: int) -> tuple[int, int]:
    return round(box.right * width), round(box.bottom * height)


def _is_fraction(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= cast(float, value) <= 1.0
