"""A published adapter is loaded by its name, without a hub, from a folder that is laid out like it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from imprompt.adapter.checkpoint import load_adapter, read_spec, save_adapter
from imprompt.core import registry
from imprompt.core.errors import DownloadError
from imprompt.core.published import PublishedAdapter, PublishedFile
from imprompt.core.weights import ROOT_VARIABLE
from tests import tiny

PLUS = "models/ip-adapter-plus_sd15"
NAMES = [f"h94/IP-Adapter:{PLUS}", f"h94/IP-Adapter/{PLUS}.safetensors", "plus_sd15", "PLUS sd15"]


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A tiny adapter where the published one would be."""
    adapter = tiny.adapter(tiny.unet(), "resampler")
    save_adapter(adapter, tmp_path / "h94" / "IP-Adapter" / f"{PLUS}.safetensors")
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    return adapter


@pytest.mark.parametrize("name", NAMES)
def test_by_name(saved: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    row = PublishedAdapter(
        name="ip-adapter-plus_sd15",
        repository="h94/IP-Adapter",
        files=(PublishedFile(f"{PLUS}.safetensors"), PublishedFile(f"{PLUS}.bin")),
        family="sd1",
        preset="PLUS",
    )
    monkeypatch.setattr(registry, "PUBLISHED_ADAPTERS", (row,))
    loaded = load_adapter(name)
    assert loaded.spec == saved.spec == read_spec(name)
    for key, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("saved")
def test_a_file_that_is_not_the_published_one_is_refused(name: str) -> None:
    with pytest.raises(DownloadError, match=r"bytes, but 'models/ip-adapter-plus_sd15.safetensors' was published with"):
        load_adapter(name)


def test_without_the_suffix_in_two_parts(saved: Any, tmp_path: Path) -> None:
    """A repository that is not in the table is read as ever."""
    save_adapter(saved, tmp_path / "somebody" / "adapters" / "mine.safetensors")
    assert load_adapter("somebody/adapters", "mine.safetensors").spec == saved.spec
    assert load_adapter("somebody/adapters:mine.safetensors").spec == saved.spec
