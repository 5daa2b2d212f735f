"""Image prompts on FLUX and Stable Diffusion 3, from a picture to a picture: encoders, null images, requests."""

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor

import imprompt
from imprompt import ImagePrompt
from imprompt.core.errors import EncoderMismatch, PromptError
from tests import tiny
from tests import tiny_transformers as transformers
from tests.parity.native import largest_difference, official_state

TEXTS = {"prompt": "a cat", "negative_prompt": "dull", "max_sequence_length": 6}
LIMIT = 1e-5


def pipeline(family: str, model: Any = None) -> Any:
    """With text encoders, and with the vision tower that such a pipeline has for image prompts."""
    if family.startswith("sd3"):
        parts = {"image_encoder": transformers.siglip(), "feature_extractor": transformers.siglip_processor()}
    else:
        parts = {"image_encoder": tiny.vision_tower(), "feature_extractor": tiny.image_processor()}
    return transformers.pipeline(family, model, with_texts=True, **parts)


def generate(pipe: Any, **options: Any) -> Tensor:
    return transformers.generate(pipe, **{**TEXTS, **options})


# The same picture, in diffusers and here -----------------------------------------------------------------------------


def test_xlabs_with_a_picture_as_in_diffusers() -> None:
    """Its null image is a black picture, which diffusers encodes where none is given."""
    model = transformers.flux(text_width=transformers.XLABS_WIDTH)
    adapter = transformers.adapter("flux-xlabs", model)
    assert adapter.spec.null_image == "black_pixels"
    tower = {"image_encoder": tiny.vision_tower(), "feature_extractor": tiny.image_processor()}
    theirs = transformers.flux_pipeline(copy.deepcopy(model), **tower)
    theirs.transformer._load_ip_adapter_weights([official_state(adapter)])
    theirs.set_ip_adapter_scale(0.7)
    picture = tiny.picture()
    wanted = transformers.generate(theirs, ip_adapter_image=picture)
    pipe = transformers.flux_pipeline(model, **tower)
    plain = transformers.generate(pipe)
    with imprompt.attach(pipe, adapter) as images:
        images.set(ImagePrompt(picture, weight=0.7))
        output = transformers.generate(pipe)
    assert largest_difference(wanted, plain) > 0.1
    assert largest_difference(wanted, output) <= LIMIT


def test_sd3_with_a_picture_as_in_diffusers() -> None:
    model = transformers.sd3()
    adapter = transformers.adapter("sd3-instantx", model)
    theirs = pipeline("sd3", copy.deepcopy(model))
    theirs.transformer._load_ip_adapter_weights(official_state(adapter))
    theirs.set_ip_adapter_scale(0.5)
    picture = tiny.picture()
    wanted = generate(theirs, ip_adapter_image=picture)
    pipe = pipeline("sd3", model)
    with imprompt.attach(pipe, adapter) as images:
        images.set(ImagePrompt(picture, weight=0.5))
        assert largest_difference(wanted, generate(pipe)) <= LIMIT


# Null images ---------------------------------------------------------------------------------------------------------


def test_no_image_for_the_negative_half() -> None:
    """InstantX's FLUX adapter knows no null image, so the negative half of guidance sees none."""
    pipe = pipeline("flux")
    adapter = transformers.adapter("flux-instantx", pipe.transformer)
    outputs: list[Tensor] = []
    handle = pipe.transformer.register_forward_hook(lambda _host, _inputs, output: outputs.append(output[0].clone()))
    generate(pipe, steps=1)
    with imprompt.attach(pipe, adapter) as images:
        images.set(ImagePrompt(tiny.picture()))
        generate(pipe, steps=1)
    handle.remove()
    plain_positive, plain_negative, positive, negative = outputs
    assert torch.equal(negative, plain_negative) and (positive - plain_positive).abs().max() > 0.1


@pytest.mark.parametrize("family", ["flux", "flux-xlabs", "flux-instantx", "sd3", "sd3-instantx"])
def test_rows_of_prompts(family: str) -> None:
    """Two pictures, one, and none; two of each text. The third row is what it is without any."""
    pipe = pipeline(family)
    adapter = transformers.adapter(family, pipe.transformer)
    encoder = transformers.siglip() if adapter.spec.features.layer == "hidden_states" else None
    first, second = (ImagePrompt(tiny.picture(seed=seed), weight=0.8) for seed in (1, 2))
    options = {**TEXTS, "prompt": ["a cat", "a dog", "a hen"], "negative_prompt": ["dull"] * 3}
    options |= {"num_images_per_prompt": 2, "steps": 2}
    plain = transformers.generate(pipe, **options)
    with imprompt.attach(pipe, adapter, image_encoder=encoder) as images:
        images.set(rows=[[first, second], [second], []])
        output = transformers.generate(pipe, **options)
    assert torch.equal(output[4:], plain[4:])
    assert all((output[row] - plain[row]).abs().max() > 0.05 for row in range(4))


