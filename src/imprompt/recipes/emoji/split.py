"""Which pictures are never trained on, decided by a hash so that the choice survives any growth of the data."""

import hashlib
from typing import Literal

Split = Literal["train", "held_out_subject", "held_out_pair"]

SEED = 2
SUBJECT_FRACTION = 0.05
PAIR_FRACTION = 0.10


def split_of(hexcode: str, style: str, seed: int = SEED) -> Split:
    """Part of the data that a picture belongs to.

    Args:
        hexcode: Code points of the subject; five subjects in a hundred are held out in all styles.
        style: Name of the style; of the other (subject, style) pairs one in ten is held out.
        seed: Another seed gives another choice.
    """
    if _fraction(f"{seed}/{hexcode}") < SUBJECT_FRACTION:
        return "held_out_subject"
    if _fraction(f"{seed}/{hexcode}/{style}") < PAIR_FRACTION:
        return "held_out_pair"
    return "train"


def _fraction(key: str) -> float:
    """Number in [0, 1) that depends on nothing but the key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
