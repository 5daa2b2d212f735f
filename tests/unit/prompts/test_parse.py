"""Request files: every field by name, paths beside the file, unknown keys with the nearest known one."""

import json
from pathlib import Path

import pytest

from imprompt.core.errors import PromptError
from imprompt.generation.request import parse_request
from imprompt.prompts.masks import Box, Polygon
from imprompt.prompts.noise import Noise
from imprompt.prompts.parse import parse_prompt, parse_prompts, read_mapping

TOML = """
prompt = "on the moon"
seed = 7
steps = 12

[[image_prompts]]
image = "cat.png"
weight = 1
blocks = "style"
curve = [1, 0.5, 0]

[[image_prompts]]
image = ["street.png", "sub/park.png"]
mask = [{ box = [0, 0, 0.5, 1] }, { polygon = [[0.5, 0], [1, 0], [1, 1]] }]
negative = { noise = "shuffle", strength = 0.5, seed = 3 }
blocks = { 3 = 1.0, "up_blocks.0" = 0.5 }
focus = [0, 1]
feather = 0.1
"""
YAML = """
prompt: on the moon
seed: 7
steps: 12
image_prompts:
  - {image: cat.png, weight: 1, blocks: style, curve: [1, 0.5, 0]}
  - image: [street.png, sub/park.png]
    mask: [{box: [0, 0, 0.5, 1]}, {polygon: [[0.5, 0], [1, 0], [1, 1]]}]
    negative: {noise: shuffle, strength: 0.5, seed: 3}
    blocks: {"3": 1.0, up_blocks.0: 0.5}
    focus: [0, 1]
    feather: 0.1
"""


@pytest.mark.parametrize("suffix", [".toml", ".yaml", ".yml", ".json"])
def test_one_request_in_every_language(tmp_path, suffix):
    file = tmp_path / f"shot{suffix}"
    (tmp_path / "shot.toml").write_text(TOML)
    texts = {".toml": TOML, ".json": json.dumps(read_mapping(tmp_path / "shot.toml"))}
    file.write_text(texts.get(suffix, YAML))
    request = parse_request(read_mapping(file), tmp_path, guidance_scale=3.0)
    assert (request.prompt, request.seed, request.steps, request.guidance_scale) == ("on the moon", 7, 12, 3.0)
    first, second = request.image_prompts
    assert (first.image, first.weight, first.blocks, first.curve) == (tmp_path / "cat.png", 1.0, "style", (1, 0.5, 0))
    assert second.images == (tmp_path / "street.png", tmp_path / "sub" / "park.png")
    assert second.masks == (Box(0.0, 0.0, 0.5, 1.0), Polygon([(0.5, 0.0), (1.0, 0.0), (1.0, 1.0)]))
    assert second.negative == Noise(kind="shuffle", strength=0.5, seed=3)
    assert second.blocks == {"3": 1.0, "up_blocks.0": 0.5}
    assert (second.focus, second.feather) == ((0.0, 1.0), 0.1)


def test_a_path_alone_is_a_prompt():
    assert parse_prompt("cat.png", "folder").image == Path("folder/cat.png")
    assert parse_prompt("/elsewhere/cat.png", "folder").image == Path("/elsewhere/cat.png")
    assert parse_prompt({"image": "a.png", "negative": "b.png", "mask": "m.png"}).mask == Path("m.png")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"imge": "a.png"}, "an image prompt has no 'imge'; did you mean 'image'"),
        ({"image": "a.png", "features": [1]}, "has no 'features'"),
        ({"image": "a.png", "mask": {"circle": 1}}, "a mask has no 'circle'"),
        ({"image": "a.png", "mask": {"box": [0, 1]}}, r"a box must be \[left, top, right, bottom\]"),
        ({"image": "a.png", "mask": {"box": [0, 0, 2, 1]}}, "0 <= left < right <= 1"),
        ({"image": "a.png", "mask": {"polygon": [1, 2, 3]}}, "a polygon must be"),
        ({"image": "a.png", "mask": {"box": [0, 0, 1, 1], "polygon": []}}, "give one of them"),
        ({"image": "a.png", "negative": {"noise": "snow"}}, "noise must be one of"),
        ({"image": "a.png", "negative": {"blurr": 1}}, "did you mean 'blur'"),
        ({"image": "a.png", "negative": {"seed": 0.5}}, "seed of noise"),
        ({"image": "a.png", "weight": "1"}, "weight must be a finite number; got '1'"),
        ({"image": "a.png", "weight": True}, "weight must be a finite number; got True"),
        ({"image": "a.png", "blocks": "styel"}, "did you mean 'style'"),
        ({"image": "a.png", "curve": "rize"}, "did you mean 'rise'"),
        ({"image": 3}, "given by its path; got 3"),
        ({"image": ["a.png", 3]}, "given by its path; got 3"),
        ({}, "either image or features"),
        (7, "a path or names and values; got 7"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_prompts_that_make_no_sense(given, message):
    with pytest.raises(PromptError, match=message) as caught:
        parse_prompt(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"promt": "a"}, "a request has no 'promt'; did you mean 'prompt'"),
        ({"image_prompts": "a.png"}, "image_prompts must be a list"),
        ({"image_prompts": ["a.png", {"weigth": 1}]}, r"image_prompts\[1\]: .*did you mean 'weight'"),
        ({"prompt": 3}, "prompt must be a text"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"seed": "7"}, "seed must be a whole number"),
        ({"guidance_scale": "high"}, "guidance_scale must be a number"),
        ({"steps": 0}, "steps is 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_requests_that_make_no_sense(given, message):
    with pytest.raises(PromptError, match=message):
        parse_request(given)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", r"must end in one of \.toml"),
        ("a.toml", "prompt = ", "'a.toml' cannot be read"),
        ("a.json", "{", "cannot be read"),
        ("a.yaml", "a: [", "cannot be read"),
        ("a.yaml", "!!python/object/apply:os.system [ls]", "cannot be read"),
        ("a.json", "[" * 100_000, "cannot be read"),
        ("a.yaml", "- cat.png", "must hold names and values"),
        ("a.json", " " * 1_000_001, "at most 1000000"),
    ],
)
def test_files_that_make_no_sense(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(PromptError, match=message) as caught:
        read_mapping(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(PromptError, match="no request file"):
        read_mapping(tmp_path / "a.toml")


def test_a_list_of_prompts():
    assert [prompt.image for prompt in parse_prompts(["a.png", {"image": "b.png"}])] == [Path("a.png"), Path("b.png")]
