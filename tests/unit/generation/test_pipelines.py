"""Pipelines come from the bundle, a folder or the hub; what is wrong is said in one sentence."""

import json

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from imprompt.core.errors import BundleError, DownloadError, PromptError
from imprompt.emoji import bundle
from imprompt.generation import pipelines
from imprompt.generation.pipelines import load_embedded_adapter, load_pipeline, settings_for
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline")
    tiny.pipeline().to(dtype=torch.float16).save_pretrained(path)
    return path


def test_a_folder(folder):
    pipe = load_pipeline(folder, device="cpu")
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert pipe.unet.dtype == torch.float32  # half precision on disk, but not on a processor
    assert pipe.safety_checker is None


def test_a_number_format_and_a_scheduler_may_be_chosen(folder):
    pipe = load_pipeline(str(folder), dtype=torch.bfloat16, scheduler="dpm", device="cpu")
    assert pipe.unet.dtype == torch.bfloat16
    assert isinstance(pipe.scheduler, DPMSolverMultistepScheduler)
    with pytest.raises(PromptError, match="unknown scheduler 'fast'"):
        load_pipeline(folder, scheduler="fast")


def test_the_default_is_the_embedded_model(folder, monkeypatch):
    monkeypatch.setattr(bundle, "bundle_folder", lambda: folder)
    for base in (None, "emoji"):
        assert load_pipeline(base).name_or_path == str(folder)


def test_a_damaged_bundle(tmp_path, monkeypatch):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    monkeypatch.setattr(bundle, "bundle_folder", lambda: tmp_path)
    with pytest.raises(BundleError, match="install imprompt again"):
        load_pipeline()


def test_bases_that_cannot_be_loaded(tmp_path, folder):
    with pytest.raises(DownloadError, match="model_index.json"):
        load_pipeline(tmp_path)
    with pytest.raises(DownloadError, match="neither|nor|not a file"):
        load_pipeline("nowhere")
    with pytest.raises(DownloadError, match="single file"):
        load_pipeline(folder / "model_index.json")
    with pytest.raises(DownloadError, match="not on this machine"):
        load_pipeline("nobody/nothing")


def test_embedded_adapters(folder, tmp_path, monkeypatch):
    with pytest.raises(PromptError, match="no adapter 'minus'; expected one of global, plus"):
        load_embedded_adapter("minus")
    monkeypatch.setattr(bundle, "bundle_folder", lambda: tmp_path)
    with pytest.raises(BundleError):
        load_embedded_adapter()


def test_settings_suit_the_base():
    assert settings_for(None) == pipelines.EMBEDDED_SETTINGS
    assert settings_for("emoji", steps=3, guidance_scale=None) == {**pipelines.EMBEDDED_SETTINGS, "steps": 3}
    assert settings_for("someone/something", steps=None) == {}
