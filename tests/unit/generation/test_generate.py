"""From a request to a result: seeds, batches, rows, progress, and any pipeline."""

import diffusers
import numpy as np
import pytest
import torch

from imprompt.core.errors import ConditioningError, ImageError, PromptError
from imprompt.generation.attach import attach
from imprompt.generation.generate import generate, generate_rows
from imprompt.generation.request import Request
from imprompt.prompts.image_prompt import ImagePrompt
from tests import tiny


def request(**fields):
    return Request(**{"prompt": "a cat", "steps": 3, "seed": 5, "height": 32, "width": 32, **fields})


def difference(one, other):
    """The largest difference of two pictures, in steps of 1/255."""
    return np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max()


@pytest.fixture
def images(pipe, adapters):
    with attach(pipe, adapters["linear"]) as attachment:
        yield attachment


def test_a_picture_depends_on_its_own_seed_and_not_on_how_many_are_made(pipe, images, cat):
    many = generate(pipe, images, request(image_prompts=[ImagePrompt(cat)], num_images=5), batch_size=3)
    assert many.seeds == (5, 6, 7, 8, 9) and len(many.images) == 5
    for index in (0, 2, 4):
        alone = generate(pipe, images, request(image_prompts=[ImagePrompt(cat)], seed=5 + index))
        assert difference(alone.images[0], many.images[index]) <= 1
    assert difference(many.images[0], many.images[1]) > 10


def test_a_seed_is_drawn_and_told(pipe):
    result = generate(pipe, None, request(seed=None))
    again = generate(pipe, None, request(seed=result.seeds[0]))
    assert difference(result.images[0], again.images[0]) == 0


def test_the_attachment_is_as_before_afterwards(pipe, images, cat):
    plain = tiny.generate(pipe)
    generate(pipe, images, request(image_prompts=[ImagePrompt(cat)]))
    assert torch.equal(tiny.generate(pipe), plain)
    with pytest.raises(ImageError):
        generate(pipe, images, request(image_prompts=[ImagePrompt("missing.png")]))
    assert torch.equal(tiny.generate(pipe), plain)


def test_image_prompts_change_the_picture(pipe, images, cat):
    plain = generate(pipe, images, request())
    prompted = generate(pipe, images, request(image_prompts=[ImagePrompt(cat)]))
    assert difference(plain.images[0], prompted.images[0]) > 10
    assert difference(plain.images[0], generate(pipe, None, request()).images[0]) == 0


def test_rows_equal_their_own_runs(pipe, images, cat, street):
    requests = [
        request(image_prompts=[ImagePrompt(cat), ImagePrompt(street, weight=0.4)], seed=1),
        request(prompt="a dog", seed=2, negative_prompt="blue"),
        request(prompt="", image_prompts=[ImagePrompt(street)], seed=3),
    ]
    results = generate_rows(pipe, images, requests)
    for result, alone in zip(results, requests, strict=True):
        assert difference(result.images[0], generate(pipe, images, alone).images[0]) <= 1
        assert result.provenance["prompt"] == alone.prompt
    assert [result.seeds for result in results] == [(1,), (2,), (3,)]


def test_rows_that_cannot_share_a_batch_are_said(pipe):
    with pytest.raises(PromptError, match="no requests"):
        generate_rows(pipe, None, [])
    with pytest.raises(PromptError, match="different steps"):
        generate_rows(pipe, None, [request(steps=3), request(steps=4)])
    with pytest.raises(PromptError, match="several images"):
        generate_rows(pipe, None, [request(num_images=2)])


def test_progress_counts_all_steps_of_all_batches(pipe):
    seen = []
    pipe.set_progress_bar_config(disable=True, desc="mine")
    generate(pipe, None, request(num_images=3), batch_size=2, progress=lambda *step: seen.append(step))
    assert seen == [(number, 6) for number in range(1, 7)]
    assert pipe._progress_bar_config == {"disable": True, "desc": "mine"}


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_families(family, cat):
    kind = {"sd1": diffusers.StableDiffusionPipeline, "sdxl": diffusers.StableDiffusionXLPipeline}[family]
    pipe = tiny.pipeline(kind, family, image_encoder=tiny.vision_tower(), feature_extractor=tiny.image_processor())
    with attach(pipe, tiny.adapter(pipe.unet)) as images:
        result = generate(pipe, images, request(image_prompts=[ImagePrompt(cat)], guidance_scale=1.0))
    assert result.images[0].size == (32, 32)


def test_other_pipelines_take_their_own_arguments(cat):
    parts = {"image_encoder": tiny.vision_tower(), "feature_extractor": tiny.image_processor()}
    pipe = tiny.pipeline(diffusers.StableDiffusionImg2ImgPipeline, **parts)
    wanted = request(image_prompts=[ImagePrompt(cat)], height=None, width=None, num_images=2, steps=4)
    seen = []
    with attach(pipe, tiny.adapter(pipe.unet)) as images:
        options = {"image": tiny.picture(seed=9), "strength": 0.5}
        result = generate(pipe, images, wanted, progress=lambda *step: seen.append(step), **options)
        with pytest.raises(PromptError, match="takes its height from its picture"):
            generate(pipe, images, request(), **options)
    assert len(result.images) == 2 and seen == [(1, 2), (2, 2)]
    assert result.provenance["options"]["strength"] == 0.5
    assert len(result.provenance["options"]["image"]["sha256_pixels"]) == 64


def test_what_cannot_be_made_is_said(pipe, images, cat):
    prompts = [ImagePrompt(cat)]
    with pytest.raises(PromptError, match="no attachment"):
        generate(pipe, None, request(image_prompts=prompts))
    with pytest.raises(ConditioningError, match="another pipeline"):
        generate(tiny.pipeline(), images, request(image_prompts=prompts))
    with pytest.raises(PromptError, match="height is 33; expected a multiple of 2, e.g. 32"):
        generate(pipe, images, request(height=33))
    with pytest.raises(ImageError, match=r"a mask has 20 x 10 pixels, the picture 32 x 32"):
        generate(pipe, images, request(image_prompts=[ImagePrompt(cat, mask=torch.ones(10, 20))]))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"num_images": -1}, "num_images is -1"),
        ({"width": 0}, "width is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(fields, words):
    with pytest.raises(PromptError, match=words):
        Request(**fields)


@pytest.mark.usefixtures("unchecked")
def test_a_picture_in_place_of_a_prompt_is_said():
    with pytest.raises(PromptError, match="holds a str"):
        Request(image_prompts=["cat.png"])  # pyright: ignore[reportArgumentType]
