"""Reading ahead: batches as a data set of steps, which worker processes fill and which begins anywhere."""

import signal
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from imprompt.core.errors import ImpromptError
from imprompt.training.config import LoopConfig
from imprompt.training.loop.distributed import Processes
from imprompt.training.loop.order import BatchOrder
from imprompt.training.loop.task import Draw, Task, map_tensors

GRACE_SECONDS = 60
"""How long a worker goes on after SIGTERM, if the run does not end it."""


@dataclass(frozen=True)
class Portion:
    """A batch and the draw that it was made of.

    Attributes:
        draw: Rows of one step that are computed together.
        batch: What the task made of it.
        weight: Its part of what this process computes in the step; the weights of a step sum to 1.
    """

    draw: Draw
    batch: Any
    weight: float

    def to(self, device: torch.device) -> Any:
        """The batch on a device."""
        return map_tensors(self.batch, lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> "Portion":
        """The same in memory from which an accelerator copies on its own; the data loader calls this."""
        return Portion(self.draw, map_tensors(self.batch, Tensor.pin_memory), self.weight)


@dataclass(frozen=True)
class Split:
    """How a global batch is shared out.

    Attributes:
        order: Which samples each step takes.
        seed: Of the run.
        rows: For each part that is computed at once in this process, the places of its rows.
    """

    order: BatchOrder
    seed: int
    rows: tuple[range, ...]

    def draws(self, step: int) -> Iterator[Draw]:
        """What this process takes of a step, part by part."""
        bucket, samples = self.order.at(step)
        for rows in self.rows:
            places = torch.arange(rows.start, rows.stop)
            yield Draw(step, self.seed, samples[places], places, len(samples), bucket)


def split_batch(order: BatchOrder, loop: LoopConfig, processes: Processes) -> Split:
    """Give each process an equal part, and cut it into what a device takes at a time.

    Raises:
        ImpromptError: The batch cannot be shared out evenly.
    """
    share, rest = divmod(loop.batch_size, processes.count)
    if rest:
        raise ImpromptError(
            f"batch_size {loop.batch_size} cannot be shared out over {processes.count} processes; give a multiple"
        )
    first, last = processes.index * share, (processes.index + 1) * share
    size = loop.micro_batch_size or share
    return Split(order, loop.seed, tuple(range(start, min(start + size, last)) for start in range(first, last, size)))


def read_portions(
    task: Task, split: Split, steps: range, *, num_workers: int, device: torch.device
) -> Generator[list[Portion]]:
    """The parts of each step, read ahead.

    Args:
        task: Makes batches.
        split: Which rows are read here.
        steps: Which steps.
        num_workers: Processes that read ahead; 0 reads when a step begins.
        device: Where batches will go.

    Raises:
        ImpromptError: Whatever the task raised of it, in one sentence even if another process did.
    """
    loader: DataLoader[Portion] = DataLoader(
        _Portions(task),  # type: ignore[arg-type]  # a data set whose keys are draws
        sampler=_Draws(split, steps),
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=max(2, len(split.rows)) if num_workers else None,
        pin_memory=device.type not in ("cpu", "mps"),
        worker_init_fn=_outlive_signals,
        multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
    )
    portions = iter(loader)
    try:
        for _ in steps:
            yield [_unless_failed(next(portions)) for _ in split.rows]
    finally:
        del portions  # which ends the workers, also while a traceback keeps this frame


class _Portions:
    def __init__(self, task: Task) -> None:
        self._batch = task.batch

    def __getitem__(self, key: tuple[Draw, float]) -> Portion | ImpromptError:
        draw, weight = key
        try:
            return Portion(draw, self._batch(draw), weight)
        except ImpromptError as error:  # as a value: the loader would put a whole traceback into its message
            return error


@dataclass(frozen=True)
class _Draws:
    split: Split
    steps: range

    def __iter__(self) -> Iterator[tuple[Draw, float]]:
        total = sum(map(len, self.split.rows))
        for step in self.steps:
            for draw in self.split.draws(step):
                yield draw, len(draw.rows) / total


def _unless_failed(portion: Portion | ImpromptError) -> Portion:
    if isinstance(portion, ImpromptError):
        raise portion
    return portion


def _outlive_signals(worker: int) -> None:
    """A signal to all processes of a run must not take its workers away before it has saved; it ends them itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE_SECONDS))
