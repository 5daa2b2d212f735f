"""Dropping conditions in training, so that guidance works for the image, for the text and for both.

The published recipe drops the image alone, the text alone and both together, five times in a hundred each.
"""

import torch
from jaxtyping import Bool
from torch import Tensor

from imprompt.training.config import DropoutConfig
from imprompt.training.loop.task import Draw


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
