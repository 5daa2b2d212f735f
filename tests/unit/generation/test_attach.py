"""An attachment takes image prompts, finds the encoder, and refuses the wrong one before a matrix does."""

import logging

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import imprompt
from imprompt.adapter.spec import FeatureSpec
from imprompt.core.errors import (
    ConditioningError,
    DownloadError,
    EncoderMismatch,
    HostMismatch,
    ImageError,
    PromptError,
)
from imprompt.encoders.cache import CachedEncoder
from imprompt.encoders.vision import VisionEncoder
from imprompt.generation import attach as attach_module
from imprompt.generation.attach import attach
from imprompt.prompts.image_prompt import ImagePrompt
from tests import tiny


def encoder_of(hidden, projection):
    config = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=8,
        projection_dim=projection,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    return CLIPVisionModelWithProjection(config)


@pytest.fixture
def bare():
    """A pipeline without an image encoder."""
    return tiny.pipeline()


@pytest.mark.parametrize("kind", tiny.PROJECTORS)
def test_an_image_prompt_changes_the_picture_and_detaching_brings_it_back(pipe, adapters, cat, kind):
    plain = tiny.generate(pipe)
    with attach(pipe, adapters[kind]) as images:
        assert torch.equal(tiny.generate(pipe), plain)
        images.set(ImagePrompt(cat))
        assert (tiny.generate(pipe) - plain).abs().max() > 0.01
        images.set(None)
        assert torch.equal(tiny.generate(pipe), plain)
    assert torch.equal(tiny.generate(pipe), plain)


def test_rows_equal_their_own_runs(pipe, adapters, cat, street):
    rows = [[ImagePrompt(cat), ImagePrompt(street, weight=0.5)], [], [ImagePrompt([street, cat], end=0.5)]]
    noise = tiny.rand(3, 4, 16, 16)
    with attach(pipe, adapters["resampler"]) as images:
        images.set(rows=rows)
        together = tiny.generate(pipe, ["a", "b", "c"], latents=noise)
        for number, (row, text) in enumerate(zip(rows, "abc", strict=True)):
            images.set(rows=[row])
            alone = tiny.generate(pipe, text, latents=noise[number : number + 1])
            assert torch.allclose(together[number], alone[0], atol=1e-4)


def test_rows_without_any_image_equal_no_adapter(pipe, adapters):
    plain = tiny.generate(pipe, ["a", "b"])
    with attach(pipe, adapters["linear"]) as images:
        images.set(rows=[[], []])
        assert torch.equal(tiny.generate(pipe, ["a", "b"]), plain)


def test_offloaded_weights_give_the_same_picture(pipe, adapters, cat):
    pictures = []
    for offload in (False, True):
        with attach(pipe, adapters["resampler"], offload=offload) as images:
            images.set(ImagePrompt(cat))
            pictures.append(tiny.generate(pipe))
    assert torch.equal(*pictures)


def test_an_encoder_that_is_offloaded_makes_the_same_features(bare, adapters, cat, tmp_path):
    tiny.vision_tower().save_pretrained(tmp_path / "encoder")
    pictures = []
    for offload in (False, True):
        with attach(bare, adapters["resampler"], image_encoder=tmp_path / "encoder", offload=offload) as images:
            images.set(ImagePrompt(cat))
            pictures.append(tiny.generate(bare))
    assert torch.equal(*pictures)


def test_pictures_of_all_rows_are_encoded_together(pipe, adapters, cat, street, monkeypatch):
    sizes = []
    original = VisionEncoder.encode_pixels
    monkeypatch.setattr(
        VisionEncoder,
        "encode_pixels",
        lambda self, pixels, *given: sizes.append(len(pixels)) or original(self, pixels, *given),
    )
    rows = [[ImagePrompt(cat)], [ImagePrompt(street, fit="pad")], [], [ImagePrompt([street, cat])]]
    with attach(pipe, adapters["linear"]) as images:
        images.set(rows=rows)
    assert sorted(sizes) == [1, 2]


