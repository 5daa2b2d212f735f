"""A vision encoder gives what its model gives, and says what it is."""

import copy
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from imprompt.core.errors import CheckpointError, DownloadError, EncoderMismatch, ImageError
from imprompt.encoders.base import ImageEncoder
from imprompt.encoders.preprocess import Preprocessing
from imprompt.encoders.vision import VisionEncoder

Tower = CLIPVisionModelWithProjection


def picture(width: int = 32, height: int = 32, colour: str = "red") -> Image.Image:
    return Image.new("RGB", (width, height), colour)


@pytest.fixture
def folder(tower: Tower, tmp_path: Path) -> Path:
    tower.save_pretrained(tmp_path)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(tmp_path)
    return tmp_path


def test_it_is_an_image_encoder(tower: Tower) -> None:
    assert isinstance(VisionEncoder(tower), ImageEncoder)


def test_features_are_the_models_own(tower: Tower) -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    encoder = VisionEncoder(tower, processor)
    pictures = [picture(50, 40, "red"), picture(32, 32, "blue")]
    with torch.no_grad():
        output = tower(**processor(pictures, return_tensors="pt"), output_hidden_states=True)
    assert torch.equal(encoder.encode(pictures, layer="image_embeds"), output.image_embeds)
    for index in range(-4, 4):
        features = encoder.encode(pictures, layer="hidden_states", index=index)
        assert torch.equal(features, output.hidden_states[index])
    assert not features.requires_grad


def test_no_picture_is_zero_normalised_pixels(tower: Tower) -> None:
    encoder = VisionEncoder(tower)
    with torch.no_grad():
        output = tower(pixel_values=torch.zeros(1, 3, 32, 32), output_hidden_states=True)
    assert torch.equal(encoder.encode_null(layer="image_embeds"), output.image_embeds)
    assert torch.equal(encoder.encode_null(layer="hidden_states", index=-2), output.hidden_states[-2])


def test_many_pictures_are_encoded_in_parts(tower: Tower) -> None:
    encoder = VisionEncoder(tower)
    pictures = [picture(32, 32, f"rgb({5 * n}, 0, 0)") for n in range(35)]
    features = encoder.encode(pictures, layer="image_embeds")
    torch.testing.assert_close(features[34:], encoder.encode(pictures[34:], layer="image_embeds"))


def test_the_spec_says_what_it_is(tower: Tower) -> None:
    spec = VisionEncoder(tower).spec
    assert (spec.width, spec.projection_dim, spec.num_layers, spec.num_tokens, spec.image_size) == (16, 12, 3, 17, 32)
    assert spec.name == "CLIP vision 16/12"
    assert (spec.feature_width("image_embeds"), spec.feature_width("hidden_states")) == (12, 16)
    assert repr(VisionEncoder(tower)).startswith("VisionEncoder(CLIP vision 16/12: 32 px")


def test_the_fingerprint_follows_weights_dtype_and_preprocessing(tower: Tower) -> None:
    same, moved, half = copy.deepcopy(tower), copy.deepcopy(tower), copy.deepcopy(tower).half()
    with torch.no_grad():
        moved.visual_projection.weight += 1e-3
    prints = [VisionEncoder(model).spec.fingerprint for model in (tower, same, moved, half)]
    prints.append(VisionEncoder(tower, Preprocessing(32, 32, mean=(0.5, 0.5, 0.5))).spec.fingerprint)
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


def test_weights_that_live_elsewhere_share_a_fingerprint_with_nobody(tower: Tower) -> None:
    meta = tower.to("meta")
    assert VisionEncoder(meta).spec.fingerprint != VisionEncoder(meta).spec.fingerprint


def test_half_precision_in_half_precision_out(tower: Tower) -> None:
    assert VisionEncoder(tower.bfloat16()).encode([picture()], layer="image_embeds").dtype == torch.bfloat16


def test_a_processor_of_another_size_gives_way(tower: Tower) -> None:
    encoder = VisionEncoder(tower, CLIPImageProcessorPil(image_mean=[0.5] * 3))
    assert encoder.preprocessing == Preprocessing(32, 32, mean=(0.5, 0.5, 0.5))


