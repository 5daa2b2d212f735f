"""Encoded prompts: the same picture as from pictures, in files too, and refused by the wrong adapter."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from imprompt.core.errors import CheckpointError, EncoderMismatch, PromptError
from imprompt.generation.attach import attach
from imprompt.generation.resolve import resolve
from imprompt.prompts.image_prompt import ImagePrompt
from imprompt.prompts.masks import Box, Polygon
from imprompt.prompts.noise import Noise
from imprompt.prompts.parse import parse_prompt
from imprompt.prompts.saved import load_prompt, save_prompt
from tests import tiny

TRIANGLE = Polygon([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
WIDE = {"size": (48, 32)}


def same(one, other):
    """Whether two conditionings have the same numbers."""
    names = ("tokens", "null_tokens", "scale", "region", "token_mask", "null_scale", "swap", "key_scale", "gain")
    for a, b in zip(one.branches, other.branches, strict=True):
        for name in names:
            x, y = getattr(a, name), getattr(b, name)
            if isinstance(x, torch.Tensor):
                assert torch.allclose(x.float(), y.float(), atol=1e-6), name
            else:
                assert x == y, name


PROMPTS = [
    {},
    {"weight": 0.4, "start": 0.2, "end": 0.8, "unit": "noise", "curve": (1.0, 0.5)},
    {"blocks": {"up_blocks": 0.5}, "attention": "keys and values", "mask": Box(0.0, 0.0, 0.5, 1.0), "feather": 0.1},
    {"fit": "pad", "detail": 2, "detail_weight": 0.3, "mask": TRIANGLE},
    {"focus": (0.0, 1.0), "negative": Noise(seed=2), "blocks": "precise style", "second_weight": 0.5},
    {"negative": tiny.picture(seed=5), "mask": np.eye(8, dtype=np.float32)},
]


@pytest.mark.parametrize("values", PROMPTS, ids=["plain", "time", "blocks", "detail", "noise", "negative"])
@pytest.mark.parametrize("kind", ["linear", "resampler"])
def test_an_encoded_prompt_is_the_prompt_also_from_a_file(pipe, adapters, kind, values, tmp_path):
    prompt = ImagePrompt(tiny.picture(seed=1, **WIDE), **values)
    with attach(pipe, adapters[kind]) as images:
        encoded = images.encode(prompt)
        saved = load_prompt(save_prompt(encoded, tmp_path / "cat.safetensors"))
        wanted = resolve([[prompt]], images.adapters, images._sources, blocks=images._blocks())
        for each in (encoded, saved):
            assert each.image is None and each.origin.encoder == images._sources[0].encoders[0].spec.name
            same(resolve([[each]], images.adapters, images._sources, blocks=images._blocks()), wanted)


def test_several_pictures_stay_several(pipe, adapters, tmp_path):
    pictures = [tiny.picture(seed=seed) for seed in (1, 2)]
    masks = [Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 1.0, 1.0)]
    for more in ({"combine": "average", "image_weights": (1.0, 3.0)}, {"mask": masks}):
        prompt = ImagePrompt(pictures, **more)
        with attach(pipe, adapters["resampler"]) as images:
            saved = load_prompt(save_prompt(images.encode(prompt), tmp_path / "two.safetensors"))
            assert len(saved.features) == 2
            options = {"blocks": images._blocks()}
            wanted = resolve([[prompt]], images.adapters, images._sources, **options)
            same(resolve([[saved]], images.adapters, images._sources, **options), wanted)


def test_a_saved_prompt_may_be_named_in_a_request(pipe, adapters, tmp_path):
    with attach(pipe, adapters["linear"]) as images:
        save_prompt(images.encode(ImagePrompt(tiny.picture(), weight=0.3, end=0.5)), tmp_path / "a.safetensors")
    prompt = parse_prompt({"saved": "a.safetensors", "weight": 0.9}, tmp_path)
    assert (prompt.weight, prompt.end) == (0.9, 0.5) and prompt.features is not None
    with pytest.raises(PromptError, match="both image and saved"):
        parse_prompt({"saved": "a.safetensors", "image": "b.png"}, tmp_path)


def test_the_wrong_adapter_refuses_it(pipe, adapters):
    with attach(pipe, adapters["linear"]) as images:
        encoded = images.encode(ImagePrompt(tiny.picture()))
        images.set(encoded)
    with attach(pipe, adapters["resampler"]) as images, pytest.raises(EncoderMismatch, match="the saved features are"):
        images.set(encoded)
    other = tiny.vision_tower(seed=99)
    with attach(pipe, adapters["linear"], image_encoder=other) as images:
        with pytest.raises(EncoderMismatch, match="were made by .* is attached with .*save the prompt again"):
            images.set(encoded)
        images.set(replace(encoded, origin=None))


def test_what_cannot_be_encoded_or_saved_is_said(pipe, adapters, tmp_path):
    pictures = [tiny.picture(seed=seed) for seed in (1, 2)]
    with attach(pipe, adapters["linear"]) as images:
        encoded = images.encode(ImagePrompt(pictures[0]))
        for prompt, message in (
            (encoded, "has features already"),
            (ImagePrompt(pictures[0], fit="tile"), "fit='tile'"),
            (ImagePrompt(pictures, negative=Noise()), "one by one"),
            (ImagePrompt(pictures[0], adapter=2), "names adapter 2"),
        ):
            with pytest.raises(PromptError, match=message):
                images.encode(prompt)
    with pytest.raises(PromptError, match="only encoded prompts"):
        save_prompt(ImagePrompt(pictures[0]), tmp_path / "a.safetensors")
    with pytest.raises(PromptError, match=r"ends in \.safetensors"):
        save_prompt(encoded, tmp_path / "a.pt")
    with pytest.raises(PromptError, match="curve that is a function"):
        save_prompt(replace(encoded, curve=lambda x: x), tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_prompts(tmp_path):
    with pytest.raises(CheckpointError, match="there is no file"):
        load_prompt(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"no")
    save_file({"features": torch.ones(2)}, tmp_path / "c.safetensors")
    save_file({"features": torch.ones(2)}, tmp_path / "d.safetensors", {"imprompt_prompt": '{"speed": 3}'})
    for name, message in (("b", "cannot be read"), ("c", "holds no saved prompt"), ("d", "cannot be read")):
        with pytest.raises(CheckpointError, match=message):
            load_prompt(tmp_path / f"{name}.safetensors")


def test_every_field_is_saved():
    """A new field of a prompt is saved without more, or this test says that nobody thought of it."""
    assert {field.name for field in fields(ImagePrompt)} - {"_"} == {
        "image", "features", "weight", "mask", "start", "end", "fit", "adapter", "blocks", "second_weight", "unit",
        "curve", "combine", "image_weights", "negative", "feather", "focus", "detail", "detail_weight", "attention",
        "origin", "face", "crop_features", "structure", "subtract", "subtract_weight", "compat",
    }  # fmt: skip
