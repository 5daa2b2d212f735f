"""Every kind of tower gives what transformers' own processor and model give, and is told by its folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from imprompt import emoji
from imprompt.core.errors import CheckpointError, EncoderMismatch
from imprompt.core.images import load_image
from imprompt.encoders.base import ImageEncoder
from imprompt.encoders.kinds import KINDS, kind_of_model, kind_of_type, side_of
from imprompt.encoders.known import KNOWN_ENCODERS
from imprompt.encoders.preprocess import Preprocessing
from imprompt.encoders.vision import VisionEncoder

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def clip() -> tuple[Any, Any]:
    config = CLIPVisionConfig(**SIZES, intermediate_size=32, projection_dim=12, image_size=42, patch_size=14)
    return CLIPVisionModelWithProjection(config), CLIPImageProcessorPil(size={"shortest_edge": 42}, crop_size=42)


def siglip() -> tuple[Any, Any]:
    config = SiglipVisionConfig(**SIZES, intermediate_size=32, image_size=42, patch_size=14)
    return SiglipVisionModel(config), SiglipImageProcessorPil(size={"height": 42, "width": 42})


def dinov2() -> tuple[Any, Any]:
    """Positions for another size than it looks at, as the published ones have."""
    config = Dinov2Config(**SIZES, mlp_ratio=2, image_size=56, patch_size=14)
    return Dinov2Model(config), BitImageProcessorPil(size={"shortest_edge": 256}, crop_size=224, **IMAGENET)


def dinov2_with_registers() -> tuple[Any, Any]:
    config = Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2, image_size=56, patch_size=14, num_register_tokens=4)
    processor = BitImageProcessorPil(size={"shortest_edge": 256}, crop_size=224, **IMAGENET)
    return Dinov2WithRegistersModel(config), processor


def dinov3() -> tuple[Any, Any]:
    """Its own processor needs torchvision; SigLIP's does the same steps, with Pillow, under these settings."""
    config = DINOv3ViTConfig(**SIZES, intermediate_size=32, image_size=224, patch_size=16, num_register_tokens=4)
    processor = SiglipImageProcessorPil(size={"height": 224, "width": 224}, resample=2, **IMAGENET)
    return DINOv3ViTModel(config), processor


TOWERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "clip": clip,
    "siglip": siglip,
    "dinov2": dinov2,
    "dinov2_with_registers": dinov2_with_registers,
    "dinov3_vit": dinov3,
}
TOKENS = {"clip": 10, "siglip": 9, "dinov2": 257, "dinov2_with_registers": 261, "dinov3_vit": 201}


