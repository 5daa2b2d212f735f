"""An image prompt is checked when it is written down."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imprompt.core.errors import ImpromptError, PromptError
from imprompt.prompts import ImagePrompt

PICTURE = Image.new("RGB", (2, 2))


@pytest.mark.parametrize(
    "image", ["cat.png", Path("cat.png"), PICTURE, torch.zeros(3, 2, 2), np.zeros((2, 2, 3)), ["a.png", PICTURE]]
)
def test_everything_that_can_be_a_picture(image: Any) -> None:
    prompt = ImagePrompt(image)
    assert prompt.image is image
    assert len(prompt.images) == (2 if isinstance(image, list) else 1)


def test_the_defaults() -> None:
    prompt = ImagePrompt("cat.png")
    assert (prompt.weight, prompt.start, prompt.end, prompt.fit, prompt.adapter) == (1.0, 0.0, 1.0, "crop", 0)
    assert prompt.mask is None
    assert prompt.features is None


def test_features_stand_in_for_pictures() -> None:
    for shape in ((4,), (2, 4), (2, 5, 4)):
        assert ImagePrompt(features=torch.zeros(shape)).images == ()


def test_it_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ImagePrompt("cat.png").weight = 2.0  # pyright: ignore[reportAttributeAccessIssue]
    assert dataclasses.replace(ImagePrompt("cat.png"), weight=-0.5).weight == -0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "either image or features; got neither"),
        ({"image": "a.png", "features": torch.zeros(4)}, "got both"),
        ({"image": []}, "image is an empty list"),
        ({"image": 42}, r"image must be a path.*got 42 \(int\)"),
        ({"image": b"bytes"}, r"image must be a path.*\(bytes\)"),
        ({"image": ["a.png", None]}, r"image\[1\] must be a path.*got None"),
        ({"features": [1.0]}, "features must be a tensor"),
        ({"features": torch.zeros(1, 1, 1, 4)}, r"got \[1, 1, 1, 4\]"),
        ({"features": torch.zeros(0, 4)}, r"got \[0, 4\]"),
        ({"features": torch.tensor([math.nan])}, "features hold NaN"),
        ({"image": "a.png", "weight": math.nan}, "weight must be a finite number; got nan"),
        ({"image": "a.png", "weight": math.inf}, "weight must be a finite number; got inf"),
        ({"image": "a.png", "weight": "1"}, "weight must be a finite number; got '1'"),
        ({"image": "a.png", "weight": True}, "weight must be a finite number; got True"),
        ({"image": "a.png", "start": -0.1}, "0 <= start < end <= 1.*start=-0.1"),
        ({"image": "a.png", "end": 1.1}, "end=1.1"),
        ({"image": "a.png", "start": 0.5, "end": 0.5}, "start=0.5, end=0.5"),
        ({"image": "a.png", "start": None}, "start must be a finite number; got None"),
        ({"image": "a.png", "mask": 3}, "mask must be a path.*got 3"),
        ({"image": "a.png", "fit": "zoom"}, "fit must be one of 'crop', 'pad', 'stretch', 'tile'; got 'zoom'"),
        ({"image": "a.png", "adapter": -1}, "adapter must be an attached adapter's number.*got -1"),
        ({"image": "a.png", "adapter": 0.5}, "got 0.5"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_values_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        ImagePrompt(**values)
    assert isinstance(caught.value, ImpromptError)
    assert "\n" not in str(caught.value)
