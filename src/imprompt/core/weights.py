"""Where weights are: a file or folder on this machine, or a repository on the model hub."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from imprompt.core.errors import DownloadError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_file(
    repo_or_path: str | Path, filename: str | None = None, *, subfolder: str | None = None, revision: str | None = None
) -> Path:
    """Find one file, here or on the hub.

    Args:
        repo_or_path: A file, a folder, a repository `"owner/name"`, or a file in one, `"owner/name/folder/file"`.
        filename: The file's name inside a folder or repository.
        subfolder: The folder it lies in, inside the folder or repository.
        revision: A commit, tag or branch of the repository.

    Returns:
        A path on this machine; from the hub, inside its cache.

    Raises:
        DownloadError: It is neither here nor reachable.
    """
    local = Path(repo_or_path).expanduser()
    if local.is_file():
        return local
    inside = "/".join(part for part in (subfolder, filename) if part)
    if local.is_dir():
        return _existing(local / inside, "file")
    repository, in_name = _split_repository(repo_or_path)
    inside = "/".join(part for part in (in_name, inside) if part)
    if not inside:
        raise DownloadError(f"'{repository}' is a hub repository; say which of its files, as '{repository}/FILE'.")

    def download() -> str:
        from huggingface_hub import hf_hub_download  # pyright: ignore[reportUnknownVariableType]

        return hf_hub_download(repository, inside, revision=revision)

    return _download(download, f"'{inside}' of '{repository}'")


def resolve_folder(
    repo_or_path: str | Path,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    patterns: Sequence[str] | None = None,
) -> Path:
    """Find a folder, here or on the hub.

    Args:
        repo_or_path: A folder, a repository `"owner/name"`, or a folder in one, `"owner/name/folder"`.
        subfolder: The folder inside it that is wanted.
        revision: A commit, tag or branch of the repository.
        patterns: Which files of the folder to download, as `"*.json"`; all by default.

    Returns:
        A path on this machine; from the hub, inside its cache.

    Raises:
        DownloadError: It is neither here nor reachable.
    """
    local = Path(repo_or_path).expanduser()
    if local.is_dir():
        return _existing(local / (subfolder or ""), "folder")
    repository, in_name = _split_repository(repo_or_path)
    inside = "/".join(part for part in (in_name, subfolder) if part)
    wanted = [f"{inside}/{pattern}" if inside else pattern for pattern in patterns or ["*"]]

    def download() -> str:
        from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

        return snapshot_download(repository, revision=revision, allow_patterns=wanted)

    return _existing(_download(download, f"'{inside or '.'}' of '{repository}'") / inside, "folder")


def _existing(path: Path, kind: str) -> Path:
    if path.is_file() if kind == "file" else path.is_dir():
        return path
    raise DownloadError(f"There is no {kind} '{path}'; in '{path.parent}' there are: {_list_folder(path.parent)}.")


def _list_folder(folder: Path, limit: int = 8) -> str:
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:limit] + (["..."] if len(names) > limit else [])) or "nothing"


def _split_repository(name: str | Path) -> tuple[str, str]:
    """Split `owner/name/inside` into the repository and the rest, or say that it is neither that nor a path."""
    owner, _, rest = str(name).partition("/")
    repository, _, inside = rest.partition("/")
    if not _REPOSITORY.fullmatch(f"{owner}/{repository}") or ".." in inside.split("/"):
        raise DownloadError(
            f"'{name}' is not a file or folder here, nor a hub repository ('owner/name'); check the spelling."
        )
    return f"{owner}/{repository}", inside


def _download(download: Callable[[], str], what: str) -> Path:
    """Run a download; whatever the hub's client raises, of whichever library, becomes one sentence with a remedy."""
    try:
        return Path(download())
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise DownloadError(
            f"{what} is not on this machine and could not be downloaded ({reason}). Check the name and the "
            "connection (HF_TOKEN where the repository is gated), or download it elsewhere and give the local path."
        ) from error
