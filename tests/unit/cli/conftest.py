"""The command line over a tiny stand-in for the embedded model."""

import pytest

from imprompt.adapter.checkpoint import save_adapter
from imprompt.cli.main import main
from imprompt.emoji import bundle
from tests import tiny


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    pipe = tiny.pipeline(image_encoder=tiny.vision_tower(), feature_extractor=tiny.image_processor())
    pipe.save_pretrained(folder)
    for kind, name in (("linear", "global"), ("resampler", "plus")):
        save_adapter(tiny.adapter(pipe.unet, kind), folder / "adapters" / bundle.ADAPTER_FILES[name])
    (folder / "references").mkdir()
    for seed, name in enumerate(("apple_noto", "red-fox_blob", "tulip_ink")):
        tiny.picture(seed=seed).save(folder / "references" / f"{name}.png")
    return folder


@pytest.fixture
def embedded(tiny_bundle, monkeypatch, tmp_path):
    """Have the tiny model be the embedded one, and an empty folder the current one."""
    monkeypatch.setattr(bundle, "bundle_folder", lambda: tiny_bundle)
    monkeypatch.chdir(tmp_path)
    return tiny_bundle


@pytest.fixture
def run(capsys):
    """Run the command line; its exit status, standard output and standard error."""

    def call(*arguments):
        capsys.readouterr()  # what making the test's models printed is not the command's
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return caught.value.code, printed.out, printed.err

    return call


@pytest.fixture
def cat(tmp_path):
    path = tmp_path / "cat.png"
    tiny.picture(seed=1).save(path)
    return path
