"""Files that are either whole or not there, and their fingerprints."""

import hashlib
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

_STALE_SECONDS = 3600.0


@contextmanager
def atomic_write(path: str | Path) -> Generator[Path]:
    """Yield a temporary path beside `path` to write to; put it in place once the block has ended well.

    The old file, if any, stays until the new one is complete and on disk. If the block raises, nothing is left behind;
    if the process is killed, a hidden `.part` file may be, which the next write of that file after an hour removes.

    Args:
        path: Where the finished file shall be. Missing folders are made. The temporary path keeps its suffix, so that
            writers which choose a format by suffix choose the same one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_parts(path)
    temporary = path.with_name(f".{path.stem}.{token_hex(4)}.part{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the user's umask gives; some writers make private files
        yield temporary
        temporary.chmod(mode)
        flush_to_disk(temporary)
        os.replace(temporary, path)
        flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_file(path: str | Path) -> str:
    """Hash a file's content.

    Returns:
        The hexadecimal SHA-256, 64 characters.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, has reached the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folder, and needs none of this for a rename
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_stale_parts(path: Path) -> None:
    """Remove what killed writers of the same file left; a living writer's part is younger."""
    oldest = time.time() - _STALE_SECONDS
    for part in path.parent.glob(f".{_escape(path.stem)}.????????.part{_escape(path.suffix)}"):
        if part.stat().st_mtime < oldest:
            part.unlink(missing_ok=True)


def _escape(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
