"""`imprompt doctor`: what is in place, and whether an adapter, a base and an encoder belong together."""

import json

import pytest

from imprompt.adapter.checkpoint import save_adapter
from imprompt.cli import doctor as command
from imprompt.encoders.face import FaceEncoder
from tests import tiny, tiny_faces
from tests.published import PUBLISHED, write_safetensors


def ask(run, *arguments):
    code, out, err = run("doctor", *arguments, "--json")
    assert err == ""
    return code, {finding["check"]: finding for finding in json.loads(out)}


@pytest.fixture
def base(tmp_path):
    tiny.unet().save_pretrained(tmp_path / "base" / "unet")
    return tmp_path / "base"


@pytest.fixture
def encoder(tmp_path):
    tiny.vision_tower().save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture
def adapter(tmp_path):
    return save_adapter(tiny.adapter(tiny.unet()), tmp_path / "adapter.safetensors")


def test_a_machine_that_runs_these_tests_is_well(embedded, run):
    code, findings = ask(run)
    assert code == 0, [finding for finding in findings.values() if finding["state"] == "wrong"]
    assert findings["torch"]["state"] == findings["cpu"]["state"] == findings["emoji plus"]["state"] == "ok"
    assert "not here" in findings["OpenCLIP ViT-H/14"]["found"]


def test_an_old_package_is_wrong_and_told_how_to_renew(embedded, run, monkeypatch):
    from importlib import metadata

    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.1.0" if name == "torch" else version(name))
    code, findings = ask(run)
    assert code == 1
    assert findings["torch"]["state"] == "wrong" and findings["torch"]["remedy"] == "pip install 'torch>=2.10'"


def test_a_missing_package(embedded, run, monkeypatch):
    from importlib import metadata

    version = metadata.version

    def without(name):
        if name in ("peft", "pillow"):
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without)
    code, findings = ask(run)
    assert code == 1 and findings["pillow"]["state"] == "wrong" and findings["peft"]["state"] == "note"


def test_three_that_belong_together(embedded, run, adapter, base, encoder):
    code, findings = ask(run, "--adapter", adapter, "--base", base, "--encoder", encoder)
    assert code == 0
    assert findings["base"]["found"].startswith("UNet2DConditionModel has all 16 places")
    assert findings["encoder"]["state"] == "ok"


def test_the_embedded_base(embedded, run, adapter):
    code, findings = ask(run, "--adapter", adapter, "--base", "emoji")
    assert code == 0 and findings["base"]["state"] == "ok"


def test_another_base_and_another_encoder(embedded, run, tmp_path, base, encoder):
    file = write_safetensors(PUBLISHED["ip-adapter_sdxl"], tmp_path / "ip-adapter_sdxl.safetensors")
    code, findings = ask(run, "--adapter", file, "--base", base, "--encoder", encoder)
    assert code == 1
    assert "70 attentions of width 2048" in findings["base"]["found"]
    assert "width 1280 (OpenCLIP ViT-bigG/14)" in findings["encoder"]["found"]
    assert "h94/IP-Adapter/sdxl_models/image_encoder" in findings["encoder"]["found"]


def test_the_classic_mistake_is_named(embedded, run, tmp_path):
    """ViT-H's hidden states are as wide as ViT-bigG's pooled output."""
    (tmp_path / "vit-h").mkdir()
    config = {"model_type": "clip_vision_model", "hidden_size": 1280, "projection_dim": 1024}
    (tmp_path / "vit-h" / "config.json").write_text(json.dumps(config))
    file = write_safetensors(PUBLISHED["ip-adapter_sdxl"], tmp_path / "ip-adapter_sdxl.safetensors")
    code, findings = ask(run, "--adapter", file, "--encoder", tmp_path / "vit-h")
    assert code == 1 and "gives 1024, which is OpenCLIP ViT-H/14" in findings["encoder"]["found"]
    plus = write_safetensors(PUBLISHED["ip-adapter-plus_sdxl_vit-h"], tmp_path / "plus.safetensors")
    code, findings = ask(run, "--adapter", plus, "--encoder", tmp_path / "vit-h")
    assert code == 0 and findings["encoder"]["state"] == "ok"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "holds no denoiser"),
        ("{", "is no JSON"),
        ("[]", "holds no configuration"),
        ('{"_class_name": "os.system"}', "class 'os.system'"),
        ('{"_class_name": "DDIMScheduler"}', "class 'DDIMScheduler'"),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_bases_that_are_none(embedded, run, adapter, tmp_path, content, words):
    (tmp_path / "other").mkdir()
    if content is not None:
        (tmp_path / "other" / "config.json").write_text(content)
    code, findings = ask(run, "--adapter", adapter, "--base", tmp_path / "other")
    assert code == 1 and words in findings["base"]["found"]