def test_given_tokens_need_no_encoder() -> None:
    """PuLID's tokens come from elsewhere."""
    pipe = transformers.flux_pipeline(with_texts=True)
    adapter = transformers.adapter("flux-pulid", pipe.transformer)
    plain = generate(pipe)
    with imprompt.attach(pipe, adapter) as images:
        images.set(ImagePrompt(features=transformers.features(adapter)))
        assert (generate(pipe) - plain).abs().max() > 0.1


def test_wrong_encoder_is_named() -> None:
    pipe = pipeline("sd3")
    adapter = transformers.adapter("sd3-instantx", pipe.transformer)
    with pytest.raises(EncoderMismatch, match="tiny-sd3-instantx.*wants features of width 20.*makes 28"):
        imprompt.attach(pipe, adapter, image_encoder=transformers.siglip(hidden=28))


# Requests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["flux-xlabs", "sd3-instantx"])
def test_request(family: str) -> None:
    pipe = pipeline(family)
    adapter = transformers.adapter(family, pipe.transformer)
    mask = torch.zeros(24, 32)
    mask[:, :16] = 1
    height, width = transformers.SIZE
    request = imprompt.Request(
        prompt="a cat",
        negative_prompt="dull",
        image_prompts=[ImagePrompt(tiny.picture(), mask=mask, end=0.7)],
        steps=3,
        guidance_scale=3.0,
        seed=5,
        num_images=2,
        height=height,
        width=width,
    )
    options = {"max_sequence_length": 6, **({} if family.startswith("sd3") else {"true_cfg_scale": 2.0})}
    seen: list[tuple[int, int]] = []
    with imprompt.attach(pipe, adapter) as images:
        made = imprompt.generate(pipe, images, request, progress=lambda *step: seen.append(step), **options)
    assert [image.size for image in made.images] == [(width, height)] * 2 and seen[-1] == (3, 3)
    json.dumps(made.provenance)
    assert made.provenance["base"]["pipeline"] == type(pipe).__name__
    assert made.provenance["adapters"][0]["name"] == adapter.spec.name
    assert made.provenance["image_encoders"]
    stock = imprompt.generate(pipe, None, imprompt.Request(**{**vars(request), "image_prompts": ()}), **options)
    assert all(a.tobytes() != b.tobytes() for a, b in zip(made.images, stock.images, strict=True))


def test_negative_prompt_that_flux_would_not_read_is_refused() -> None:
    pipe = pipeline("flux")
    request = imprompt.Request(prompt="a cat", negative_prompt="dull", steps=1, height=24, width=32)
    with pytest.raises(PromptError, match="FluxPipeline reads a negative prompt only where true_cfg_scale is above 1"):
        imprompt.generate(pipe, None, request, max_sequence_length=6)


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_sizes_that_patches_do_not_fill_are_refused(family: str) -> None:
    """The autoencoder halves, the denoiser takes two by two of that."""
    pipe = pipeline(family)
    request = imprompt.Request(prompt="a cat", steps=1, height=26, width=32)
    with pytest.raises(PromptError, match="height is 26; expected a multiple of 4, e.g. 24"):
        imprompt.generate(pipe, None, request)


def test_masks_are_held_against_the_usual_size() -> None:
    """SD3's tells by its configuration: 16 x 16 cells of two pixels. FLUX pipelines make squares."""
    for family in ("flux", "sd3"):
        pipe = pipeline(family)
        adapter = transformers.adapter(family, pipe.transformer)
        request = imprompt.Request(image_prompts=[ImagePrompt(tiny.picture(), mask=torch.ones(20, 40))])
        encoder = transformers.siglip()
        with imprompt.attach(pipe, adapter, image_encoder=encoder) as images:
            with pytest.raises(imprompt.ImpromptError, match="40 x 20"):
                imprompt.generate(pipe, images, request)
