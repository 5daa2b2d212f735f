"""Checkpoint folders that are whole or not there.

A checkpoint is written into a temporary folder, flushed to disk and renamed. Its manifest carries the hash of every
file, and reading takes the newest checkpoint whose files match, so a kill at any moment costs only the steps since.
"""

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from imprompt.core.files import sha256_file

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: groups of named tensors (model, average, optimizer) and counters."""

    tensors: dict[str, dict[str, Tensor]]
    counters: dict[str, Any]


def save_checkpoint(folder: Path, step: int, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write a checkpoint and drop all but the newest `keep`.

    Args:
        folder: Folder of the run's checkpoints.
        step: Number of steps taken.
        checkpoint: What to write.
        keep: How many checkpoints stay.

    Returns:
        Folder of the checkpoint.
    """
    target = folder / f"step-{step:08d}"
    temporary = folder / f".writing-{step:08d}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, tensors in checkpoint.tensors.items():
        save_file(
            {key: value.detach().contiguous() for key, value in tensors.items()}, temporary / f"{name}.safetensors"
        )
    hashes = {path.name: sha256_file(path) for path in sorted(temporary.iterdir())}
    manifest = {"step": step, "counters": checkpoint.counters, "sha256": hashes}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (*temporary.iterdir(), temporary):
        _flush(path)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    _flush(folder)
    _prune(folder, keep)
    return target


def newest_checkpoint(folder: Path) -> Path | None:
    """Newest checkpoint folder whose files match their hashes; damaged ones are reported and passed over."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if is_intact(path):
            return path
        logger.warning("checkpoint %s is damaged; the one before it is used", path)
    return None


def is_intact(path: Path) -> bool:
    """True where the manifest can be read and every file it names has the hash it gives."""
    try:
        hashes = json.loads((path / MANIFEST).read_text())["sha256"]
        return all(sha256_file(path / name) == value for name, value in hashes.items())
    except (OSError, ValueError, KeyError):
        return False


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder."""
    manifest = json.loads((path / MANIFEST).read_text())
    tensors = {Path(name).stem: load_file(path / name) for name in manifest["sha256"]}
    return Checkpoint(tensors, manifest["counters"])


def load_averaged_weights(folder: Path) -> dict[str, Tensor] | None:
    """Averaged weights of a run's newest intact checkpoint, or None where the run has none."""
    path = newest_checkpoint(folder / "checkpoints")
    return None if path is None else load_file(path / "average.safetensors")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of an optimizer with numbered parameters, flat: "{parameter number}.{name}" -> tensor."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _prune(folder: Path, keep: int) -> None:
    for path in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(path)
    for path in folder.glob(".writing-*"):
        shutil.rmtree(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
