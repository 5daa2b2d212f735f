"""Finding weights here, and saying so when they are nowhere."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from imprompt.core import registry
from imprompt.core.errors import DownloadError
from imprompt.core.published import PUBLISHED_ADAPTERS, REVISIONS, PublishedAdapter, PublishedFile
from imprompt.core.weights import (
    ROOT_VARIABLE,
    in_models_root,
    resolve_file,
    resolve_folder,
)
from tests.published import PUBLISHED, write_safetensors

H94 = "h94/IP-Adapter"
PLUS = "models/ip-adapter-plus_sd15"


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
        calls.append((repository, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = resolve_folder("h94/IP-Adapter", subfolder="models/image_encoder", patterns=("*.json",))
    assert found == tmp_path / "models" / "image_encoder"
    assert calls == [("h94/IP-Adapter", REVISIONS[H94], ["models/image_encoder/*.json"])]
    resolve_folder("h94/IP-Adapter@abc:models/image_encoder")
    assert calls[1:] == [("h94/IP-Adapter", "abc", ["models/image_encoder/*"])]


@pytest.mark.parametrize("error", [OfflineModeIsEnabled("no network"), RuntimeError("anything")])
def test_a_download_that_fails_names_a_remedy(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(*args: object, **kwargs: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(DownloadError, match=r"could not be downloaded \((no network|anything)\).*give the local path"):
        resolve_file("h94/IP-Adapter/models/a.safetensors")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """A hub that has every file that lies in a folder, and the calls it got."""
    calls: list[tuple[str, str, dict[str, Any]]] = []

    def download(repository: str, name: str, **where: Any) -> str:
        calls.append((repository, name, where))
        path = tmp_path / "cache" / name
        if not path.is_file():
            raise RuntimeError(f"404 for {name}")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return calls


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put one adapter in the place of all that are published."""

    def replace(*files: PublishedFile) -> None:
        adapter = PublishedAdapter(
            name="ip-adapter-plus_sd15", repository=H94, files=files, family="sd1", preset="PLUS"
        )
        monkeypatch.setattr(registry, "PUBLISHED_ADAPTERS", (adapter,))

    return replace


