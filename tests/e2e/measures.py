"""How well pictures follow edges, colours, a look or references, by plain arithmetic and the embedded encoder.

Each figure is logged as well, so that `pytest tests/e2e/test_structure.py --log-cli-level=INFO` prints them.
"""

import logging

import numpy as np
import torch

from imprompt.recipes.emoji.evidence.measures import colour_errors, edge_correlations, likenesses

logger = logging.getLogger(__name__)


def told(name, value):
    """A figure, which is logged."""
    logger.info("%s: %.3f", name, value)
    return value


def as_tensor(pictures):
    """PIL pictures as bytes [pictures, 3, height, width]."""
    return torch.stack([torch.from_numpy(np.array(picture.convert("RGB"))) for picture in pictures]).permute(0, 3, 1, 2)


def edge_agreement(pictures, edges):
    """Mean correlation of the edges of pictures with those they should have; at most 1."""
    return told("edge agreement", edge_correlations(pictures, edges).mean().item())


def colour_error(pictures, grids):
    """Mean distance of the cells' colours from those they should have, of a range of 1."""
    return told("colour error", colour_errors(pictures, grids).mean().item())


def distance_from_look(pictures, look):
    """Mean distance of pixels from the line between a look's ink and its paper, of a range of 1 for each channel."""
    ink, paper = torch.tensor(look.ink) / 255, torch.tensor(look.paper) / 255
    pixels = pictures.permute(0, 2, 3, 1).reshape(-1, 3) / 255 - ink
    share = (pixels @ (paper - ink) / (paper - ink).square().sum()).clamp(0, 1)
    return told("distance from the look", (pixels - share[:, None] * (paper - ink)).norm(dim=1).mean().item())


def likeness(encoder, pictures, references):
    """How much more alike pictures are to their own reference than to the others, by the encoder's embeddings.

    Embeddings are centred, so that what all pictures share (a look, a frame) counts for nothing; 0 is chance.
    """
    ours, theirs = _embed(encoder, pictures), _embed(encoder, references)
    return told("likeness", likenesses(ours, theirs).mean().item())


@torch.no_grad()
def _embed(encoder, pictures):
    embeds = encoder(pictures / 127.5 - 1).image_embeds
    return embeds - embeds.mean(dim=0)
