"""Every example runs, on a tiny stand-in for the models that it names, and is short."""

import runpy
import sys
from pathlib import Path

import pytest

import imprompt
from imprompt.adapter.checkpoint import save_adapter
from imprompt.emoji import bundle
from imprompt.encoders.face import FaceEncoder
from imprompt.generation.result import read_provenance
from tests import tiny, tiny_faces

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
MAX_LINES = 40


@pytest.fixture(scope="module")
def tiny_bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    pipe = tiny.pipeline(image_encoder=tiny.vision_tower(), feature_extractor=tiny.image_processor())
    pipe.save_pretrained(folder)
    for kind, name in (("linear", "global"), ("resampler", "plus")):
        save_adapter(tiny.adapter(pipe.unet, kind), folder / "adapters" / bundle.ADAPTER_FILES[name])
    (folder / "references").mkdir()
    for seed, name in enumerate(("apple_noto", "fox_blob")):
        tiny.picture(seed=seed).save(folder / "references" / f"{name}.png")
    return folder


@pytest.fixture
def stand_in(tiny_bundle, tmp_path, monkeypatch):
    """The tiny model in place of the embedded one and of those on the hub, and few steps in place of many."""
    load_pipeline, load_adapter, request = imprompt.load_pipeline, imprompt.load_adapter, imprompt.Request
    adapter = tiny_bundle / "adapters" / bundle.ADAPTER_FILES["plus"]
    monkeypatch.setattr(bundle, "bundle_folder", lambda: tiny_bundle)
    monkeypatch.setattr(imprompt, "load_pipeline", lambda *_, **__: load_pipeline(tiny_bundle))

    def stand_in_for(*given):
        if "h94/IP-Adapter-FaceID" in given:
            return tiny_faces.adapter(tiny.unet(), "faceid")
        return load_adapter(adapter if "h94/IP-Adapter" in given else given[0])

    monkeypatch.setattr(imprompt, "load_adapter", stand_in_for)
    monkeypatch.setattr(FaceEncoder, "from_folder", lambda _folder, **options: tiny_faces.faces(**options))
    monkeypatch.setattr(imprompt, "Request", lambda **fields: request(**{**fields, "steps": 4}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example, stand_in, monkeypatch):
    assert len(example.read_text().splitlines()) <= MAX_LINES
    tiny.picture().save(stand_in / "cat.png")
    monkeypatch.setattr(sys, "argv", [str(example), "cat.png", "a cat on the moon"])
    runpy.run_path(str(example), run_name="__main__")
    made = [path for path in stand_in.rglob("*.png") if path.name != "cat.png"]
    assert len(made) >= 2
    if example.stem != "rows":  # which saves them by itself
        assert all(read_provenance(path)["versions"]["imprompt"] == imprompt.__version__ for path in made)


def test_there_are_examples():
    assert len(EXAMPLES) >= 2
