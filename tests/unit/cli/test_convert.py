"""`imprompt convert`: from one layout into another, and nothing is replaced by what differs."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from imprompt.adapter.checkpoint import convert as converting
from imprompt.adapter.checkpoint import load_adapter, read_spec, save_adapter, writing
from imprompt.cli import convert as command
from tests import tiny


@pytest.fixture
def source(tmp_path):
    return save_adapter(tiny.adapter(tiny.unet(), official=True), tmp_path / "source.safetensors")


def test_the_targets_are_those_that_can_be_written():
    assert set(command.TARGETS) == set(writing.TARGETS)


@pytest.mark.parametrize("target", ["native", "official", "comfy"])
def test_into_every_layout_of_this_adapter(source, tmp_path, run, target):
    code, out, err = run("convert", source, tmp_path / "new.safetensors", "--to", target)
    assert code == 0, err
    assert out.strip() == str(tmp_path / "new.safetensors")
    before, after = load_adapter(source), load_adapter(tmp_path / "new.safetensors")
    assert before.spec == after.spec
    assert all(torch.equal(value, after.state_dict()[key]) for key, value in before.state_dict().items())
    assert ("note: ComfyUI's unified loader" in err) == (target == "comfy")


def test_into_a_pickle(source, tmp_path, run):
    code, _, err = run("convert", source, tmp_path / "new.bin", "--to", "official")
    assert code == 0, err
    content = torch.load(tmp_path / "new.bin", weights_only=True)
    assert set(content) == {"image_proj", "ip_adapter"}


def test_into_a_folder_under_its_own_name(source, tmp_path, run):
    code, out, _ = run("convert", source, tmp_path / "folder")
    assert code == 0 and out.strip() == str(tmp_path / "folder" / "tiny-linear.safetensors")


def test_number_formats(source, tmp_path, run):
    run("convert", source, tmp_path / "half.safetensors", "--dtype", "fp16")
    assert {value.dtype for value in load_file(tmp_path / "half.safetensors").values()} == {torch.float16}
    run("convert", tmp_path / "half.safetensors", tmp_path / "kept.safetensors")
    assert {value.dtype for value in load_file(tmp_path / "kept.safetensors").values()} == {torch.float16}


def test_what_differs_replaces_nothing(source, tmp_path, run, monkeypatch):
    target = tmp_path / "new.safetensors"
    target.write_bytes(b"old")
    arrange = writing.arrange

    def lossy(tensors: Any, *arguments: Any) -> Any:
        return {key: value * 0 if "to_v_ip" in key else value for key, value in arrange(tensors, *arguments).items()}

    monkeypatch.setattr("imprompt.adapter.checkpoint.arrange", lossy)
    code, out, err = run("convert", source, target)
    assert code == 1 and out == "" and "came back with other numbers" in err
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.safetensors", "source.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["new.txt"], "ends in .safetensors"),
        (["new.bin"], "cannot save an adapter as"),
        (["new.safetensors", "--to", "diffusers"], "a UNet of its own shape"),
        (["new.safetensors", "--part", "content"], "holds one adapter"),
        (["new.safetensors", "--variant", "ip-adapter_sd15"], "says 'tiny-linear'; leave --variant out"),
    ],
)
def test_refusals(source, tmp_path, run, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("convert", source, *arguments)
    assert code == 1 and out == "" and words in err and err.count("\n") == 1


def test_the_published_name_is_what_comfyui_wants():
    adapter = tiny.adapter(tiny.unet())
    assert converting.name_for(adapter) == "tiny-linear.safetensors"


def test_both_parts_of_csgo_and_what_is_beside_them(tmp_path, run):
    from imprompt.adapter.checkpoint import read_beside, save_parts
    from tests.published import PUBLISHED, write_safetensors
    from tests.unit.adapter.test_formats import built, narrow

    header = write_safetensors(PUBLISHED["csgo"], tmp_path / "header.safetensors")
    parts = [built(narrow(read_spec(header, part=part))) for part in ("content", "style")]
    beside = {"conv_in_unet_sd.weight": torch.ones(2)}
    source = save_parts(parts, tmp_path / "source.bin", beside=beside)
    for name, arguments in (("native", []), ("official", ["--to", "official"]), ("half", ["--dtype", "fp16"])):
        code, out, err = run("convert", source, tmp_path / f"{name}.safetensors", *arguments)
        assert code == 0 and out.strip().endswith(f"{name}.safetensors"), err
        for part, adapter in zip(("content", "style"), parts, strict=True):
            again = load_adapter(tmp_path / f"{name}.safetensors", part=part, dtype=None).state_dict()
            kept = (value.half() if name == "half" else value for value in adapter.state_dict().values())
            assert all(map(torch.equal, again.values(), kept))
        assert read_beside(tmp_path / f"{name}.safetensors").keys() == beside.keys()
    code, _, err = run("convert", source, tmp_path / "style.safetensors", "--part", "style")
    assert code == 0 and load_adapter(tmp_path / "style.safetensors").spec.is_partial, err
    code, _, err = run("convert", source, tmp_path / "a.safetensors", "--to", "comfy")
    assert code == 1 and "pass --part content" in err