def test_a_crop_is_reported_once_a_picture(tower: Tower, caplog: pytest.LogCaptureFixture) -> None:
    encoder = VisionEncoder(tower)
    for _ in range(2):
        encoder.encode([picture(40, 32)], layer="image_embeds")
    assert [record.getMessage() for record in caplog.records] == [
        "a reference of 40 x 32 pixels is not square: 20 % of it, left and right, is cut away; "
        "fit='pad' or fit='stretch' keeps it"
    ]
    encoder.encode([picture(32, 64)], layer="image_embeds")
    assert "top and bottom" in caplog.records[-1].getMessage()


def test_what_loses_nothing_is_not_reported(tower: Tower, caplog: pytest.LogCaptureFixture) -> None:
    encoder = VisionEncoder(tower)
    encoder.encode([picture(400, 398)], layer="image_embeds")
    encoder.encode([picture(40, 32)], layer="image_embeds", fit="pad")
    encoder.encode([picture(40, 32)], layer="image_embeds", fit="stretch")
    assert not caplog.records


def test_no_pictures(tower: Tower) -> None:
    with pytest.raises(ImageError, match="give at least one"):
        VisionEncoder(tower).encode([], layer="image_embeds")


@pytest.mark.parametrize("index", [4, -5])
def test_a_layer_it_does_not_have(tower: Tower, index: int) -> None:
    with pytest.raises(EncoderMismatch, match=rf"CLIP vision 16/12 has 4 hidden states.*got index {index}"):
        VisionEncoder(tower).encode([picture()], layer="hidden_states", index=index)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_layer(tower: Tower) -> None:
    with pytest.raises(EncoderMismatch, match="layer must be 'image_embeds' or 'hidden_states'; got 'pooler'"):
        VisionEncoder(tower).encode([picture()], layer="pooler")  # pyright: ignore[reportArgumentType]


def test_from_a_folder(tower: Tower, folder: Path) -> None:
    loaded = VisionEncoder.from_folder(folder)
    assert loaded.preprocessing == Preprocessing(32, 32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    built = VisionEncoder(tower, loaded.preprocessing)
    assert loaded.spec == built.spec
    assert torch.equal(
        loaded.encode([picture()], layer="image_embeds"), built.encode([picture()], layer="image_embeds")
    )
    assert VisionEncoder.from_folder(folder.parent, subfolder=folder.name, dtype=torch.half).model.dtype == torch.half


def test_from_nowhere(tmp_path: Path) -> None:
    with pytest.raises(DownloadError):
        VisionEncoder.from_folder(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"holds no vision encoder that can be read: it needs a config.json"):
        VisionEncoder.from_folder(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '"text"', "{", '{"model_type": ["clip"]}'])
def test_from_a_folder_whose_configuration_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"(config.json that says its model_type|holds a \"\['clip'\]\")"):
        VisionEncoder.from_folder(tmp_path)


def test_from_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match=r"holds a 'bert'; a vision encoder is one of clip_vision_model, siglip_"):
        VisionEncoder.from_folder(tmp_path)


def test_from_a_folder_of_pickles(tower: Tower, tmp_path: Path) -> None:
    tower.config.save_pretrained(tmp_path)
    torch.save(tower.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"that can be read.*it needs config.json and model.safetensors"):
        VisionEncoder.from_folder(tmp_path)


def test_a_preprocessing_that_makes_no_squares(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text('{"size": {"height": 32, "width": 64}}')
    with pytest.raises(CheckpointError, match=r"does not say how to prepare pictures \(its size is .*or equal sides"):
        VisionEncoder.from_folder(folder)


def test_from_a_truncated_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="can be read"):
        VisionEncoder.from_folder(folder)


def test_from_a_file_without_the_projection(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["visual_projection.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors, as 'visual_projection.weight'; take a whole CLIP"):
        VisionEncoder.from_folder(folder)