def test_encoders_that_are_none(embedded, run, adapter, tmp_path, base):
    code, findings = ask(run, "--adapter", adapter, "--encoder", base)
    assert code == 1 and "holds no config.json" in findings["encoder"]["found"]
    code, findings = ask(run, "--adapter", adapter, "--encoder", base / "unet")
    assert code == 1 and "no image encoder that imprompt knows" in findings["encoder"]["found"]


def test_an_adapter_that_cannot_be_read(embedded, run, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    code, findings = ask(run, "--adapter", tmp_path / "cut.safetensors")
    assert code == 1 and "no complete safetensors file" in findings["adapter"]["found"]
    code, findings = ask(run, "--base", "emoji")
    assert code == 1 and findings["adapter"]["remedy"] == "give --adapter FILE"


def test_the_table(embedded, run, adapter):
    code, out, _ = run("doctor", "--adapter", adapter)
    assert code == 0 and "tiny-linear, 4 tokens" in out and "[" not in out.replace("'imprompt[face]'", "")


def test_a_device_that_counts_wrong(monkeypatch):
    import torch

    monkeypatch.setattr(torch, "ones", torch.zeros)
    finding = command._checked("cpu", lambda: command._try_device("cpu"))
    assert finding.state == "wrong" and "expected 262144" in finding.found


def test_the_denoiser_of_a_base_is_the_one_that_attach_takes(tmp_path):
    for name in ("config.json", "decoder", "prior", "transformer_2", "transformer", "unet"):
        file = tmp_path / name if name.endswith(".json") else tmp_path / name / "config.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"_class_name": name}))
        assert command._denoiser_config(str(tmp_path))["_class_name"] == name


def face_adapter(tmp_path, kind):
    return save_adapter(tiny_faces.adapter(tiny_faces.host(), kind), tmp_path / f"{kind}.safetensors")


def test_which_face_network_an_adapter_wants(embedded, run, tmp_path):
    code, findings = ask(run, "--adapter", face_adapter(tmp_path, "faceid"))
    assert code == 0 and "encoder" not in findings
    assert findings["faces"]["state"] == "note" and "it wants tiny faces; none is given" in findings["faces"]["found"]
    file = write_safetensors(PUBLISHED["ip-adapter-faceid-plusv2_sd15"], tmp_path / "plusv2.safetensors")
    code, findings = ask(run, "--adapter", file, "--variant", "ip-adapter-faceid-plusv2_sd15")
    assert code == 0 and "(buffalo_l)" in findings["faces"]["found"]
    assert "OpenCLIP ViT-H/14 for the aligned face" in findings["encoder"]["found"]
    assert "h94/IP-Adapter/models/image_encoder" in findings["encoder"]["found"]


@pytest.mark.parametrize(
    ("width", "name", "state", "words"),
    [
        (512, "tiny faces", "ok", "as tiny-faceid-plusv2 wants"),
        (512, "others", "note", "was trained on tiny faces; others has the same width"),
        (128, "others", "wrong", "wants embeddings of width 512 (tiny faces); others gives 128"),
    ],
)
def test_face_networks(embedded, run, tmp_path, monkeypatch, encoder, width, name, state, words):
    faces = FaceEncoder(tiny_faces.Corners(), tiny_faces.Cells(width, name))
    monkeypatch.setattr(FaceEncoder, "from_folder", lambda folder: faces)
    adapter = face_adapter(tmp_path, "faceid-plusv2")
    code, findings = ask(run, "--adapter", adapter, "--faces", tmp_path, "--encoder", encoder)
    assert code == (state == "wrong") and findings["encoder"]["state"] == "ok"
    assert findings["faces"]["state"] == state and words in findings["faces"]["found"]


def test_folders_of_faces_that_are_none(embedded, run, tmp_path, adapter):
    code, findings = ask(run, "--adapter", face_adapter(tmp_path, "faceid"), "--faces", tmp_path / "none")
    assert code == 1 and "is no folder" in findings["faces"]["found"]
    code, findings = ask(run, "--adapter", adapter, "--faces", tmp_path)
    assert code == 1 and findings["faces"]["remedy"] == "leave --faces out"


def test_parts_and_lora_files(embedded, run, tmp_path, adapter):
    file = write_safetensors(PUBLISHED["csgo"], tmp_path / "csgo.safetensors")
    code, findings = ask(run, "--adapter", file)
    assert code == 1 and "pass --part content" in findings["adapter"]["found"]
    code, findings = ask(run, "--adapter", file, "--part", "style")
    assert code == 0 and findings["adapter"]["found"].startswith("csgo-style")
    code, findings = ask(run, "--adapter", adapter, "--lora", tmp_path / "none.safetensors")
    assert code == 1 and findings["adapter"]["state"] == "ok" and findings["lora"]["state"] == "wrong"
    code, findings = ask(run, "--part", "style", "--lora", "x")
    assert code == 1 and findings["adapter"]["found"] == "--part and --lora say something of one"
