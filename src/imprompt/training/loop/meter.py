"""Figures of the steps since one last looked: they stay on the device, since reading one there waits for all before."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from imprompt.core.files import atomic_write
from imprompt.training.config import LoopConfig
from imprompt.training.errors import TrainingDiverged
from imprompt.training.loop.distributed import Processes


@dataclass
class Meter:
    """Means of logged figures, and speed, since the last line."""

    started: float = field(default_factory=time.monotonic)
    num_steps: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, figures: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Add figures of a part of a step; the weights of its parts sum to 1."""
        for name, value in figures.items():
            value = value.detach().float() * weight
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def means(self, processes: Processes, batch_size: int) -> dict[str, float]:
        """Means over steps and processes, and images a second."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        names = sorted(self.sums)
        sums = processes.mean(torch.stack([self.sums[name] for name in names])).tolist()
        means = {name: round(total / self.num_steps, 5) for name, total in zip(names, sums, strict=True)}
        return {**means, "images_per_second": round(self.num_steps * batch_size / seconds, 1)}


class LossWatch:
    """Losses and gradient norms of the steps since the last check, so that a bad one can be told by its step."""

    def __init__(self, folder: Path, processes: Processes, *, norms_may_overflow: bool) -> None:
        """Watch nothing yet.

        Args:
            folder: Where a record of divergence is written.
            processes: Who trains.
            norms_may_overflow: Whether steps with infinite gradients are passed over, as half precision does.
        """
        self._folder = folder
        self._processes = processes
        self._norms_may_overflow = norms_may_overflow
        self._steps: list[int] = []
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []

    def note(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Keep what a step gave, without looking at it."""
        self._steps.append(step)
        self._losses.append(loss.detach().float())
        self._norms.append(norm.detach().float())

    def first_bad_step(self) -> tuple[int, dict[str, Any]] | None:
        """The first step whose loss or gradient is not finite, and all that was watched; then begin anew.

        Returns:
            Step and record, or None where all is well.
        """
        if not self._steps:
            return None
        steps = self._steps
        losses, norms = self._processes.mean(torch.stack([*self._losses, *self._norms])).split(len(steps))
        self._steps, self._losses, self._norms = [], [], []
        is_fine = losses.isfinite() if self._norms_may_overflow else losses.isfinite() & norms.isfinite()
        if is_fine.all():
            return None
        bad = int((~is_fine).long().argmax())
        record = {
            "losses": {str(step): str(value) for step, value in zip(steps, losses.tolist(), strict=True)},
            "gradient_norms": {str(step): str(value) for step, value in zip(steps, norms.tolist(), strict=True)},
        }
        return steps[bad], record


def record_divergence(
    folder: Path, record: dict[str, Any], checkpoint: Path | None, *, is_main: bool
) -> TrainingDiverged:
    """Write down the step, its samples and the losses before it.

    Args:
        folder: Run folder.
        record: What is written; step, losses, gradient norms and learning rate among it.
        checkpoint: The last good one.
        is_main: Whether this process writes.

    Returns:
        The error to raise.
    """
    step = record["step"]
    file = folder / f"diverged-step-{step:08d}.json"
    if is_main:
        with atomic_write(file) as path:
            path.write_text(json.dumps(record, indent=1))
    last = "there is no checkpoint yet" if checkpoint is None else f"'{checkpoint.name}' is the last good checkpoint"
    return TrainingDiverged(
        f"at step {step} the loss is {record['losses'][str(step)]} and the norm of the gradient "
        f"{record['gradient_norms'][str(step)]}; its samples are listed in '{file}' and {last}: run again with a lower "
        f"learning rate than {record['learning_rate']:g}, or without the samples that are at fault"
    )


def progress_bar(loop: LoopConfig, step: int, *, is_shown: bool) -> tqdm:
    """Bar in images, with speed and time left; written rarely where nobody watches."""
    return tqdm(
        total=loop.num_steps * loop.batch_size,
        initial=step * loop.batch_size,
        desc=loop.output.name,
        unit="image",
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
        disable=not is_shown,
    )


@contextmanager
def feature_bar(kind: str, *, is_shown: bool) -> Iterator[Callable[[int, int], None]]:
    """Bar in samples whose features are there; nothing is shown where nothing is missing."""
    interval = 0.5 if sys.stderr.isatty() else 30.0
    with tqdm(desc=kind, unit="sample", mininterval=interval, disable=not is_shown, delay=1.0) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tell


def memory_gigabytes(device: torch.device) -> float:
    """Most memory that the device's tensors took so far; on a CPU what the process takes now."""
    if device.type in ("cpu", "mps"):
        import psutil

        size = psutil.Process().memory_info().rss
    else:
        size = torch.get_device_module(device).max_memory_allocated(device)
    return round(size / 1e9, 2)
