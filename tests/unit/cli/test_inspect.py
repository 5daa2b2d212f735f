"""`imprompt inspect`: what a file is, in a table or as JSON."""

import json

import pytest
import torch
from safetensors.torch import save_file

from imprompt.adapter.checkpoint import save_adapter
from imprompt.adapter.spec import PROJECTOR_KINDS
from imprompt.cli.inspect import PROJECTORS
from tests import tiny
from tests.published import PUBLISHED, write_safetensors

EMBEDDED_PLUS = "adapters/ip-adapter-plus_emoji.safetensors"


def inspect(run, *arguments):
    code, out, err = run("inspect", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_file_with_its_spec(embedded, run):
    facts = inspect(run, embedded / EMBEDDED_PLUS)
    adapter = tiny.adapter(tiny.unet(), "resampler")
    assert facts["variant"] == "tiny-resampler"
    assert facts["parameters"] == adapter.num_parameters
    assert (facts["tokens"], facts["sites"], facts["token_width"]) == (6, 16, 24)
    assert facts["encoder"]["name"] == "tiny CLIP" and facts["encoder"]["index"] == -2
    assert facts["identified_by"] == "the spec in its metadata" and facts["cannot_be_known"] == []
    assert facts["fits"] == "a model of its own shape and its fine-tunes (16 attentions of width 24)"


def published(tmp_path, name):
    """A published file of its true size that takes no disk."""
    file = PUBLISHED[name]
    path = tmp_path / file.repository / file.path.removesuffix(".bin").removesuffix(".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_safetensors(file, path.with_name(f"{path.name}.safetensors"))


def test_a_published_file_is_known_by_its_shapes(tmp_path, run):
    facts = inspect(run, published(tmp_path, "ip-adapter-plus_sd15"))
    assert facts["variant"] == "ip-adapter-plus_sd15"
    assert facts["encoder"]["name"] == "OpenCLIP ViT-H/14"
    assert facts["encoder"]["get_it_from"] == "h94/IP-Adapter/models/image_encoder"
    assert facts["fits"].startswith("Stable Diffusion 1.x") and facts["licence"] == "apache-2.0"
    assert "ip-adapter-plus-face_sd15" in facts["same_shapes"]
    assert any("plus-face" in unknown for unknown in facts["cannot_be_known"])


def test_a_face_adapter_tells_both_its_encoders_and_its_lora(tmp_path, run):
    facts = inspect(run, published(tmp_path, "ip-adapter-faceid-plus_sd15"))
    assert facts["variant"] == "ip-adapter-faceid-plus_sd15" and facts["identified_by"] == "its name"
    assert facts["encoder"]["get_it_from"] == "InsightFace's pack 'buffalo_l'"
    assert facts["encoder"]["length"] == "brought to 1"
    assert facts["face_picture"]["name"] == "OpenCLIP ViT-H/14" and facts["lora"] == "rank 128, in 32 attentions"
    assert any("version 1 or 2" in unknown for unknown in facts["cannot_be_known"])


def test_the_callers_word_decides(tmp_path, run):
    path = published(tmp_path, "ip-adapter-faceid-plus_sd15")
    facts = inspect(run, path, "--variant", "ip-adapter-faceid-plusv2_sd15")
    assert facts["variant"] == "ip-adapter-faceid-plusv2_sd15" and facts["identified_by"] == "what was asked for"
    code, _, err = run("inspect", path, "--variant", "ip-adapter_sdxl")
    assert code == 1 and "shapes of ip-adapter-faceid-plusv2_sd15" in err
    code, _, err = run("inspect", path, "--variant", "ip-adapter-faceid-plusv3_sd15")
    assert code == 1 and "near to it are ip-adapter-faceid-plusv2_sd15" in err


def test_a_file_with_two_adapters(tmp_path, run):
    facts = inspect(run, published(tmp_path, "csgo"))
    assert (facts["part_content"]["tokens"], facts["part_style"]["tokens"]) == (4, 16)
    assert any("ControlNet" in words for words in facts["part_style"]["left_aside"])


def test_every_kind_of_projector_has_words_and_kolors_its_own_base(tmp_path, run, monkeypatch):
    monkeypatch.setattr("imprompt.core.files.sha256_file", lambda _path: "0" * 64)
    assert PROJECTORS.keys() == PROJECTOR_KINDS.keys()
    facts = inspect(run, published(tmp_path, "kolors-ip-adapter-plus"))
    assert facts["fits"] == "Kolors and its fine-tunes (70 attentions of width 2048)"


@pytest.mark.parametrize("name", ["pulid_flux_v0.9.1", "flux.1-dev-ip-adapter", "sd3.5-large-ip-adapter"])
def test_the_table_of_every_family(tmp_path, run, name, monkeypatch):
    monkeypatch.setattr("imprompt.core.files.sha256_file", lambda _path: "0" * 64)  # gigabytes of zeros
    code, out, _ = run("inspect", published(tmp_path, name))
    assert code == 0 and name in out


def test_a_folder_of_a_training_run(embedded, tmp_path, run):
    adapter = tiny.adapter(tiny.unet(), "resampler")
    renamed = {"image_proj": "image_proj_model", "ip_adapter": "adapter_modules"}
    state = {f"{renamed[key.partition('.')[0]]}.{key.partition('.')[2]}": v for key, v in adapter.state_dict().items()}
    (tmp_path / "checkpoint-10").mkdir()
    spec = {"imprompt_spec": adapter.spec.to_json()}  # heads of the tiny one cannot be told from its shapes
    save_file(state, tmp_path / "checkpoint-10" / "model.safetensors", metadata=spec)
    facts = inspect(run, tmp_path / "checkpoint-10")
    assert facts["layout"] == "a checkpoint of the official training scripts" and facts["file"] == "model.safetensors"


def test_the_table(embedded, run):
    code, out, _ = run("inspect", embedded / EMBEDDED_PLUS)
    lines = [line.split() for line in out.splitlines()]
    assert code == 0 and ["tokens", "6"] in lines and ["variant", "tiny-resampler"] in lines


def test_a_picture_tells_how_it_was_made(embedded, run):
    run("generate", "a cat", "--steps", "1", "--seed", "7", "-o", "out.png")
    assert inspect(run, "out.png")["seed"] == 7
    code, out, _ = run("inspect", "out.png")
    assert code == 0 and "a cat" in out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.safetensors", "not a file or folder here"),
        ("notes.txt", "ends in '.txt'"),
        ("cut.safetensors", "no complete safetensors file"),
        ("other.safetensors", "no image prompt adapter"),
        ("plain.png", "carries no provenance"),
    ],
)
def test_files_that_are_no_adapter(tmp_path, run, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    tiny.picture().save(tmp_path / "plain.png")
    code, out, err = run("inspect", name)
    assert code == 1 and out == "" and words in err and err.count("\n") == 1


def test_what_is_saved_and_inspected_is_the_same(tmp_path, run):
    adapter = tiny.adapter(tiny.unet("sd2"), "mlp")
    facts = inspect(run, save_adapter(adapter, tmp_path / "mine.safetensors"))
    assert facts["variant"] == adapter.spec.name and facts["projector"].startswith("full")
