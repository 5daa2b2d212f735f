"""Pixels as CLIP reads them."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from imprompt.core.errors import CheckpointError, ImageError
from imprompt.encoders.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    OPENAI_MEAN,
    OPENAI_STD,
    Preprocessing,
    lost_by_crop,
    prepare_pixels,
)


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
    ours = prepare_pixels(noise(width, height), Preprocessing.from_config(processor.to_dict()))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("width", "height"), [(384, 384), (100, 100), (640, 480), (333, 999), (31, 47)])
@pytest.mark.parametrize(
    "processor",
    [
        SiglipImageProcessorPil(size={"height": 384, "width": 384}),
        SiglipImageProcessorPil(size={"height": 48, "width": 48}, resample=2),
        BitImageProcessorPil(
            size={"shortest_edge": 256}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
        ),
    ],
    ids=["siglip", "siglip2", "dinov2"],
)
def test_pixels_equal_those_of_other_processors(processor: Any, width: int, height: int) -> None:
    theirs = processor(noise(width, height), return_tensors="pt")["pixel_values"][0]
    ours = prepare_pixels(noise(width, height), Preprocessing.from_config(processor.to_dict()))
    assert torch.equal(ours, theirs)


def test_what_a_configuration_does_not_say_is_as_the_default_has_it() -> None:
    default = Preprocessing(shortest_edge=256, crop_size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD, resample=2)
    assert Preprocessing.from_config({}, default=default) == default
    assert Preprocessing.from_config({"crop_size": 112}, default=default) == replace(default, crop_size=112)
    assert Preprocessing.from_config({"size": 64}, default=default).shortest_edge == 64


def test_at_another_size() -> None:
    assert Preprocessing(shortest_edge=256, crop_size=224).at(32) == Preprocessing.openai(32)
    assert Preprocessing(shortest_edge=0, crop_size=384).at(32) == Preprocessing(shortest_edge=0, crop_size=32)


@pytest.mark.parametrize("size", [{"height": 3, "width": 4}, {"longest_edge": 3}, "224", {}, [224]])
def test_a_size_that_makes_no_squares(size: Any) -> None:
    if not size:
        assert Preprocessing.from_config({"size": size}) == Preprocessing()
        return
    with pytest.raises(CheckpointError, match="expected a number, a shortest_edge, or equal sides"):
        Preprocessing.from_config({"size": size})


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
        assert Preprocessing.from_folder(tmp_path, default=Preprocessing.openai(32)) == Preprocessing.openai(32)
    assert len(caplog.records) == 1
    assert "no preprocessor_config.json" in caplog.text


def test_a_folder_with_the_configuration_of_pictures_and_texts_together(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text('{"image_processor": {"size": {"height": 64, "width": 64}}}')
    assert Preprocessing.from_folder(tmp_path) == Preprocessing(shortest_edge=0, crop_size=64)


@pytest.mark.parametrize("content", ["", "[]", "3", '{"size": "big"}', '{"image_mean": [0.5]}'])
def test_a_folder_whose_configuration_cannot_be_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(CheckpointError, match="preprocessor_config.json' does not say how to prepare pictures"):
        Preprocessing.from_folder(tmp_path)


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


def test_an_encoder_in_a_pipeline_has_its_preprocessing_beside_it(tmp_path):
    encoder, beside = tmp_path / "image_encoder", tmp_path / "feature_extractor"
    encoder.mkdir()
    beside.mkdir()
    (beside / "preprocessor_config.json").write_text('{"size": 64, "crop_size": 64, "image_mean": [0.5, 0.5, 0.5]}')
    assert Preprocessing.from_folder(encoder).mean == (0.5, 0.5, 0.5)
    (encoder / "preprocessor_config.json").write_text('{"size": 32, "crop_size": 32}')
    assert Preprocessing.from_folder(encoder).crop_size == 32
    other = tmp_path / "another"
    other.mkdir()
    assert Preprocessing.from_folder(other) == Preprocessing.openai()