def test_a_picture_is_encoded_once(pipe, adapters, cat, monkeypatch):
    calls = []
    original = VisionEncoder.encode_pixels
    monkeypatch.setattr(VisionEncoder, "encode_pixels", lambda *given: calls.append(1) or original(*given))
    with attach(pipe, adapters["resampler"]) as images:
        for _ in range(3):
            images.set(ImagePrompt(cat), ImagePrompt(cat, weight=0.3))
    assert len(calls) == 2  # the picture and the null image


@pytest.mark.parametrize("kind", ["module", "encoder", "folder", "list"])
def test_the_encoder_may_be_given(bare, adapters, cat, tmp_path, kind):
    tower = tiny.vision_tower()
    tower.save_pretrained(tmp_path / "encoder")
    given = {"module": tower, "encoder": VisionEncoder(tower), "folder": tmp_path / "encoder", "list": [tower]}[kind]
    with attach(bare, adapters["linear"], image_encoder=given) as images:
        images.set(ImagePrompt(cat))
        assert images.describe_encoders()[0]["adapter"] == "tiny-linear"


@pytest.mark.parametrize(("kind", "wanted", "found"), [("linear", 12, 8), ("resampler", 20, 24)])
def test_a_wrong_encoder_is_refused_when_attaching(pipe, adapters, kind, wanted, found):
    stock = dict(pipe.unet.attn_processors)
    with pytest.raises(
        EncoderMismatch, match=rf"'tiny-{kind}' wants features of width {wanted} .*makes {found}, which"
    ):
        attach(pipe, adapters[kind], image_encoder=encoder_of(24, 8))
    assert pipe.unet.attn_processors == stock


def test_the_message_says_which_encoder_to_load(bare):
    adapter = tiny.adapter(bare.unet, "linear")
    features = FeatureSpec(layer="image_embeds", width=1280, encoder="OpenCLIP ViT-bigG/14")
    adapter.spec = adapter.spec.__class__(**{**vars(adapter.spec), "features": features})
    with pytest.raises(EncoderMismatch, match=r"ViT-bigG/14.*image_encoder='h94/IP-Adapter/sdxl_models/image_encoder'"):
        attach(bare, adapter, image_encoder=tiny.vision_tower())


def test_too_few_layers_are_refused(pipe):
    adapter = tiny.adapter(pipe.unet, "resampler")
    features = FeatureSpec(layer="hidden_states", width=tiny.VISION_WIDTH, encoder="a deep one", index=-9)
    adapter.spec = adapter.spec.__class__(**{**vars(adapter.spec), "features": features})
    with pytest.raises(EncoderMismatch, match="has 3 layers"):
        attach(pipe, adapter)


def test_the_published_encoder_is_loaded_when_it_is_needed(bare, cat, monkeypatch):
    adapter = tiny.adapter(bare.unet, "linear")
    features = FeatureSpec(layer="image_embeds", width=12, encoder="OpenCLIP ViT-H/14")
    adapter.spec = adapter.spec.__class__(**{**vars(adapter.spec), "features": features})
    loaded = []

    def load(source, **_):
        loaded.append(source)
        return VisionEncoder(tiny.vision_tower())

    monkeypatch.setattr(attach_module, "load_encoder", load)
    with attach(bare, adapter) as images:
        images.set(ImagePrompt(features=tiny.features(adapter)))
        assert loaded == []
        images.set(ImagePrompt(cat))
        images.set(ImagePrompt(cat))
        assert loaded == ["h94/IP-Adapter/models/image_encoder"]


def test_without_any_encoder_pictures_and_null_images_ask_for_one(bare, adapters, cat):
    with attach(bare, adapters["resampler"]) as images:
        with pytest.raises(EncoderMismatch, match="pass image_encoder="):
            images.set(ImagePrompt(cat))
        with pytest.raises(EncoderMismatch, match="null image"):
            images.set(ImagePrompt(features=tiny.features(adapters["resampler"])))
    with attach(bare, adapters["linear"]) as images:
        images.set(ImagePrompt(features=tiny.features(adapters["linear"])))


