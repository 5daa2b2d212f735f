"""What is drawn in an evaluation: one item a picture, in a fixed order, each with a seed of its own."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Arm = Literal["adapter", "text", "copy"]
"""The adapter itself; the text alone (what is reached without an image); the reference handed back (likeness 1)."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A subject, a reference and a prompt, before seeds and scales.

    Attributes:
        subject: what the intervals resample first.
        prompt_name: short name of the prompt among the subject's prompts.
        references: pictures the image prompt is made of; likeness is measured to the first.
        prompt: what the model is told beside it.
        caption: what text similarity is measured to.
        style: picture whose style is to be kept, where that is another than the subject's.
    """

    subject: str
    prompt_name: str
    references: tuple[Path, ...]
    prompt: str
    caption: str
    style: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Item:
    """One picture.

    Attributes:
        case: what it shows.
        arm: who made it.
        scale: weight of the image prompt; 0 where there is none.
        seed: of its noise.
    """

    case: Case
    arm: Arm
    scale: float
    seed: int

    @property
    def place(self) -> tuple[str, str, int]:
        """Where its values were measured: subject, prompt, seed."""
        return (self.case.subject, self.case.prompt_name, self.seed)

    @property
    def prompt(self) -> str:
        """What the model is told; the text alone is told the caption where the prompt is empty."""
        return self.case.prompt or (self.case.caption if self.arm == "text" else "")

    @property
    def key(self) -> str:
        """Its file's name: readable, and unique by a hash of everything that it depends on."""
        case = self.case
        words = f"{case.subject}-{case.prompt_name}-{self.arm}-{self.scale:g}-{self.seed}"
        everything = repr((*self.place, self.arm, self.scale, self.prompt, [path.name for path in case.references]))
        return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', words)[:80]}-{hashlib.sha256(everything.encode()).hexdigest()[:8]}"


def items_of(
    cases: Sequence[Case], *, scales: Sequence[float], num_seeds: int, seed: int, controls: bool
) -> list[Item]:
    """All pictures of an evaluation.

    At weight 0 the text alone stands for the adapter, where both would draw the same.

    Args:
        cases: what is shown.
        scales: weights of the image prompt.
        num_seeds: pictures of each case and scale.
        seed: of the first; the others follow.
        controls: also the text alone, and the reference handed back.
    """
    seeds = range(seed, seed + num_seeds)
    if controls and all(case.prompt or not case.caption for case in cases):  # both are told the same
        scales = [scale for scale in scales if scale] or scales
    items = [
        Item(case=case, arm="adapter", scale=scale, seed=each) for case in cases for scale in scales for each in seeds
    ]
    if controls:
        items += [Item(case=case, arm="text", scale=0.0, seed=each) for case in cases for each in seeds]
        items += [Item(case=case, arm="copy", scale=0.0, seed=seed) for case in cases]
    return items


def share_of(items: Sequence[Item], index: int, num_shares: int) -> list[Item]:
    """What one of several processes or machines draws: every so-and-so-many-th item."""
    return list(items[index::num_shares])
