"""Is a picture made from a reference, or is it the reference? A similarity alone rewards the copy."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

_SIDE, _KEPT = 32, 8


@dataclass(frozen=True)
class CopyLimits:
    """From where on a picture counts as a near-copy; both must hold.

    Attributes:
        max_bits: of 64 bits of the perceptual hash may differ.
        min_patch_cosine: mean over patches of the best match among the reference's patches.
    """

    max_bits: int = 8
    min_patch_cosine: float = 0.9


def perceptual_hash(image: Image.Image) -> Bool[np.ndarray, "64"]:
    """The 64 lowest frequencies of the picture in grey, 1 where above their median (DCT pHash).

    Survives scaling, compression and small changes of brightness; a mirrored or much cropped copy escapes.
    """
    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    basis = _cosines()
    frequencies = (basis @ grey @ basis.T).flatten()
    return frequencies > np.median(frequencies[1:])


def differing_bits(first: Image.Image, second: Image.Image) -> int:
    """Bits of the perceptual hashes that differ: 0 for the same picture, about 32 for unrelated ones."""
    return int((perceptual_hash(first) != perceptual_hash(second)).sum())


def patch_match(picture: Float[Tensor, "tokens width"], reference: Float[Tensor, "others width"]) -> float:
    """Mean over the picture's patches of the cosine to the nearest patch of the reference."""
    first, second = (functional.normalize(part.double(), dim=-1) for part in (picture, reference))
    return (first @ second.T).amax(1).mean().item()


def is_near_copy(bits: int, patch_cosine: float | None, limits: CopyLimits | None = None) -> bool:
    """Whether a picture is a near-copy of its reference; without patch features the hash decides alone."""
    limits = limits or CopyLimits()
    alike = patch_cosine is None or patch_cosine >= limits.min_patch_cosine
    return bits <= limits.max_bits and alike


def _cosines() -> np.ndarray:
    """First rows of the orthonormal cosine transform (DCT-II)."""
    places = (torch.arange(_SIDE, dtype=torch.float64) + 0.5) * torch.pi / _SIDE
    rows = torch.arange(_KEPT, dtype=torch.float64)[:, None]
    basis = torch.cos(rows * places) * (2 / _SIDE) ** 0.5
    basis[0] /= 2**0.5
    return basis.numpy()
