"""Checkpoint folders that are whole or not there.

A checkpoint is written into a temporary folder, flushed to disk and renamed. Its manifest carries the hash of every
file, and reading takes the newest checkpoint whose files match, so a kill at any moment costs only the steps since.
"""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from imprompt.core.errors import first_line
from imprompt.core.files import flush_to_disk, sha256_file
from imprompt.training.errors import DiskFull

logger = logging.getLogger(__name__)

MANIFEST, MODEL = "manifest.json", "model.safetensors"
EXPORT = "export"
"""Folder of a checkpoint with what users take away."""

_FULL = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on.

    Attributes:
        tensors: Groups of named tensors: model, average, optimizer.
        counters: Step and samples.
        record: What the run is: what its sequence depends on, its whole configuration, the versions it ran with.
    """

    tensors: dict[str, dict[str, Tensor]]
    counters: dict[str, Any]
    record: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    folder: Path, step: int, checkpoint: Checkpoint, keep: int = 2, export: Callable[[Path], None] | None = None
) -> Path:
    """Write a checkpoint, and only then drop all but the newest `keep`. An intact one of the same step stays as it is.

    Args:
        folder: Folder of the run's checkpoints.
        step: Number of steps taken.
        checkpoint: What to write.
        keep: How many checkpoints stay.
        export: Writes what users take away into the folder it is given.

    Returns:
        Folder of the checkpoint.

    Raises:
        DiskFull: It does not fit; nothing of it stays, and no other checkpoint was touched.
    """
    target = folder / f"step-{step:08d}"
    if flaw(target) is None:
        return target
    _remove_unfinished(folder)
    temporary = folder / f".writing-{step:08d}-{os.getpid()}"
    num_exported = 0 if export is None else _num_bytes(checkpoint.tensors["model"])
    with _whole_or_gone(temporary, sum(map(_num_bytes, checkpoint.tensors.values())) + num_exported):
        _write(temporary, step, checkpoint, export)
        shutil.rmtree(target, ignore_errors=True)  # a damaged one
        temporary.rename(target)
    flush_to_disk(folder)
    _prune(folder, keep, target)
    return target


def newest_checkpoint(folder: Path) -> Path | None:
    """Newest checkpoint folder whose files match their hashes; of others it is said why they are passed over."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        reason = flaw(path)
        if reason is None:
            return path
        logger.warning("checkpoint %s is damaged (%s); the one before it is used", path, reason)
    return None


def flaw(path: Path) -> str | None:
    """Why a checkpoint folder cannot be used; None where every file has the hash that the manifest gives."""
    try:
        hashes = dict(read_manifest(path)["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {MANIFEST} cannot be read: {first_line(error)}"
    if MODEL not in hashes:
        return f"its {MANIFEST} names no {MODEL}"
    for name, value in hashes.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if sha256_file(path / name) != value:
            return f"{name} is not the file that was written"
    return None


def read_manifest(path: Path) -> dict[str, Any]:
    """Step, counters, record and hashes of a checkpoint folder."""
    return json.loads((path / MANIFEST).read_text())


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder."""
    manifest = read_manifest(path)
    names = [name for name in manifest["sha256"] if "/" not in name]
    tensors = {Path(name).stem: load_file(path / name) for name in names}
    return Checkpoint(tensors, manifest["counters"], manifest.get("record", {}))


def load_averaged_weights(folder: Path) -> dict[str, Tensor] | None:
    """Weights that a run hands on: the average, where it keeps one, of its newest intact checkpoint.

    Returns:
        None where the run has no checkpoint.
    """
    path = newest_checkpoint(folder / "checkpoints")
    if path is None:
        return None
    average = path / "average.safetensors"
    return load_file(average if average.exists() else path / MODEL)


def _num_bytes(tensors: dict[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values())


def _write(folder: Path, step: int, checkpoint: Checkpoint, export: Callable[[Path], None] | None) -> None:
    for name, tensors in checkpoint.tensors.items():
        save_file({key: value.detach().contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")
    if export is not None:
        (folder / EXPORT).mkdir()
        export(folder / EXPORT)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
    manifest = {"step": step, "counters": checkpoint.counters, "record": checkpoint.record, "sha256": hashes}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (*folder.rglob("*"), folder):
        flush_to_disk(path)


@contextmanager
def _whole_or_gone(temporary: Path, num_bytes: int) -> Iterator[None]:
    """A folder to write into that does not outlive a failure.

    Args:
        temporary: The folder.
        num_bytes: What will be written, to be looked for beforehand.
    """
    temporary.mkdir(parents=True)
    try:
        if shutil.disk_usage(temporary).free < num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not _is_full(error):
            raise
        raise _disk_full(temporary.parent, num_bytes) from error


def _is_full(error: BaseException) -> bool:
    """Whether it says that the disk is full; safetensors tells it in words alone."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return isinstance(error, SafetensorError) and any(f"os error {number}" in str(error) for number in _FULL)


def _disk_full(folder: Path, num_bytes: int) -> DiskFull:
    free = shutil.disk_usage(folder).free
    newest = newest_checkpoint(folder)
    kept = "there is none before it" if newest is None else f"'{newest.name}' before it is kept"
    missing = f"{num_bytes - free:,} bytes are missing" if free < num_bytes else "it takes more, or a quota is used up"
    return DiskFull(
        f"a checkpoint of {num_bytes:,} bytes does not fit into '{folder}', where {free:,} bytes are free: {missing}; "
        f"make room and run again ({kept})"
    )


def _prune(folder: Path, keep: int, newest: Path) -> None:
    """Drop checkpoints older than the newest `keep`; those after the newest are damaged ones, to be written again."""
    older = [path for path in sorted(folder.glob("step-*")) if path <= newest]
    for path in older[:-keep]:
        shutil.rmtree(path)


def _remove_unfinished(folder: Path) -> None:
    """Drop what killed writers left; one run has one writer."""
    for path in folder.glob(".writing-*"):
        shutil.rmtree(path, ignore_errors=True)
