"""`imprompt inspect OWNER/REPO`: the published adapters of a repository, off the table and without a download."""

import json

import huggingface_hub
import pytest

from imprompt.core.published import PUBLISHED_ADAPTERS, REVISIONS
from imprompt.core.registry import find_adapter

REPOSITORIES = sorted({adapter.repository for adapter in PUBLISHED_ADAPTERS})


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    def download(*_arguments, **_where):
        raise AssertionError("a listing downloads nothing")

    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, download)


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_every_repository_of_the_table_is_listed(repository, run):
    code, out, err = run("inspect", repository, "--json")
    assert code == 0, err
    facts = json.loads(out)
    adapters = [adapter for adapter in PUBLISHED_ADAPTERS if adapter.repository == repository]
    assert (facts["repository"], facts["revision"]) == (repository, REVISIONS.get(repository))
    assert [each["file"] for each in facts["adapters"]] == [adapter.files[0].path for adapter in adapters]
    for each, adapter in zip(facts["adapters"], adapters, strict=True):
        assert each["licence"] == adapter.licence and (each["encoder"] or each["face_networks"])
        name = each["load"].split('"')[1]  # as load_adapter("name") is written
        assert each["variant"] == name and find_adapter(name) == adapter


def test_what_is_said_of_one(run):
    _, out, _ = run("inspect", "h94/IP-Adapter-FaceID", "--json")
    plus = next(each for each in json.loads(out)["adapters"] if each["variant"] == "ip-adapter-faceid-plusv2_sd15")
    assert plus["what"].startswith("an adapter for Stable Diffusion 1.x that follows a face and its picture")
    assert plus["encoder"] == "OpenCLIP ViT-H/14, h94/IP-Adapter/models/image_encoder"
    assert plus["face_networks"] == "InsightFace's pack 'buffalo_l'" and plus["licence"] == "non-commercial"
    assert plus["lora"] == "ip-adapter-faceid-plusv2_sd15_lora.safetensors" and plus["bytes"] == 156_558_509


def test_both_parts_of_a_file_are_named(run):
    _, out, _ = run("inspect", "InstantX/CSGO", "--json")
    load = json.loads(out)["adapters"][0]["load"]
    assert load == 'load_adapter("csgo", part="content"), load_adapter("csgo", part="style")'


def test_the_table(run):
    code, out, _ = run("inspect", "h94/IP-Adapter")
    assert code == 0
    for words in ("models/ip-adapter_sd15.safetensors", 'load_adapter("ip-adapter_sdxl")', "apache-2.0", "ViT-bigG"):
        assert words in out


@pytest.mark.parametrize("name", ["somebody/adapters", "h94/IP-Adapters"])
def test_an_unknown_repository(name, run):
    code, out, err = run("inspect", name)
    assert code == 1 and out == "" and f"'{name}' is a hub repository; say which of its files" in err


def test_a_folder_of_that_name_here_comes_first(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "h94" / "IP-Adapter").mkdir(parents=True)
    code, _, err = run("inspect", "h94/IP-Adapter")
    assert code == 1 and "is a folder with nothing" in err
