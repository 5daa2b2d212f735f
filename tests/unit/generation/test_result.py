"""Pictures carry their provenance, and appear whole or not at all."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from imprompt import __version__
from imprompt.adapter.checkpoint import load_adapter, save_adapter
from imprompt.core.errors import ImageError
from imprompt.generation.attach import attach
from imprompt.generation.generate import generate
from imprompt.generation.provenance import describe_options, describe_pipeline, describe_prompt, file_hash, hash_tensors
from imprompt.generation.request import Request
from imprompt.generation.result import Result, read_provenance
from imprompt.prompts.image_prompt import ImagePrompt
from tests import tiny


@pytest.fixture
def result():
    return Result(
        images=(tiny.picture(seed=1), tiny.picture(seed=2)), seeds=(7, 8), provenance={"prompt": "a cät", "steps": 3}
    )


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_provenance_round_trip(result, tmp_path):
    paths = result.save(tmp_path / "cat.png")
    assert [path.name for path in paths] == ["cat-1.png", "cat-2.png"]
    for index, path in enumerate(paths):
        wanted = {"prompt": "a cät", "steps": 3, "width": 32, "height": 32, "seed": 7 + index}
        assert read_provenance(path) == wanted == result.provenance_of(index)
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(result.images[index]))


def test_a_folder_keeps_what_is_in_it(result, tmp_path):
    folder = tmp_path / "new" / "folder"
    assert [path.name for path in result.save(folder)] == ["7.png", "8.png"]
    assert [path.name for path in result.save(folder)] == ["7-2.png", "8-2.png"]


@pytest.mark.parametrize("name", ["cat.jpg", "folder.png", "file"])
def test_where_a_picture_cannot_be_saved(result, tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ImageError, match="; give "):
        result.save(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failed_write_leaves_the_old_picture_and_nothing_else(result, tmp_path, monkeypatch):
    (old,) = Result(images=result.images[:1], seeds=(1,), provenance={}).save(tmp_path / "cat.png")
    content = old.read_bytes()

    def fail(self, file, **_):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space"):
        Result(images=result.images[1:], seeds=(2,), provenance={}).save(old)
    assert old.read_bytes() == content
    assert list(tmp_path.iterdir()) == [old]


def test_pictures_that_say_nothing(tmp_path):
    tiny.picture().save(tmp_path / "plain.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    with pytest.raises(ImageError, match="carries no provenance"):
        read_provenance(tmp_path / "plain.png")
    with pytest.raises(ImageError, match="cannot be read as a PNG"):
        read_provenance(tmp_path / "broken.png")
    with pytest.raises(ImageError, match="there is no file"):
        read_provenance(tmp_path / "missing.png")


def test_the_provenance_of_a_run_names_everything_by_hash(tmp_path, cat):
    folder = tmp_path / "base"
    parts = {"image_encoder": tiny.vision_tower(), "feature_extractor": tiny.image_processor()}
    tiny.pipeline(**parts).save_pretrained(folder)
    from imprompt.generation.pipelines import load_pipeline

    pipe = load_pipeline(folder)
    adapter = load_adapter(save_adapter(tiny.adapter(pipe.unet), tmp_path / "adapter.safetensors"))
    mask = tiny.picture(seed=3)
    wanted = Request(prompt="a cat", image_prompts=[ImagePrompt(cat, weight=0.5, mask=mask)], steps=2, seed=1)
    with attach(pipe, adapter) as images:
        (path,) = generate(pipe, images, wanted).save(tmp_path / "out.png")
    told = read_provenance(path)
    assert told["base"]["sha256"]["unet"] == {
        "diffusion_pytorch_model.safetensors": sha256(folder / "unet" / "diffusion_pytorch_model.safetensors")
    }
    assert set(told["base"]["sha256"]) == {"unet", "vae", "text_encoder", "image_encoder"}
    assert told["adapters"] == [
        {"name": "tiny-linear", "file": "adapter.safetensors", "sha256": sha256(tmp_path / "adapter.safetensors")}
    ]
    assert told["image_prompts"][0]["images"][0]["sha256"] == sha256(cat)
    assert told["image_prompts"][0]["weight"] == 0.5 and told["image_prompts"][0]["mask"]
    assert told["image_encoders"][0]["fingerprint"]
    assert (told["prompt"], told["seed"], told["steps"], told["width"]) == ("a cat", 1, 2, 32)
    assert told["versions"]["imprompt"] == __version__ and told["versions"]["torch"] == torch.__version__
    assert str(tmp_path) not in json.dumps(told)


def test_loras_are_told():
    from peft import LoraConfig

    pipe = tiny.pipeline()
    assert describe_pipeline(pipe)["loras"] == []
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="ink")
    assert describe_pipeline(pipe)["loras"] == ["ink"]


def test_a_prompt_of_features_is_told_by_their_hash():
    one, other = (describe_prompt(ImagePrompt(features=tiny.rand(3, seed=seed))) for seed in (1, 2))
    assert one["images"] == [] and one["features_sha256"] != other["features_sha256"]


def test_options_are_told_as_far_as_they_can_be():
    told = describe_options({"strength": 0.5, "image": [tiny.picture()], "latents": tiny.rand(2), "callback": print})
    assert told["strength"] == 0.5 and told["callback"] == "builtin_function_or_method"
    assert list(told["image"][0]) == ["sha256_pixels"] and list(told["latents"]) == ["sha256_numbers"]
    json.dumps(told)


def test_tensor_hashes_see_names_types_shapes_and_values():
    tensor = tiny.rand(2, 3)
    variants = [{"a": tensor}, {"b": tensor}, {"a": tensor.half()}, {"a": tensor.reshape(3, 2)}, {"a": tensor + 1}]
    assert len({hash_tensors(variant) for variant in variants}) == len(variants)
    assert hash_tensors({"a": tensor, "b": tensor}) == hash_tensors({"b": tensor, "a": tensor.clone()})


def test_a_file_is_hashed_again_when_it_changes_and_never_in_the_hubs_cache(tmp_path):
    file = tmp_path / "weights.bin"
    file.write_bytes(b"one")
    assert file_hash(file) == sha256(file)
    file.write_bytes(b"three")
    assert file_hash(file) == sha256(file)
    (tmp_path / "blobs").mkdir()
    blob = tmp_path / "blobs" / ("a" * 64)
    blob.write_bytes(b"anything")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert file_hash(link) == "a" * 64
