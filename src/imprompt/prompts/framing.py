"""What an encoder gets to see of a reference: a crop around a point, several tiles, or the whole with its details."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from imprompt.prompts.masks import Box

_MAX_TILES = 4
_NEARLY_SQUARE = 4 / 3


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A square part of a reference, and the part of the new picture in which it acts."""

    image: Image.Image
    place: Box


def crop_at(image: Image.Image, focus: tuple[float, float]) -> Image.Image:
    """The largest square of a picture that is as near to being centred at a point as its borders allow.

    Args:
        image: any picture.
        focus: the point, in fractions of width and height.
    """
    width, height = image.size
    side = min(width, height)
    left, top = (
        min(max(round(at * extent - side / 2), 0), extent - side)
        for at, extent in zip(focus, (width, height), strict=True)
    )
    return image.crop((left, top, left + side, top + side))


def tiles_of(image: Image.Image) -> list[Tile]:
    """Squares that cover a picture: four of one that is nearly square, else up to four along the longer side.

    Squares along a side overlap where its length is no whole number of them; each acts in its share of the side.
    """
    width, height = image.size
    if max(width, height) <= _NEARLY_SQUARE * min(width, height):
        return _quarters(image)
    side, long = min(width, height), max(width, height)
    count = min(_MAX_TILES, math.ceil(long / side))
    tiles: list[Tile] = []
    for number in range(count):
        # Evenly spread; a picture longer than four squares loses what lies between them.
        start = round(number * (long - side) / (count - 1))
        share = (number / count, (number + 1) / count)
        if width > height:
            tiles.append(
                Tile(image=image.crop((start, 0, start + side, side)), place=Box(share[0], 0.0, share[1], 1.0))
            )
        else:
            tiles.append(
                Tile(image=image.crop((0, start, side, start + side)), place=Box(0.0, share[0], 1.0, share[1]))
            )
    return tiles


def _quarters(image: Image.Image) -> list[Tile]:
    square = crop_at(image, (0.5, 0.5))
    return [
        Tile(image=part, place=Box(column / 2, row / 2, (column + 1) / 2, (row + 1) / 2))
        for (row, column), part in zip(((0, 0), (0, 1), (1, 0), (1, 1)), grid_of(square, 2), strict=True)
    ]


def grid_of(square: Image.Image, count: int) -> list[Image.Image]:
    """`count` times `count` parts of a square picture, row by row."""
    edges = [square.width * number // count for number in range(count + 1)]
    return [
        square.crop(
            (edges[column], edges[row], max(edges[column] + 1, edges[column + 1]), max(edges[row] + 1, edges[row + 1]))
        )
        for row in range(count)
        for column in range(count)
    ]


def merge_details(
    whole: Float[Tensor, "*length width"], parts: Float[Tensor, "parts *length width"], amount: float
) -> Float[Tensor, "*length width"]:
    """Features of a picture that knows its details: of the whole, mixed with those of a grid of its parts.

    A hidden layer's patches are put together to one large grid and averaged down to the size of one picture's; what
    stands before the patches (a class token, registers) is averaged. Pooled features have no places and are averaged.

    Args:
        whole: of the whole picture.
        parts: of the parts, row by row; a square number of them.
        amount: 0 for the whole alone, 1 for the parts alone.
    """
    if whole.ndim == 1:
        return whole + amount * (parts.mean(0) - whole)
    side, count = math.isqrt(whole.shape[0]), math.isqrt(len(parts))
    first = whole.shape[0] - side * side
    patches = parts[:, first:].reshape(count, count, side, side, -1)
    large = patches.permute(4, 0, 2, 1, 3).reshape(1, -1, count * side, count * side)
    small = functional.adaptive_avg_pool2d(large.float(), side)[0].flatten(1).T.to(whole.dtype)
    merged = whole.clone()
    merged[:first] += amount * (parts[:, :first].mean(0) - whole[:first])
    merged[first:] += amount * (small - whole[first:])
    return merged
