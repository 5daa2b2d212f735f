"""Dropping conditions in training, so that guidance works for the image, for the text and for both.

The published recipe drops the image alone, the text alone and both together, five times in a hundred each.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from imprompt.core.errors import ImpromptError


@dataclass(frozen=True)
class ConditionDropout:
    """Probabilities of the three ways to drop.

    Attributes:
        image: Only the image is dropped.
        text: Only the text is dropped.
        both: Both are.
    """

    image: float = 0.05
    text: float = 0.05
    both: float = 0.05

    def __post_init__(self) -> None:
        """Refuse probabilities that are none.

        Raises:
            ImpromptError: One is negative, or their sum exceeds 1.
        """
        if min(self.image, self.text, self.both) < 0 or self.image + self.text + self.both > 1:
            raise ImpromptError(f"dropout wants probabilities that sum to at most 1; got {self}")

    def draw(self, num_rows: int, generator: torch.Generator) -> tuple[Bool[Tensor, " batch"], Bool[Tensor, " batch"]]:
        """Draw for each row whether its image and whether its text is dropped."""
        chance = torch.rand(num_rows, generator=generator)
        only_image = chance < self.image
        only_text = (chance >= self.image) & (chance < self.image + self.text)
        both = (chance >= self.image + self.text) & (chance < self.image + self.text + self.both)
        return only_image | both, only_text | both
