"""What is drawn from: held-out pictures, and for each the name of another subject."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from imprompt.emoji.styles import STYLES
from imprompt.recipes.emoji.dataset import EmojiPictures

HeldOut = Literal["held_out_subject", "held_out_pair"]
SPLITS: tuple[HeldOut, ...] = ("held_out_subject", "held_out_pair")


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """A picture that no part of the model was trained on.

    Attributes:
        number: Of the picture in the data set.
        split: Whether the whole subject is held out, or this subject in this style.
        pixels: The picture.
        subject: What it shows.
        style: How, a number of `STYLES`.
        other: Name of a training subject, for the text that asks for something else.
    """

    number: int
    split: HeldOut
    pixels: UInt8[np.ndarray, "height width 3"]
    subject: str
    style: int
    other: str

    @property
    def image(self) -> Image.Image:
        """The picture, as an image prompt takes it."""
        return Image.fromarray(self.pixels)

    @property
    def name(self) -> str:
        """Subject and style in words."""
        return f"{self.subject}, {STYLES[self.style].word}"


def references(pictures: EmojiPictures, *, limit: int | None = None, seed: int = 0) -> list[Reference]:
    """One picture of every held-out subject, and of every subject of which a pair is held out as many at the most.

    Args:
        pictures: All of them.
        limit: Most references of each split; None takes as many pairs as there are held-out subjects.
        seed: Decides which picture of a subject, and which other name.
    """
    random = np.random.default_rng(seed)
    chosen: dict[HeldOut, np.ndarray] = {
        split: one_of_each_subject(pictures, pictures.split(split), random) for split in SPLITS
    }
    most = len(chosen["held_out_subject"]) if limit is None else limit
    return described(pictures, {split: members[:most] for split, members in chosen.items()}, random)


def described(
    pictures: EmojiPictures, chosen: Mapping[HeldOut, np.ndarray], random: np.random.Generator
) -> list[Reference]:
    """References, each with the name of another subject; no name comes twice before all have come.

    Args:
        pictures: All of them.
        chosen: Numbers of those that are references, by split.
        random: Decides which other name.
    """
    labels = sorted({pictures.subject_of(index).label for index in pictures.split("train").tolist()})
    others = cycle(random.permutation(labels).tolist())
    return [
        Reference(
            number=index,
            split=split,
            pixels=pictures.images[index],
            subject=pictures.subject_of(index).label,
            style=int(pictures.styles[index]),
            other=next(label for label in others if label != pictures.subject_of(index).label),
        )
        for split, members in chosen.items()
        for index in members.tolist()
    ]


def one_of_each_subject(pictures: EmojiPictures, members: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A picture of every subject among those numbered, in random order, so that any first part is a fair one."""
    members = random.permutation(members)
    _, first = np.unique(pictures.subject_indices[members], return_index=True)
    return members[np.sort(first)]
