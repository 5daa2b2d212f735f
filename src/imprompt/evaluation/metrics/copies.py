"""Is a picture made from a reference, or is it the reference? A similarity alone rewards the copy."""

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image

_SIDE, _KEPT = 32, 8


MAX_BITS = 8
"""Of the 64 bits of the perceptual hash so many may differ in a near-copy."""


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


def is_near_copy(bits: int) -> bool:
    """Whether a picture is a near-copy of its reference, by the bits of their hashes that differ."""
    return bits <= MAX_BITS


def _cosines() -> np.ndarray:
    """First rows of the orthonormal cosine transform (DCT-II)."""
    places = (torch.arange(_SIDE, dtype=torch.float64) + 0.5) * torch.pi / _SIDE
    rows = torch.arange(_KEPT, dtype=torch.float64)[:, None]
    basis = torch.cos(rows * places) * (2 / _SIDE) ** 0.5
    basis[0] /= 2**0.5
    return basis.numpy()
