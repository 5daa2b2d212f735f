"""Where weights are: a file or folder on this machine, a repository on the model hub, or a published adapter's name."""

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from imprompt.core.errors import DownloadError, first_line
from imprompt.core.files import sha256_file
from imprompt.core.published import REVISIONS, PublishedFile
from imprompt.core.registry import (
    HubName,
    describe_nearest,
    files_at,
    find_adapter,
    is_published,
    parse_hub_name,
)

ROOT_VARIABLE = "IMPROMPT_MODELS"

_HASH_LENGTH = 64  # as the hub's cache names what it has checked


def resolve_file(
    repo_or_path: str | Path,
    filename: str | None = None,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    root: str | Path | None = None,
) -> Path:
    """Find one file: here, in a folder laid out like the hub, or on the hub.

    Args:
        repo_or_path: A file, a folder, a repository `"owner/name"`, a file in one (`"owner/name/folder/file"`,
            `"owner/name:folder/file"`, `"owner/name@revision:folder/file"`), or the name of a published adapter, as
            `core.registry.find_adapter` takes it.
        filename: The file's name inside a folder or repository.
        subfolder: The folder it lies in, inside the folder or repository.
        revision: A commit, tag or branch of the repository; by default the one that the registry pins, if any.
        root: A folder that holds repositories as `owner/name/...`; by default the one that `$IMPROMPT_MODELS` names.

    Returns:
        A path on this machine; from the hub, inside its cache. A published file has been checked: its size, and how its
        hash begins, are as they should be where that is known. A revision of one's own choice may hold another.

    Raises:
        DownloadError: It is neither here nor reachable, or not what was published.
    """
    local = Path(repo_or_path).expanduser()
    if local.is_file():
        return local
    inside = "/".join(part for part in (subfolder, filename) if part)
    if local.is_dir():
        return _existing(local / inside, "file")
    place, files = _published_files(str(repo_or_path), inside)
    for file in files:
        kept = in_models_root(place.repository, file.path, root=root)
        if kept is not None and kept.is_file():
            return _checked(kept, file) if _is_pinned(place, file, revision) else kept
    failures: list[DownloadError] = []
    for file in files:
        try:
            found = _hub_file(place, file, revision)
            return _checked(found, file) if _is_pinned(place, file, revision) else found
        except DownloadError as error:
            failures.append(error)
    raise failures[0]  # what was wrong with the best


def resolve_folder(
    repo_or_path: str | Path,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    patterns: Sequence[str] | None = None,
    root: str | Path | None = None,
) -> Path:
    """Find a folder: here, in a folder laid out like the hub, or on the hub.

    Args:
        repo_or_path: A folder, a repository `"owner/name"`, or a folder in one, in the forms of `resolve_file`.
        subfolder: The folder inside it that is wanted.
        revision: A commit, tag or branch of the repository; by default the one that the registry pins, if any.
        patterns: Which files of the folder to download, as `"*.json"`; all by default.
        root: A folder that holds repositories as `owner/name/...`; by default the one that `$IMPROMPT_MODELS` names.

    Returns:
        A path on this machine; from the hub, inside its cache.

    Raises:
        DownloadError: It is neither here nor reachable.
    """
    local = Path(repo_or_path).expanduser()
    if local.is_dir():
        return _existing(local / (subfolder or ""), "folder")
    place = _place(str(repo_or_path), subfolder or "")
    kept = in_models_root(place.repository, place.inside, root=root)
    if kept is not None and kept.is_dir():
        return kept
    inside = place.inside
    wanted = [f"{inside}/{pattern}" if inside else pattern for pattern in patterns or ["*"]]

    def download(**where: Any) -> str:
        import huggingface_hub

        fetch: Any = huggingface_hub.snapshot_download  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return str(fetch(place.repository, allow_patterns=wanted, **where))

    asked, pinned = revision or place.revision, REVISIONS.get(place.repository)
    what = f"'{inside}' of '{place.repository}'" if inside else f"'{place.repository}'"
    folder = _download(download, what, revision=asked, pinned=pinned)
    return _existing(folder / inside, "folder")


def in_models_root(repository: str, inside: str = "", *, root: str | Path | None = None) -> Path | None:
    """Where a repository, or something in it, lies in a folder laid out like the hub; None if there is no such folder.

    Args:
        repository: `"owner/name"`.
        inside: A file or folder in it.
        root: The folder; by default the one that `$IMPROMPT_MODELS` names.

    Raises:
        DownloadError: The folder that is named does not exist.
    """
    named = root or os.environ.get(ROOT_VARIABLE)
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        origin = "root=" if root else f"${ROOT_VARIABLE}"
        raise DownloadError(f"{origin} names '{folder}', which is no folder; name one that holds 'owner/name' folders.")
    return folder / repository / inside


