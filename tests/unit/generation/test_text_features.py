"""A text's features are taken from a picture's, where both are halves of one CLIP; everything else is refused."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from imprompt.core.errors import CheckpointError, EncoderMismatch, PromptError
from imprompt.encoders.text import TextEncoder
from imprompt.generation.attach import attach
from imprompt.generation.pipelines import load_pipeline
from imprompt.prompts.image_prompt import ImagePrompt
from imprompt.prompts.parse import parse_prompt
from tests import tiny


@pytest.fixture(scope="module")
def clip():
    """A whole CLIP, as wide as the tiny vision tower."""
    text = tiny.text_encoder(projected=True).config.to_dict() | {"projection_dim": 512}  # as whole CLIPs often say
    vision = tiny.vision_tower().config.to_dict()
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=tiny.VISION_PROJECTION)
    return tiny.seeded(lambda: CLIPModel(config), 3)


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory):
    place = tmp_path_factory.mktemp("clip")
    clip.save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def sdxl():
    return tiny.pipeline(family="sdxl", image_encoder=tiny.vision_tower(), feature_extractor=tiny.image_processor())


def test_a_whole_clips_text_half_gives_its_features(clip, folder):
    """Those that transformers' CLIPModel compares with pictures."""
    encoder = TextEncoder.from_folder(folder)
    tokens = tiny.tokenizer()(["a cat", "b"], padding="max_length", max_length=tiny.TEXT_LENGTH, return_tensors="pt")
    with torch.no_grad():
        # CLIPModel's output for both halves, which it divides by their lengths
        wanted = clip(input_ids=tokens.input_ids, pixel_values=torch.zeros(1, 3, 16, 16)).text_embeds
    found = encoder.encode(["a cat", "b"])
    assert torch.allclose(found / found.norm(dim=-1, keepdim=True), wanted, atol=1e-6)
    assert encoder.spec.projection_dim == tiny.VISION_PROJECTION
    other = TextEncoder(tiny.text_encoder(projected=True), tiny.tokenizer())
    assert encoder.spec.fingerprint != other.spec.fingerprint == TextEncoder(other.model, None).spec.fingerprint


def test_subtracting_is_the_direct_formula(sdxl, cat, street):
    """features - weight * text, of each picture, with the pipeline's own text tower that projects."""
    adapter = tiny.adapter(sdxl.unet)
    text = sdxl.encode_prompt("a cat", device="cpu", do_classifier_free_guidance=False)[2]
    with attach(sdxl, adapter) as images:
        encoded = images.encode(ImagePrompt([cat, street]))
        images.set(ImagePrompt([cat, street], subtract="a cat", subtract_weight=0.4))
        found = tiny.generate(sdxl, steps=2)
        told = images.describe_encoders()
        images.set(ImagePrompt(features=encoded.features - 0.4 * text))
        assert torch.allclose(found, tiny.generate(sdxl, steps=2), atol=1e-5)
        images.set(ImagePrompt([cat, street]))
        assert (found - tiny.generate(sdxl, steps=2)).abs().max() > 1e-3
        later = images.encode(ImagePrompt([cat, street], subtract="a cat", subtract_weight=0.4))
        images.set(later)
        assert torch.allclose(found, tiny.generate(sdxl, steps=2), atol=1e-5)
    assert told[0]["name"] == "CLIP text 12/12" and len(told) == 2


def test_a_text_tower_may_be_given(pipe, adapters, cat, folder):
    encoder = TextEncoder.from_folder(folder)
    with attach(pipe, adapters["linear"], text_encoder=folder) as images:
        encoded = images.encode(ImagePrompt(cat))
        images.set(ImagePrompt(cat, subtract="dogs"))
        found = tiny.generate(pipe)
        images.set(ImagePrompt(features=encoded.features - encoder.encode(["dogs"])))
        assert torch.allclose(found, tiny.generate(pipe), atol=1e-5)


def test_what_is_no_half_of_the_same_clip_is_refused(pipe, adapters, cat, folder, tmp_path):
    prompt = ImagePrompt(cat, subtract="a cat")
    with (
        attach(pipe, adapters["linear"]) as images,
        pytest.raises(EncoderMismatch, match="has none that does; pass text"),
    ):
        images.set(prompt)
    with attach(pipe, adapters["resampler"]) as images, pytest.raises(PromptError, match="takes a text from pooled"):
        images.set(prompt)
    with pytest.raises(EncoderMismatch, match="CLIPTextModel has no projection"):
        TextEncoder(pipe.text_encoder, pipe.tokenizer)
    wide = tiny.text_encoder(projected=True)
    wide.config.projection_dim = 40
    with attach(pipe, adapters["linear"], text_encoder=TextEncoder(wide, pipe.tokenizer)) as images:
        with pytest.raises(EncoderMismatch, match="features of width 40, .* of width 12"):
            images.set(prompt)
    foreign = TextEncoder(tiny.text_encoder(projected=True), pipe.tokenizer, vision_fingerprint="0123456789abcdef")
    with attach(pipe, adapters["linear"], text_encoder=foreign) as images:
        with pytest.raises(EncoderMismatch, match="trained with the vision tower 0123456789ab, and pictures"):
            images.set(prompt)
    pipe.text_encoder.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="lacks 1 tensors, as 'text_projection.weight'|holds no CLIP text tower"):
        TextEncoder.from_folder(tmp_path)


def test_published_towers_are_known_by_their_shape(adapters, cat):
    """Width alone does not tell: ViT-L's text tower projects to 768, and so may others."""
    from dataclasses import replace

    from imprompt.encoders.text import check_halves
    from imprompt.encoders.vision import VisionEncoder

    vision = replace(VisionEncoder(tiny.vision_tower()).spec, name="CLIP ViT-L/14")
    with pytest.raises(EncoderMismatch, match="of CLIP ViT-L/14 has 12 layers of width 768, .* has 2 of width 24"):
        check_halves(TextEncoder(tiny.text_encoder(projected=True), tiny.tokenizer()), vision)


def test_the_embedded_model_has_no_text_tower_that_projects():
    import imprompt
    from imprompt import emoji

    pipe = load_pipeline()
    picture = next(iter(emoji.reference_pictures().values()))
    with imprompt.attach(pipe, imprompt.load_adapter(emoji.adapter_file("global"))) as images:
        with pytest.raises(EncoderMismatch, match="StableDiffusionPipeline has none that does; pass text_encoder="):
            images.set(ImagePrompt(picture, subtract="a flamingo"))


@pytest.mark.usefixtures("unchecked")
def test_files_say_it_too():
    prompt = parse_prompt({"image": "a.png", "subtract": "a cat", "subtract_weight": 1})
    assert (prompt.subtract, prompt.subtract_weight) == ("a cat", 1.0)
    for fields, words in (
        ({"subtract": ""}, "subtract must be a text"),
        ({"subtract_weight": "x"}, "must be a finite"),
    ):
        with pytest.raises(PromptError, match=words):
            parse_prompt({"image": "a.png", **fields})
