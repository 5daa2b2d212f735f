"""The figures of an autoencoder, of errors that are known."""

from itertools import product
from math import log10

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor, nn

from imprompt.emoji.styles import STYLES
from imprompt.recipes.emoji.autoencoder import build, reconstruction_quality
from imprompt.recipes.emoji.dataset import EmojiPictures
from imprompt.recipes.emoji.sources import Subject
from imprompt.recipes.emoji.split import split_of

SIDE = 8


class Scaled(nn.Module):
    """A decoder that gives every value back times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, latents: Tensor) -> Tensor:
        return latents * self.factor


def scaling(factor: float) -> AutoencoderTiny:
    model = build()
    model.encoder, model.decoder = nn.Identity(), Scaled(factor)
    return model


def pictures_of(levels: dict[str, list[int]]) -> EmojiPictures:
    """Pictures of one level each, in splits as wanted."""
    subjects = tuple(Subject(f"{number:X}", f"thing {number}", (), (), "things") for number in range(300))
    places: dict[str, list[tuple[int, int]]] = {}
    for subject, style in product(range(300), range(len(STYLES))):
        places.setdefault(split_of(subjects[subject].hexcode, STYLES[style].name), []).append((subject, style))
    chosen = [(level, *places[split].pop()) for split, wanted in levels.items() for level in wanted]
    values, subject_indices, styles = (np.array(column) for column in zip(*chosen, strict=True))
    images = np.broadcast_to(values.astype(np.uint8)[:, None, None, None], (len(chosen), SIDE, SIDE, 3)).copy()
    return EmojiPictures(images, styles.astype(np.int64), subject_indices.astype(np.int64), subjects)


def test_errors_are_those_of_held_out_pictures_in_parts_of_the_range() -> None:
    """White is 1 and comes back as 0.8: an error of 0.1 of the range, 20 dB. Grey 153 is 0.2: an error of 0.02."""
    pictures = pictures_of({"train": [0, 0, 0], "held_out_subject": [255], "held_out_pair": [153]})
    found = reconstruction_quality(scaling(0.8), pictures)
    assert found["mean_absolute_error"] == pytest.approx((0.1 + 0.02) / 2, rel=1e-5)
    assert found["psnr"] == pytest.approx((20 - 20 * log10(0.02)) / 2, rel=1e-5)  # the mean of each picture's


def test_what_comes_back_whole_is_at_the_ceiling_and_what_is_beyond_white_is_white() -> None:
    pictures = pictures_of({"held_out_subject": [255, 0]})
    for factor in (1.0, 3.0):
        assert reconstruction_quality(scaling(factor), pictures) == {
            "psnr": pytest.approx(100),
            "mean_absolute_error": 0,
        }