def write(path: Path, content: bytes = b"weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


SHORT = [PLUS.split("/")[1], "plus_sd15", "PLUS sd15", f"{H94}:{PLUS}", f"{H94}/{PLUS}.safetensors"]


@pytest.mark.parametrize("name", SHORT)
def test_a_published_adapter_is_downloaded_at_its_revision(
    published: Callable[..., None], hub: list[Any], tmp_path: Path, name: str
) -> None:
    published(PublishedFile(f"{PLUS}.safetensors", 7, hashlib.sha256(b"weights").hexdigest()[:16]))
    path = write(tmp_path / "cache" / f"{PLUS}.safetensors")
    assert resolve_file(name) == path
    assert hub == [(H94, f"{PLUS}.safetensors", {"revision": REVISIONS[H94]})]


def test_a_revision_that_was_asked_for_is_the_only_one(
    published: Callable[..., None], hub: list[Any], tmp_path: Path
) -> None:
    published(PublishedFile(f"{PLUS}.safetensors"))
    for arguments in ({"repo_or_path": f"{H94}:{PLUS}", "revision": "abc"}, {"repo_or_path": f"{H94}@abc:{PLUS}"}):
        with pytest.raises(DownloadError, match="404"):
            resolve_file(**arguments)
    assert [where for _, _, where in hub] == [{"revision": "abc"}] * 2


@pytest.mark.parametrize("size, digest", [(98_183_288, None), (None, "ab" * 8)])
def test_another_revision_may_hold_another_file(
    published: Callable[..., None], hub: list[Any], tmp_path: Path, size: int | None, digest: str | None
) -> None:
    """What is known of a file's size and content is known of the pinned revision's."""
    published(PublishedFile(f"{PLUS}.safetensors", size, digest))
    path = write(tmp_path / "cache" / f"{PLUS}.safetensors")
    assert resolve_file(f"{H94}:{PLUS}", revision="abc") == path
    assert resolve_file(f"{H94}@abc:{PLUS}") == path
    for revision in (None, REVISIONS[H94]):
        with pytest.raises(DownloadError, match="get it again"):
            resolve_file(f"{H94}:{PLUS}", revision=revision)
    own = PublishedFile(f"{PLUS}.safetensors", size, digest, revision="refs/pr/4")
    published(own)
    assert resolve_file(f"{H94}:{PLUS}", revision=REVISIONS[H94]) == path
    with pytest.raises(DownloadError, match="get it again"):
        resolve_file(f"{H94}@refs/pr/4:{PLUS}")
    kept = write(tmp_path / "root" / H94 / f"{PLUS}.safetensors")
    assert resolve_file(f"{H94}@abc:{PLUS}", root=tmp_path / "root") == kept


def test_what_the_cache_has_will_do_where_the_pinned_revision_cannot_be_had(
    published: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    published(PublishedFile(f"{PLUS}.safetensors"))
    path = write(tmp_path / "model.safetensors")

    def download(_repository: str, _name: str, *, revision: str | None, local_files_only: bool = False) -> str:
        if not (local_files_only and revision is None):
            raise OfflineModeIsEnabled("no network")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert resolve_file(f"{H94}:{PLUS}") == path


def test_a_pickle_is_taken_where_there_is_nothing_better(
    published: Callable[..., None], hub: list[Any], tmp_path: Path
) -> None:
    published(PublishedFile(f"{PLUS}.safetensors"), PublishedFile(f"{PLUS}.bin"))
    path = write(tmp_path / "cache" / f"{PLUS}.bin")
    assert resolve_file("plus_sd15") == path
    assert [name for _, name, _ in hub] == [f"{PLUS}.safetensors"] * 2 + [f"{PLUS}.bin"]


def test_a_folder_laid_out_like_the_hub_comes_first(
    hub: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = tmp_path / "models"
    adapter = write(root / "somebody" / "adapters" / "one.safetensors")
    encoder = write(root / H94 / "models" / "image_encoder" / "config.json").parent
    assert resolve_file("somebody/adapters/one.safetensors", root=root) == adapter
    monkeypatch.setenv(ROOT_VARIABLE, str(root))
    assert resolve_file("somebody/adapters", "one.safetensors") == adapter
    assert resolve_file("somebody/adapters:one.safetensors", revision="abc") == adapter
    assert resolve_folder(f"{H94}/models/image_encoder") == encoder
    assert resolve_folder(H94, subfolder="models/image_encoder") == encoder
    assert in_models_root("a/b", "c") == root / "a" / "b" / "c"
    assert hub == []


def test_no_root_and_a_root_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    assert in_models_root("a/b") is None
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(DownloadError, match=r"\$IMPROMPT_MODELS names '.*none', which is no folder"):
        resolve_file("a/b:c.bin")
    with pytest.raises(DownloadError, match="root= names '.*other', which is no folder"):
        resolve_file("a/b:c.bin", root=tmp_path / "other")


def test_a_root_that_holds_only_the_pickle(published: Callable[..., None], hub: list[Any], tmp_path: Path) -> None:
    published(PublishedFile(f"{PLUS}.safetensors"), PublishedFile(f"{PLUS}.bin"))
    path = write(tmp_path / H94 / f"{PLUS}.bin")
    assert resolve_file("plus_sd15", root=tmp_path) == path
    assert hub == []


def test_nothing_outside_the_root_is_reached(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret")
    root = write(tmp_path / "root" / "a" / "b" / "c").parents[2]
    for name in ("a/b/../../../secret", "a/b:../../../secret", f"a/b:{secret}"):
        with pytest.raises(DownloadError, match="is not a file or folder here, nor a hub repository"):
            resolve_file(name, root=root)
    with pytest.raises(DownloadError, match="is not a file or folder here, nor a hub repository"):
        resolve_file("a/b", "../../../secret", root=root)


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    write(tmp_path / H94 / f"{PLUS}.safetensors")
    with pytest.raises(DownloadError, match=r"has 7 bytes, but '.*' was published with 98,183,288; get it again"):
        resolve_file(f"{H94}:{PLUS}", root=tmp_path)


def test_a_file_of_another_content_is_refused(tmp_path: Path) -> None:
    """Of the true size, but with weights that are all zero."""
    path = tmp_path / H94 / f"{PLUS}.safetensors"
    path.parent.mkdir(parents=True)
    write_safetensors(PUBLISHED["ip-adapter-plus_sd15"], path)
    with pytest.raises(DownloadError, match=r"has another content \(SHA-256 .*\) than .* \(a1c250be40455cc6\); get it"):
        resolve_file(f"{H94}:{PLUS}", root=tmp_path)
    assert resolve_file(path) == path  # the file itself is loaded as it is


def test_a_file_in_the_hubs_cache_is_known_by_the_name_of_its_content(
    published: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    published(PublishedFile(f"{PLUS}.safetensors", None, "ab" * 8))
    blob = write(tmp_path / "blobs" / ("ab" * 32))
    link = tmp_path / "snapshot.safetensors"
    link.symlink_to(blob)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(link))
    assert resolve_file("plus_sd15") == link
    published(PublishedFile(f"{PLUS}.safetensors", None, "cd" * 8))
    with pytest.raises(DownloadError, match="has another content"):
        resolve_file("plus_sd15")


def test_names_that_are_nothing() -> None:
    with pytest.raises(DownloadError, match=r"nor a published adapter; the nearest are 'ip-adapter-plus_"):
        resolve_file("plux_sd15")
    with pytest.raises(
        DownloadError, match=r"No published adapter is at 'h94/IP-Adapter:models/plux_sd15'; the nearest"
    ):
        resolve_file(f"{H94}:models/plux_sd15")


@pytest.mark.parametrize("adapter", PUBLISHED_ADAPTERS, ids=lambda adapter: adapter.name)
def test_every_published_adapter_asks_the_hub_for_its_file(hub: list[Any], adapter: PublishedAdapter) -> None:
    with pytest.raises(DownloadError, match="could not be downloaded"):
        resolve_file(adapter.name)
    assert hub[0][:2] == (adapter.repository, adapter.files[0].path)
    assert hub[0][2]["revision"] in (REVISIONS.get(adapter.repository), adapter.files[0].revision)
