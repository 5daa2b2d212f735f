"""What the embedded model's ControlNet and T2I-Adapter are steered with: edges, and a coarse grid of colours."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from imprompt.core.images import ImageSource, fit_square, load_image

SIZE = 64
"""Side of the embedded model's pictures in pixels."""

GRID_CELLS = 4
"""Cells along each side of a colour grid."""


def edges(picture: ImageSource) -> Image.Image:
    """White lines on black where a picture's colours change: what the embedded ControlNet follows.

    Args:
        picture: Anything `imprompt.core.images.load_image` reads; the middle square of it is used.

    Raises:
        ImageError: The picture cannot be read.
    """
    return _as_image(edge_maps(_as_bytes(picture)))


def colour_grid(picture: ImageSource) -> Image.Image:
    """The mean colours of 4 x 4 equal parts of a picture: what the embedded T2I-Adapter follows.

    Args:
        picture: Anything `imprompt.core.images.load_image` reads; the middle square of it is used.

    Raises:
        ImageError: The picture cannot be read.
    """
    return _as_image(colour_cells(_as_bytes(picture)))


def edge_maps(images: UInt8[Tensor, "pictures 3 height width"]) -> UInt8[Tensor, "pictures 1 height width"]:
    """How strongly the most changing channel changes from the pixel before to the pixel after, in either direction."""
    framed = functional.pad(images.float(), (1, 1, 1, 1), mode="replicate")
    across = framed[..., 1:-1, 2:] - framed[..., 1:-1, :-2]
    down = framed[..., 2:, 1:-1] - framed[..., :-2, 1:-1]
    return torch.maximum(across.abs(), down.abs()).amax(dim=1, keepdim=True).round().to(torch.uint8)


def colour_cells(
    images: UInt8[Tensor, "pictures 3 height width"],
) -> UInt8[Tensor, "pictures 3 4 4"]:
    """Mean colour of each cell."""
    return functional.adaptive_avg_pool2d(images.float(), GRID_CELLS).round().to(torch.uint8)


def as_control(condition: UInt8[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch 3 64 64"]:
    """Edge maps or colour cells as the networks take them: 64 x 64 pixels, three channels, from 0 to 1."""
    enlarged = functional.interpolate(condition.float() / 255, size=SIZE, mode="nearest")
    return enlarged.expand(-1, 3, -1, -1)


def _as_bytes(picture: ImageSource) -> UInt8[Tensor, "1 3 64 64"]:
    square = fit_square(load_image(picture), "crop").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None]


def _as_image(condition: UInt8[Tensor, "1 channels rows columns"]) -> Image.Image:
    pixels = as_control(condition)[0].mul(255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
