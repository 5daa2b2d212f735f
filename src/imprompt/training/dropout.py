"""Dropping conditions in training, so that guidance works for the image, for the text and for both.

The published recipe drops the image alone, the text alone and both together, five times in a hundred each.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from imprompt.core.errors import ImpromptError
from imprompt.training.config import DropoutConfig
from imprompt.training.task import Draw


def draw_dropout(config: DropoutConfig, draw: Draw) -> tuple[Bool[Tensor, " rows"], Bool[Tensor, " rows"]]:
    """Whose image, and whose text, is dropped.

    What stands in for a dropped image is the adapter's own null image: zero features for those of pooled embeddings and
    of faces, features of zero pixels for those of hidden states.

    Args:
        config: How often.
        draw: Whose rows; one number a row of the global batch decides.

    Returns:
        For each row, whether its image and whether its text is dropped.
    """
    chance = draw.per_row("dropout", lambda generator, batch_size: torch.rand(batch_size, generator=generator))
    until_text = config.image + config.text
    both = (chance >= until_text) & (chance < until_text + config.both)
    only_image = chance < config.image
    only_text = (chance >= config.image) & (chance < until_text)
    return only_image | both, only_text | both


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
