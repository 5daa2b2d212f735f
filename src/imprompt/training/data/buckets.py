"""Aspect buckets: pictures of one shape in a batch, all shapes of about one area, planned from sizes alone.

A view is a crop of a picture that covers its bucket: number 0 is the centre, further ones are mirrored or shifted.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from imprompt.training.config import DataConfig
from imprompt.training.errors import DataError

Shape: TypeAlias = tuple[int, int]
"""Height and width."""

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels of the picture."""


@dataclass(frozen=True)
class Buckets:
    """Which shape every picture is brought to.

    Attributes:
        shapes: Height and width of each bucket, from the tallest to the widest.
        bucket_of: Number of each sample's bucket.
    """

    shapes: tuple[Shape, ...]
    bucket_of: Int[Tensor, " samples"]

    def shape_of(self, number: int) -> Shape:
        """The shape that a sample is brought to."""
        return self.shapes[int(self.bucket_of[number])]

    def counts(self) -> list[int]:
        """How many samples each bucket has."""
        return torch.bincount(self.bucket_of, minlength=len(self.shapes)).tolist()


def plan_buckets(sizes: Int[Tensor, "samples 2"], config: DataConfig) -> Buckets:
    """Give every picture the bucket whose proportions are nearest to its own.

    Args:
        sizes: Height and width of the pictures, as `Manifest.sizes`.
        config: Its resolution, bucket_step, max_aspect, and whether there are buckets at all.

    Returns:
        Buckets that at least one picture is in; none is larger than the resolution's square.

    Raises:
        DataError: The step leaves no shape at this resolution.
    """
    shapes = shapes_of(config)
    aspects = np.log([width / height for height, width in shapes])
    borders = (aspects[1:] + aspects[:-1]) / 2
    height, width = sizes.double().clamp(min=1).unbind(1)
    nearest = np.searchsorted(borders, torch.log(width / height).numpy())
    used, bucket_of = np.unique(nearest, return_inverse=True)
    return Buckets(tuple(shapes[number] for number in used), torch.from_numpy(bucket_of.astype(np.int64)))


def shapes_of(config: DataConfig) -> list[Shape]:
    """All shapes of a resolution, from the tallest to the widest.

    Sides are multiples of the step, and the area is as large as it can be without being above the resolution's square.

    Raises:
        DataError: There is none.
    """
    if not config.buckets:
        return [(config.resolution, config.resolution)]
    step, area = config.bucket_step, config.resolution**2
    sides = range(step, config.resolution + 1, step)
    if not sides:
        raise DataError(
            f"No bucket has sides that are multiples of {step} at the resolution {config.resolution}; give a "
            "data.bucket_step of at most the resolution."
        )
    wide = [(side, area // side // step * step) for side in sides]
    square = (sides[-1], sides[-1])
    fitting = [*((short, long) for short, long in wide if long <= config.max_aspect * short), square]
    widest = {long: short for short, long in fitting}  # of two shapes with one long side, the one with more area
    pairs = [(short, long) for long, short in widest.items()]
    return sorted({*pairs, *((long, short) for short, long in pairs)}, key=lambda shape: shape[1] / shape[0])


def crop_box(size: Shape, bucket: Shape, position: float = 0.5) -> Box:
    """The largest part of a picture that has a bucket's proportions.

    Args:
        size: Height and width of the picture.
        bucket: Height and width of the bucket.
        position: Where along the side that is cut: 0 is left or top, 0.5 the middle, 1 right or bottom.
    """
    scale = _scale(size, bucket)
    height, width = min(bucket[0] / scale, size[0]), min(bucket[1] / scale, size[1])
    top, left = (size[0] - height) * position, (size[1] - width) * position
    return left, top, min(left + width, size[1]), min(top + height, size[0])


def view_position(view: int, *, mirror: bool) -> tuple[float, bool]:
    """Where the crop of a view lies, and whether it is mirrored.

    Args:
        view: 0 is the centre; with `mirror`, every odd view mirrors the one before it.
        mirror: Whether views may be mirrored.
    """
    shift, mirrored = divmod(view, 2) if mirror else (view, 0)
    position = (0.5, 0.0, 1.0)[shift] if shift < 3 else _radical_inverse(shift - 1)
    return position, bool(mirrored)


def view_of(
    image: Image.Image, bucket: Shape, view: int = 0, *, mirror: bool = False
) -> tuple[UInt8[Tensor, "3 height width"], Int[Tensor, "6"]]:
    """Bring a picture to its bucket's shape.

    Args:
        image: Upright, RGB.
        bucket: Height and width.
        view: Which crop, as `view_position` tells.
        mirror: Whether views may be mirrored.

    Returns:
        The pixels, and what `told_of` says of them.
    """
    size = (image.height, image.width)
    position, mirrored = view_position(view, mirror=mirror)
    upright = ImageOps.mirror(image) if mirrored else image
    box = crop_box(size, bucket, position)
    scaled = upright.resize((bucket[1], bucket[0]), Image.Resampling.LANCZOS, box=box)
    pixels = torch.from_numpy(np.array(scaled.convert("RGB"))).permute(2, 0, 1).contiguous()
    return pixels, told_of(size, bucket, view, mirror=mirror)


def told_of(size: Shape, bucket: Shape, view: int = 0, *, mirror: bool = False) -> Int[Tensor, "6"]:
    """What Stable Diffusion XL is told of a view (arXiv 2307.01952, section 2.2), of sizes alone.

    Returns:
        Height and width of the original, top and left of the crop once the picture is scaled, height and width of the
        target.
    """
    position, _ = view_position(view, mirror=mirror)
    left, top, _, _ = crop_box(size, bucket, position)
    scale = _scale(size, bucket)
    return torch.tensor([*size, round(top * scale), round(left * scale), *bucket])


def upscaling(sizes: Int[Tensor, "samples 2"], buckets: Buckets) -> np.ndarray:
    """By how much each picture is scaled to cover its bucket; above 1 it has fewer pixels than its view.

    Returns:
        float64 [samples].
    """
    targets = torch.tensor(buckets.shapes)[buckets.bucket_of]
    return (targets / sizes.double().clamp(min=1)).amax(1).numpy()


def _scale(size: Shape, bucket: Shape) -> float:
    return max(bucket[0] / size[0], bucket[1] / size[1])


def _radical_inverse(number: int) -> float:
    """0.5, 0.25, 0.75, 0.125, ...: always the middle of a gap that is still wide."""
    bits = f"{number:b}"[::-1]
    return sum(2.0 ** -(place + 1) for place, bit in enumerate(bits) if bit == "1")
