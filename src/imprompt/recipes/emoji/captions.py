"""The words that go with a picture: what is drawn, with or without how it is drawn."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imprompt.emoji.styles import STYLES, Style
from imprompt.recipes.emoji.dataset import EmojiPictures
from imprompt.recipes.emoji.sources import Subject

STYLED = ("{name}, {word} style emoji", "{word} style {name}", "{name} in {word} style")
PLAIN = ("{name}", "a {name}", "{name} emoji")
NUM_TAGS = 3
"""Search words of a subject that captions use beside its label."""


def full_caption(subject: Subject, style: Style) -> str:
    """The caption that says everything: "red apple, noto style emoji"."""
    return STYLED[0].format(name=subject.label, word=style.word)


def names_of(subject: Subject) -> tuple[str, ...]:
    """Label and first search words, without those that the label already holds."""
    words = set(subject.label.lower().split())
    tags = [tag for tag in subject.tags if tag.lower() not in words and tag.lower() != subject.label.lower()]
    return (subject.label, *tags[:NUM_TAGS])


@dataclass(frozen=True)
class CaptionTable:
    """Every caption of every picture, as rows of one list of texts.

    A picture has `num_names x num_templates` captions; missing names repeat the label.

    Attributes:
        texts: All different captions; the empty one is number 0.
        styled: int64 [num_pictures, num_names, num_styled_templates], numbers of texts.
        plain: int64 [num_pictures, num_names, num_plain_templates], numbers of texts.
    """

    texts: tuple[str, ...]
    styled: Int[Tensor, "pictures names styled"]
    plain: Int[Tensor, "pictures names plain"]

    def sample(
        self,
        pictures: Int[Tensor, " batch"],
        chance: Float[Tensor, "batch 4"],
        *,
        label_probability: float = 0.7,
        styled_probability: float = 0.7,
    ) -> tuple[Int[Tensor, " batch"], Bool[Tensor, " batch"]]:
        """One caption for each picture.

        Args:
            pictures: Numbers of the pictures.
            chance: Uniform numbers that decide.
            label_probability: How often the label names the subject; else one of its search words.
            styled_probability: How often the caption names the style.

        Returns:
            Numbers of the texts, and which of them name the style.
        """
        num_tags = self.styled.shape[1] - 1
        tags = 1 + (chance[:, 1] * num_tags).long()
        names = torch.where(chance[:, 0] < label_probability, 0, tags.clamp(max=num_tags))
        styled = self.styled[pictures, names, (chance[:, 2] * self.styled.shape[2]).long()]
        plain = self.plain[pictures, names, (chance[:, 2] * self.plain.shape[2]).long()]
        names_style = chance[:, 3] < styled_probability
        return torch.where(names_style, styled, plain), names_style


def caption_table(
    pictures: EmojiPictures, styled: tuple[str, ...] = STYLED, plain: tuple[str, ...] = PLAIN
) -> CaptionTable:
    """Captions of all pictures, made of the given templates."""
    numbers: dict[str, int] = {"": 0}

    def number(template: str, name: str, word: str) -> int:
        return numbers.setdefault(template.format(name=name, word=word), len(numbers))

    styled_rows, plain_rows = [], []
    for index in range(len(pictures.images)):
        word = STYLES[pictures.styles[index]].word
        names = names_of(pictures.subject_of(index))
        names = (*names, *(names[0],) * (NUM_TAGS + 1 - len(names)))
        styled_rows.append([[number(template, name, word) for template in styled] for name in names])
        plain_rows.append([[number(template, name, word) for template in plain] for name in names])
    return CaptionTable(tuple(numbers), torch.tensor(styled_rows), torch.tensor(plain_rows))