@pytest.fixture(params=TOWERS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def made(kind: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model, processor = TOWERS[kind]()
    with torch.no_grad():
        for parameter in model.parameters():  # layer scales and positions start at values that hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval(), processor


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Real drawings; the last two are cut, so that they are not square."""
    drawings = [load_image(path) for path in list(emoji.reference_pictures().values())[:4]]
    return [*drawings[:2], drawings[2].crop((0, 10, 64, 50)), drawings[3].crop((20, 0, 50, 64))]


def test_every_kind_is_tested() -> None:
    assert set(TOWERS) == {kind.name for kind in KINDS}


def test_features_equal_those_of_transformers(kind: str, made: tuple[Any, Any], pictures: list[Image.Image]) -> None:
    model, processor = made
    encoder = VisionEncoder(model)  # prepared as the kind has it: no processor is given
    assert isinstance(encoder, ImageEncoder)
    with torch.no_grad():
        pixels = processor(pictures, return_tensors="pt")["pixel_values"]
        output = model(pixel_values=pixels, output_hidden_states=True)
    pooled = output.image_embeds if kind == "clip" else output.pooler_output
    assert (encoder.encode(pictures, layer="image_embeds") - pooled).abs().max() <= 1e-5
    for index in range(-4, 4):
        features = encoder.encode(pictures, layer="hidden_states", index=index)
        assert (features - output.hidden_states[index]).abs().max() <= 1e-5
    assert features.shape == (4, TOKENS[kind], 16)
    assert not torch.allclose(output.hidden_states[-1], output.last_hidden_state) or kind == "clip"


def test_its_own_processor_may_be_given(made: tuple[Any, Any], pictures: list[Image.Image]) -> None:
    model, processor = made
    assert VisionEncoder(model, processor).preprocessing == VisionEncoder(model).preprocessing


def test_the_spec_says_what_it_is(kind: str, made: tuple[Any, Any]) -> None:
    spec = VisionEncoder(made[0]).spec
    assert (spec.kind, spec.width, spec.num_layers, spec.num_tokens) == (kind, 16, 3, TOKENS[kind])
    assert spec.projection_dim == (12 if kind == "clip" else 16)
    assert spec.image_size == (42 if kind in ("clip", "siglip") else 224)
    assert spec.name.endswith("vision 16/12" if kind == "clip" else "vision 16/16")


def test_no_picture_is_grey_and_a_black_one_is_black(made: tuple[Any, Any]) -> None:
    """Two rules for the null image: zero pixels after normalisation, and a black picture like any other."""
    model, processor = made
    encoder = VisionEncoder(model)
    side = encoder.spec.image_size
    black = Image.new("RGB", (side, side))
    with torch.no_grad():
        grey = model(pixel_values=torch.zeros(1, 3, side, side), output_hidden_states=True).hidden_states[-2]
        pixels = processor([black], return_tensors="pt")["pixel_values"]
        dark = model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    assert (encoder.encode_null(layer="hidden_states") - grey).abs().max() <= 1e-5
    assert (encoder.encode([black], layer="hidden_states") - dark).abs().max() <= 1e-5
    assert not torch.allclose(grey, dark, atol=1e-3)


def test_from_a_folder(kind: str, made: tuple[Any, Any], pictures: list[Image.Image], tmp_path: Path) -> None:
    model, processor = made
    model.save_pretrained(tmp_path)
    bare = VisionEncoder.from_folder(tmp_path)
    processor.save_pretrained(tmp_path)
    encoder = VisionEncoder.from_folder(tmp_path)
    assert encoder.kind.name == kind
    assert encoder.spec == bare.spec == VisionEncoder(model).spec
    assert torch.equal(
        encoder.encode(pictures, layer="image_embeds"), VisionEncoder(model).encode(pictures, layer="image_embeds")
    )


def test_a_tower_of_one_size_is_given_that_size(kind: str, made: tuple[Any, Any]) -> None:
    encoder = VisionEncoder(made[0], Preprocessing(shortest_edge=100, crop_size=98))
    assert encoder.preprocessing == (
        Preprocessing(shortest_edge=42, crop_size=42)
        if kind in ("clip", "siglip")
        else Preprocessing(shortest_edge=100, crop_size=98)
    )


def test_a_tower_without_its_pooling_head_says_so(pictures: list[Image.Image]) -> None:
    config = SiglipVisionConfig(**SIZES, intermediate_size=32, image_size=42, patch_size=14, vision_use_head=False)
    encoder = VisionEncoder(SiglipVisionModel(config))
    assert encoder.encode(pictures, layer="hidden_states").shape == (4, 9, 16)
    with pytest.raises(EncoderMismatch, match="SigLIP vision 16/16 was saved without its pooling head"):
        encoder.encode(pictures, layer="image_embeds")


@pytest.mark.parametrize("kind", ["clip", "siglip"], indirect=True)
def test_the_vision_half_of_a_whole_model(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision, text = {"image_size": 42, "patch_size": 14}, {"vocab_size": 20, "eos_token_id": 1, "bos_token_id": 0}
    sizes = {**SIZES, "intermediate_size": 32}
    if kind == "clip":
        parts = CLIPTextConfig(**sizes, **text), CLIPVisionConfig(**sizes, **vision, projection_dim=12)
        whole: Any = CLIPModel(CLIPConfig(text_config=parts[0], vision_config=parts[1], projection_dim=12))
    else:
        parts = SiglipTextConfig(**sizes, **text, pad_token_id=0), SiglipVisionConfig(**sizes, **vision)
        whole = SiglipModel(SiglipConfig(text_config=parts[0], vision_config=parts[1]))
    whole.eval().save_pretrained(tmp_path)
    encoder = VisionEncoder.from_folder(tmp_path)
    pixels = torch.randn(1, 3, 42, 42)
    with torch.no_grad():
        wanted = whole.get_image_features(pixel_values=pixels)
    wanted = wanted if isinstance(wanted, torch.Tensor) else wanted.pooler_output
    assert torch.allclose(encoder.encode_pixels(pixels, "image_embeds", -2), wanted, atol=1e-6)


def test_a_patch_wise_siglip2_is_refused(tmp_path: Path) -> None:
    """Its input is no picture but patches of any number; the versions of one resolution are SigLIP's."""
    (tmp_path / "config.json").write_text('{"model_type": "siglip2"}')
    with pytest.raises(CheckpointError, match="holds a 'siglip2'"):
        VisionEncoder.from_folder(tmp_path)


def test_a_model_that_is_no_tower() -> None:
    with pytest.raises(EncoderMismatch, match="Linear is no vision tower that imprompt knows; take one of CLIPVision"):
        VisionEncoder(torch.nn.Linear(1, 1))
    assert kind_of_model(torch.nn.Linear(1, 1)) is None
    assert kind_of_type("bert") is None


def test_sizes_may_be_pairs() -> None:
    assert side_of(14) == side_of([14, 14]) == side_of((14, 14)) == 14


@pytest.mark.parametrize("known", KNOWN_ENCODERS, ids=lambda known: known.name)
def test_known_encoders_at_their_true_sizes(known: Any) -> None:
    """Built without weights: the sizes in the table are those that the network has."""
    pooled = {"projection_dim": known.projection_dim} if known.kind == "clip" else {}
    sizes = {"hidden_size": known.width, "num_hidden_layers": known.num_layers, "num_attention_heads": 16, **pooled}
    patch = {"image_size": 518 if known.kind == "dinov2" else known.image_size, "patch_size": 14}
    configs = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig, "dinov2": Dinov2Config}
    models = {"clip": CLIPVisionModelWithProjection, "siglip": SiglipVisionModel, "dinov2": Dinov2Model}
    with torch.device("meta"):
        model = models[known.kind](configs[known.kind](**sizes, **patch))
    spec = VisionEncoder(model).spec
    assert (spec.width, spec.projection_dim, spec.num_layers) == (known.width, known.projection_dim, known.num_layers)
    assert spec.image_size == known.image_size
    assert spec.name == known.name or (spec.name, known.name) == ("SigLIP so400m/14-384", "SigLIP 2 so400m/14-384")
    assert spec.num_tokens == {224: 257, 336: 577, 384: 729}[known.image_size]
