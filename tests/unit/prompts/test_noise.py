"""Negatives of noise."""

import numpy as np
import pytest
import torch

from imprompt.core.errors import PromptError
from imprompt.prompts.noise import NOISES, Noise, noisy
from tests import tiny

PICTURE = tiny.picture(seed=3, size=(64, 48))
FLAT = tiny.picture(size=(4, 4)).resize((64, 48))


def pixels(image):
    return np.asarray(image, dtype=float)


@pytest.mark.parametrize("kind", NOISES)
def test_noise_is_the_same_every_time_and_grows_with_strength(kind):
    state = torch.get_rng_state()
    full = noisy(FLAT, Noise(kind=kind, seed=1))
    assert full.size == FLAT.size
    assert np.array_equal(full, noisy(FLAT, Noise(kind=kind, seed=1)))
    assert not np.array_equal(full, noisy(FLAT, Noise(kind=kind, seed=2)))
    assert np.array_equal(noisy(FLAT, Noise(kind=kind, strength=0.0)), FLAT)
    changes = [np.abs(pixels(noisy(FLAT, Noise(kind=kind, strength=s))) - pixels(FLAT)).mean() for s in (0.3, 1.0)]
    assert 0 < changes[0] < changes[1]
    assert torch.equal(torch.get_rng_state(), state)


def test_fade_and_dissolve_are_uniform_noise_at_full_strength():
    for kind in ("fade", "dissolve"):
        values = pixels(noisy(FLAT, Noise(kind=kind))) / 255
        assert values.mean() == pytest.approx(0.5, abs=0.02) and values.std() == pytest.approx(12**-0.5, abs=0.02)


def test_shuffle_keeps_the_colours_and_not_the_layout():
    mixed = noisy(FLAT, Noise(kind="shuffle"))
    assert set(map(tuple, np.asarray(mixed).reshape(-1, 3))) <= set(map(tuple, np.asarray(FLAT).reshape(-1, 3)))


def test_blur_takes_the_grain_away_and_large_pictures_are_scaled_down():
    assert pixels(noisy(PICTURE, Noise(blur=20.0))).std() < pixels(noisy(PICTURE, Noise())).std() / 2
    assert noisy(tiny.picture(size=(900, 450)), Noise()).size == (448, 224)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "snow"}, "noise must be one of 'fade'.*got 'snow'"),
        ({"strength": 1.5}, "strength of noise must lie from 0 to 1; got 1.5"),
        ({"strength": float("nan")}, "got nan"),
        ({"blur": -1.0}, "blur of noise must lie from 0 to 32"),
        ({"seed": -1}, "seed of noise"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_noise_that_makes_no_sense(values, message):
    with pytest.raises(PromptError, match=message):
        Noise(**values)