def _published_files(name: str, inside: str) -> tuple[HubName, tuple[PublishedFile, ...]]:
    """The repository that a name means, and the files of it to try, the best first."""
    if not inside and "/" not in name:
        adapter = find_adapter(name)
        return HubName(adapter.repository), adapter.files
    place = _place(name, inside)
    files = files_at(place)
    if files:
        return place, files
    if not place.inside:
        raise DownloadError(
            f"'{place.repository}' is a hub repository; say which of its files, as '{place.repository}/FILE'."
        )
    if is_published(place.repository) and "." not in place.inside.rpartition("/")[2]:
        nearest = describe_nearest(place.inside)
        raise DownloadError(f"No published adapter is at '{place.repository}:{place.inside}'; {nearest}.")
    return place, (PublishedFile(place.inside),)


def _place(name: str, inside: str) -> HubName:
    """Read a place on the hub, or say that a name is neither that nor a path."""
    place = parse_hub_name(name)
    if place is not None and inside:
        within = "/".join(part for part in (place.inside, inside) if part)
        revision = f"@{place.revision}" if place.revision else ""
        place = parse_hub_name(f"{place.repository}{revision}:{within}")
    if place is None:
        raise DownloadError(
            f"'{name}' is not a file or folder here, nor a hub repository ('owner/name'); check the spelling."
        )
    return place


def _hub_file(place: HubName, file: PublishedFile, revision: str | None) -> Path:
    def download(**where: Any) -> str:
        import huggingface_hub

        fetch: Any = huggingface_hub.hf_hub_download  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return str(fetch(place.repository, file.path, **where))

    asked = revision or place.revision or file.revision
    pinned = REVISIONS.get(place.repository) if is_published(place.repository, file) else None
    return _download(download, f"'{file.path}' of '{place.repository}'", revision=asked, pinned=pinned)


def _is_pinned(place: HubName, file: PublishedFile, revision: str | None) -> bool:
    """Whether the revision that is wanted is the one whose files the table knows."""
    asked = revision or place.revision
    return asked is None or asked == (file.revision or REVISIONS.get(place.repository))


def _checked(path: Path, file: PublishedFile) -> Path:
    """Refuse a file that is not the one that was published."""
    if file.num_bytes is not None and path.stat().st_size != file.num_bytes:
        raise DownloadError(
            f"'{path}' has {path.stat().st_size:,} bytes, but '{file.path}' was published with {file.num_bytes:,}; get "
            "it again, or give the path of the file itself to load it as it is."
        )
    if file.sha256 is not None and not _hash(path).startswith(file.sha256):
        raise DownloadError(
            f"'{path}' has another content (SHA-256 {_hash(path)[:16]}) than '{file.path}' was published with "
            f"({file.sha256}); get it again, or give the path of the file itself to load it as it is."
        )
    return path


def _hash(path: Path) -> str:
    """A file's SHA-256. The hub's cache names the files that it has downloaded by it."""
    name = path.resolve().name
    if len(name) == _HASH_LENGTH and all(digit in "0123456789abcdef" for digit in name):
        return name
    state = path.stat()
    return _hash_of(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _hash_of(path: Path, _num_bytes: int, _changed: int) -> str:
    """Hash a file once, as long as it stays what it is."""
    return sha256_file(path)


def _existing(path: Path, kind: str) -> Path:
    if path.is_file() if kind == "file" else path.is_dir():
        return path
    raise DownloadError(f"There is no {kind} '{path}'; in '{path.parent}' there are: {_list_folder(path.parent)}.")


def _list_folder(folder: Path, limit: int = 8) -> str:
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:limit] + (["..."] if len(names) > limit else [])) or "nothing"


def _download(download: Callable[..., str], what: str, *, revision: str | None, pinned: str | None) -> Path:
    """Run a download; whatever the hub's client raises, of whichever library, becomes one sentence with a remedy.

    Where nobody asked for a revision, the pinned one is wanted; if it cannot be had, what the cache has will do.
    """
    places: list[dict[str, Any]] = [{"revision": revision or pinned}]
    if pinned and not revision:
        places.append({"revision": None, "local_files_only": True})
    failures: list[Exception] = []
    for place in places:
        try:
            return Path(download(**place))
        except Exception as error:
            failures.append(error)
    raise DownloadError(
        f"{what} is not on this machine and could not be downloaded ({first_line(failures[0])}). Check the name and "
        "the connection (HF_TOKEN where the repository is gated), or download it elsewhere and give the local path, or "
        f"put it in a folder laid out like the hub that ${ROOT_VARIABLE} names."
    ) from failures[0]
