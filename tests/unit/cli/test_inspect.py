"""`imprompt inspect`: what a file is, in a table or as JSON."""

import json

import pytest
import torch

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.checkpoint import save_adapter
from imprompt.adapter.checkpoint.identify import identify
from tests import tiny

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
    assert facts["fits"] == "a UNet with 16 cross-attentions of width 24"


def official(tmp_path, **changes):
    """A file of the shapes of `ip-adapter-plus_sd15`, without a spec, in half precision."""
    sites = {f"ip_adapter.{number}.to_{part}_ip.weight": (320, 768) for number in range(1, 32, 2) for part in "kv"}
    layers = {
        f"image_proj.layers.{layer}.{name}": shape
        for layer in range(4)
        for name, shape in {
            "0.to_q.weight": (768, 768),
            "0.to_kv.weight": (1536, 768),
            "0.to_out.weight": (768, 768),
            "1.1.weight": (3072, 768),
        }.items()
    }
    projector = {
        "image_proj.latents": (1, 16, 768),
        "image_proj.proj_in.weight": (768, 1280),
        "image_proj.norm_out.weight": (768,),
    }
    shapes = {**sites, **layers, **projector, **changes}
    path = tmp_path / "unnamed.bin"
    content = {"image_proj": {}, "ip_adapter": {}}
    for key, shape in shapes.items():
        section, _, name = key.partition(".")
        content[section][name] = torch.zeros(shape, dtype=torch.float16)
    torch.save(content, path)
    assert isinstance(Adapter, type) and identify(shapes)
    return path


def test_a_published_file_is_known_by_its_shapes(tmp_path, run):
    facts = inspect(run, official(tmp_path))
    assert facts["variant"] == "ip-adapter-plus_sd15"
    assert facts["encoder"]["name"] == "OpenCLIP ViT-H/14"
    assert facts["encoder"]["get_it_from"] == "h94/IP-Adapter/models/image_encoder"
    assert facts["fits"].startswith("Stable Diffusion 1.x")
    assert any("plus-face" in unknown for unknown in facts["cannot_be_known"])


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
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    tiny.picture().save(tmp_path / "plain.png")
    code, out, err = run("inspect", name)
    assert code == 1 and out == "" and words in err and err.count("\n") == 1


def test_what_is_saved_and_inspected_is_the_same(tmp_path, run):
    adapter = tiny.adapter(tiny.unet("sd2"), "mlp")
    facts = inspect(run, save_adapter(adapter, tmp_path / "mine.safetensors"))
    assert facts["variant"] == adapter.spec.name and facts["projector"].startswith("full")
