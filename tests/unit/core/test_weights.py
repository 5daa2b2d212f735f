"""Finding weights here, and saying so when they are nowhere."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from imprompt.core.errors import DownloadError
from imprompt.core.weights import resolve_file, resolve_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "adapter.safetensors").touch()
    return tmp_path


def test_files_and_folders_on_this_machine(folder: Path) -> None:
    file = folder / "models" / "adapter.safetensors"
    assert resolve_file(file) == file
    assert resolve_file(folder / "models", "adapter.safetensors") == file
    assert resolve_file(str(folder), "adapter.safetensors", subfolder="models") == file
    assert resolve_folder(folder) == folder
    assert resolve_folder(folder, subfolder="models") == folder / "models"


def test_a_file_that_is_not_in_its_folder(folder: Path) -> None:
    with pytest.raises(DownloadError, match=r"There is no file '.*other.bin'; in '.*' there are: adapter.safetensors"):
        resolve_file(folder / "models", "other.bin")
    with pytest.raises(DownloadError, match=r"There is no folder '.*other'"):
        resolve_folder(folder, subfolder="other")


@pytest.mark.parametrize("name", ["./none.safetensors", "/none/at/all.bin", "none", "a/../../etc/passwd"])
def test_what_is_neither_a_path_nor_a_repository(name: str) -> None:
    with pytest.raises(DownloadError, match="is not a file or folder here, nor a hub repository"):
        resolve_file(name, "x")


def test_a_repository_alone_names_no_file() -> None:
    with pytest.raises(DownloadError, match="say which of its files, as 'h94/IP-Adapter/FILE'"):
        resolve_file("h94/IP-Adapter")


def test_files_of_the_hub_are_asked_for_by_repository_and_name(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(repository: str, name: str, revision: str | None) -> str:
        calls.append((repository, name, revision))
        return "/cache/file"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert resolve_file("h94/IP-Adapter/models/a.safetensors") == Path("/cache/file")
    resolve_file("h94/IP-Adapter", "a.safetensors", subfolder="models", revision="abc")
    assert calls == [
        ("h94/IP-Adapter", "models/a.safetensors", None),
        ("h94/IP-Adapter", "models/a.safetensors", "abc"),
    ]


def test_folders_of_the_hub_download_no_more_than_was_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "models" / "image_encoder").mkdir(parents=True)
    calls = []

    def download(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append((repository, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = resolve_folder("h94/IP-Adapter", subfolder="models/image_encoder", patterns=("*.json",))
    assert found == tmp_path / "models" / "image_encoder"
    assert calls == [("h94/IP-Adapter", ["models/image_encoder/*.json"])]


@pytest.mark.parametrize("error", [OfflineModeIsEnabled("no network"), RuntimeError("anything")])
def test_a_download_that_fails_names_a_remedy(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(*args: object, **kwargs: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(DownloadError, match=r"could not be downloaded \((no network|anything)\).*give the local path"):
        resolve_file("h94/IP-Adapter/models/a.safetensors")
