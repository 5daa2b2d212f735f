"""Looks that the base has never seen: its pictures in two other colours, by the lightness of each pixel."""

from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

LIGHTNESS = (0.299, 0.587, 0.114)
"""Share of red, green and blue in how light a pixel is (ITU-R BT.601)."""


@dataclass(frozen=True)
class Look:
    """A print in two colours.

    Attributes:
        name: How files and folders call it.
        ink: Colour of what was black.
        paper: Colour of what was white.
    """

    name: str
    ink: tuple[int, int, int]
    paper: tuple[int, int, int]

    def __call__(self, images: UInt8[Tensor, "*batch 3 height width"]) -> UInt8[Tensor, "*batch 3 height width"]:
        """Pictures in this look."""
        weights, ink, paper = (torch.tensor(row).float()[:, None, None] for row in (LIGHTNESS, self.ink, self.paper))
        lightness = (images * weights).sum(dim=-3, keepdim=True) / 255
        return (ink + (paper - ink) * lightness).round().to(torch.uint8)


SEPIA = Look("sepia", ink=(64, 31, 8), paper=(255, 237, 199))
BLUEPRINT = Look("blueprint", ink=(255, 255, 255), paper=(20, 51, 140))