def test_what_is_no_encoder_is_refused(bare, adapters):
    with pytest.raises(EncoderMismatch, match="Linear is no image encoder"):
        attach(bare, adapters["linear"], image_encoder=torch.nn.Linear(2, 2))
    with pytest.raises(EncoderMismatch, match="2 image encoders for 1 adapters"):
        attach(bare, adapters["linear"], image_encoder=[tiny.vision_tower(), None])
    with pytest.raises(DownloadError, match="not a file or folder"):
        attach(bare, adapters["linear"], image_encoder="no such folder")


def test_an_adapter_of_another_base_is_refused(pipe):
    with pytest.raises(HostMismatch, match="wants"):
        attach(pipe, tiny.adapter(tiny.unet("sdxl")))


def test_two_adapters_with_encoders_of_their_own(pipe, adapters, cat, street):
    with attach(pipe, adapters["linear"], adapters["resampler"], image_encoder=[None, tiny.vision_tower()]) as images:
        images.set(ImagePrompt(cat), ImagePrompt(street, adapter=1))
        both = tiny.generate(pipe)
        images.set(ImagePrompt(cat))
        assert not torch.equal(both, tiny.generate(pipe))
        assert [entry["adapter"] for entry in images.describe_encoders()] == ["tiny-linear", "tiny-resampler"]


def test_a_bare_unet_takes_prompts_too(pipe, adapters, cat):
    inputs = tiny.host_inputs(pipe.unet)
    plain = tiny.call(pipe.unet, inputs)
    with attach(
        pipe.unet, adapters["linear"], image_encoder=CachedEncoder(VisionEncoder(tiny.vision_tower()))
    ) as images:
        images.set(ImagePrompt(cat))
        assert not torch.equal(tiny.call(pipe.unet, inputs), plain)


def test_prompts_that_make_no_sense_are_said(pipe, adapters, cat, tmp_path):
    with attach(pipe, adapters["linear"]) as images:
        with pytest.raises(PromptError, match="no image prompts"):
            images.set()
        with pytest.raises(PromptError, match="no rows"):
            images.set(rows=[])
        with pytest.raises(PromptError, match="both prompts and rows"):
            images.set(ImagePrompt(cat), rows=[[]])
        with pytest.raises(PromptError, match="names adapter 3, but 1 attached"):
            images.set(ImagePrompt(cat, adapter=3))
        with pytest.raises(ImageError, match="does not exist"):
            images.set(ImagePrompt(tmp_path / "dog.png"))
    with pytest.raises(ConditioningError, match="detached"):
        images.set(ImagePrompt(cat))


@pytest.mark.usefixtures("unchecked")
def test_a_picture_that_is_no_prompt_is_said(pipe, adapters):
    with attach(pipe, adapters["linear"]) as images, pytest.raises(PromptError, match=r"write ImagePrompt\("):
        images.set("cat.png")  # pyright: ignore[reportArgumentType]


def test_rows_that_do_not_fit_the_batch_are_said(pipe, adapters, cat):
    with attach(pipe, adapters["linear"]) as images:
        images.set(rows=[[ImagePrompt(cat)], []])
        with pytest.raises(ConditioningError, match="2 row"):
            tiny.generate(pipe, ["a", "b", "c"])


def test_a_namesake_of_the_same_width_is_reported(bare, caplog):
    adapter = tiny.adapter(bare.unet, "resampler")
    features = FeatureSpec(layer="hidden_states", width=1024, encoder="CLIP ViT-L/14-336")
    spec = adapter.spec.__class__(**{**vars(adapter.spec), "features": features})
    from imprompt.encoders.base import EncoderSpec
    from imprompt.generation.features import check_encoder

    other = EncoderSpec("CLIP ViT-L/14", "clip", 224, 1024, 768, 24, 257, "")
    with caplog.at_level(logging.WARNING):
        check_encoder(spec, other)
    assert "was trained on CLIP ViT-L/14-336" in caplog.text


def test_the_public_name_is_this_one():
    assert imprompt.attach is attach
