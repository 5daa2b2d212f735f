"""Pixels as CLIP reads them."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from imprompt.core.errors import ImageError
from imprompt.encoders.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocessing, lost_by_crop, prepare_pixels


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("width", "height"), [(224, 224), (512, 512), (100, 100), (640, 480), (480, 641), (333, 999), (225, 224), (31, 47)]
)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 64, "width": 64}},
        {"size": {"height": 48, "width": 48}, "do_center_crop": False},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7], "resample": 2},
        {"do_normalize": False, "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    ],
    ids=["openai", "256-224", "small", "square", "values", "plain"],
)
def test_cropped_pixels_equal_those_of_transformers(config: dict[str, Any], width: int, height: int) -> None:
    processor = CLIPImageProcessorPil(**config)
    theirs = processor(noise(width, height), return_tensors="pt")["pixel_values"][0]
    settings = processor.to_dict()
    if not settings["do_center_crop"]:
        settings["crop_size"] = None
    ours = prepare_pixels(noise(width, height), Preprocessing.from_config(settings))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("config", [{}, {"size": 224, "crop_size": 224}, {"size": {"shortest_edge": 224}}])
def test_configurations_of_any_age_mean_the_same(config: dict[str, Any]) -> None:
    assert Preprocessing.from_config(config) == Preprocessing() == Preprocessing.openai()


def test_a_filter_numbered_zero_is_kept() -> None:
    assert Preprocessing.from_config({"resample": 0}).resample == 0


def test_a_folder_with_a_configuration(tmp_path: Path) -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    processor.save_pretrained(tmp_path)
    assert Preprocessing.from_folder(tmp_path) == Preprocessing.openai(336)


def test_a_folder_without_one_is_openais_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "imprompt"):
        assert Preprocessing.from_folder(tmp_path, image_size=32) == Preprocessing.openai(32)
    assert len(caplog.records) == 1
    assert "no preprocessor_config.json" in caplog.text


def test_padding_shows_the_whole_picture_on_white() -> None:
    pixels = prepare_pixels(Image.new("RGB", (64, 32), "black"), Preprocessing.openai(8), "pad")
    white = (1 - torch.tensor(OPENAI_MEAN)) / torch.tensor(OPENAI_STD)
    black = -torch.tensor(OPENAI_MEAN) / torch.tensor(OPENAI_STD)
    torch.testing.assert_close(pixels[:, [0, 1, 6, 7]], white[:, None, None].expand(3, 4, 8))
    torch.testing.assert_close(pixels[:, 2:6], black[:, None, None].expand(3, 4, 8))


def test_stretching_shows_the_whole_picture() -> None:
    halves = Image.new("RGB", (64, 16), "black")
    halves.paste((255, 255, 255), (32, 0, 64, 16))
    pixels = prepare_pixels(halves, Preprocessing.openai(16), "stretch")
    assert (pixels[:, :, :6] < 0).all()
    assert (pixels[:, :, 10:] > 0).all()


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_square_pictures_do_not_depend_on_the_fit(fit: Any) -> None:
    settings = Preprocessing.openai(32)
    assert torch.equal(prepare_pixels(noise(50, 50), settings, fit), prepare_pixels(noise(50, 50), settings))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(30_000, 1), (1, 30_000)])
def test_a_thin_strip_needs_little_memory(fit: Any, size: tuple[int, int]) -> None:
    assert prepare_pixels(Image.new("RGB", size), Preprocessing(), fit).shape == (3, 224, 224)


def test_what_a_crop_loses() -> None:
    assert lost_by_crop((100, 100)) == 0
    assert lost_by_crop((200, 100)) == lost_by_crop((100, 200)) == 0.5


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_fit() -> None:
    with pytest.raises(ImageError, match="got 'zoom'"):
        prepare_pixels(noise(4, 4), Preprocessing(), "zoom")  # pyright: ignore[reportArgumentType]
