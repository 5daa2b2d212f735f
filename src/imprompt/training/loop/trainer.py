"""One training loop for every task: resumable to the bit, interruptible at any step, in one process or many."""

import importlib.metadata
import logging
import platform
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imprompt.training.config import LoopConfig, OptimizerConfig
from imprompt.training.errors import OtherRun
from imprompt.training.loop.batches import Portion, read_portions, split_batch
from imprompt.training.loop.checkpointing import Checkpoint, load_checkpoint, newest_checkpoint, save_checkpoint
from imprompt.training.loop.distributed import Processes, connect, join_gradients
from imprompt.training.loop.ema import ExponentialMovingAverage
from imprompt.training.loop.meter import LossWatch, Meter, memory_gigabytes, progress_bar, record_divergence
from imprompt.training.loop.optimizers import (
    autocast_format,
    build_optimizer,
    optimizer_tensors,
    restore_optimizer,
    trainable,
)
from imprompt.training.loop.order import generator_at
from imprompt.training.loop.schedule import learning_rate_factor
from imprompt.training.loop.stopping import StopRequests, stop_requests
from imprompt.training.loop.task import Exports, Task
from imprompt.training.loop.tracking import Tracking, flatten

logger = logging.getLogger(__name__)

PACKAGES = ("imprompt", "torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy")
"""Whose versions a checkpoint tells."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What the loop does beside training, and what it notes down.

    Attributes:
        num_workers: Processes that read ahead.
        preview_every: Steps between previews; 0 draws none.
        preview_first: Also preview before the first step: what fails fails soon, and later ones can be compared.
        preview_everywhere: Call the preview in all processes, as a sharded base needs; the task then writes in the main
            one alone.
        data: Fingerprint of the data, such as a manifest's hash; another one is another run.
        config: The whole resolved configuration, for checkpoints and trackers.
    """

    num_workers: int = 0
    preview_every: int = 0
    preview_first: bool = False
    preview_everywhere: bool = False
    data: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


class Trainer:
    """State of one run: model, its average, optimizer, and the number of steps taken."""

    def __init__(
        self, task: Task, loop: LoopConfig, optimizer: OptimizerConfig, options: RunOptions | None = None
    ) -> None:
        """Take up the run in `loop.output` where its newest intact checkpoint left it, or begin it.

        Args:
            task: What is trained.
            loop: How long, and what it leaves.
            optimizer: How weights move.
            options: All else.

        Raises:
            OtherRun: The folder holds a run with another seed, batch size, optimizer, model or other data.
            ImpromptError: The batch cannot be shared out over the processes, or a package is not installed.
        """
        self.task = task
        self.loop = loop
        self.settings = optimizer
        self.options = options or RunOptions()
        self.step = 0
        self.processes = connect(loop.device)
        task.model.to(self.processes.device)
        self.optimizer = build_optimizer(task.model, optimizer)
        decay = optimizer.ema_decay
        self.average = ExponentialMovingAverage(task.model, decay) if decay else None
        self._split = split_batch(task.order, loop, self.processes)
        self._format = autocast_format(loop.autocast, self.processes.device)
        is_half = self._format is torch.float16
        self._scaler = torch.amp.GradScaler(self.processes.device.type, enabled=is_half)
        self._watch = LossWatch(loop.output, self.processes, norms_may_overflow=is_half)
        self._meter = Meter()
        self._resume()
        self._saved_step = self.step
        self._joined = join_gradients(_LossModule(task), self.processes)

    def train(self) -> int:
        """Train to the last step, to the end of the time budget, or until SIGTERM or SIGINT.

        Returns:
            Number of steps taken since the run began.

        Raises:
            TrainingDiverged: A loss or gradient is not finite.
            DiskFull: A checkpoint does not fit.
        """
        loop, processes = self.loop, self.processes
        self.task.model.train()
        with self._tracking() as tracking, stop_requests(loop.minutes) as requests, closing(self._read()) as portions:
            with progress_bar(loop, self.step, is_shown=processes.is_main) as bar:
                if self.step == 0 and self.options.preview_first:
                    self._preview(tracking)
                while self.step < loop.num_steps and not self._shall_stop(requests):
                    self._take_step(next(portions))
                    bar.update(loop.batch_size)
                    if self.step % loop.log_every == 0:
                        bar.set_postfix(self._log(tracking))
                    self._save_and_preview(tracking)
            self._save()
        return self.step

    def _read(self) -> Generator[list[Portion]]:
        steps = range(self.step, self.loop.num_steps)
        workers, device = self.options.num_workers, self.processes.device
        return read_portions(self.task, self._split, steps, num_workers=workers, device=device)

    def _shall_stop(self, requests: StopRequests) -> bool:
        """Whether any process was asked to stop; all of them stop after the same step."""
        return self.processes.any(requests.any)

    def _take_step(self, portions: list[Portion]) -> None:
        settings, model = self.settings, self.task.model
        torch.manual_seed(generator_at(self.loop.seed, "model", self.step, self.processes.index).initial_seed())
        rate = settings.learning_rate * learning_rate_factor(
            self.step,
            num_steps=self.loop.num_steps,
            warmup_steps=settings.warmup_steps,
            schedule=settings.schedule,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = torch.stack([self._backward(portion, portion is portions[-1]) for portion in portions]).sum()
        self._scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(trainable(model), settings.max_gradient_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.step)
        self._meter.add({"loss": loss, "gradient_norm": norm})
        self._meter.num_steps += 1
        self._watch.note(self.step, loss, norm)
        self.step += 1

    def _backward(self, portion: Portion, is_last: bool) -> Tensor:
        """Add a portion's gradients; with the last they are averaged over the processes.

        Returns:
            The portion's part of the loss.
        """
        device = self.processes.device
        batch = portion.to(device)
        with self._averaging(is_last):
            with torch.autocast(device.type, self._format, enabled=self._format is not None):
                loss, figures = self._joined(batch)
            loss = loss * portion.weight
            self._scaler.scale(loss).backward()
        self._meter.add(figures, portion.weight)
        return loss.detach()

    def _averaging(self, wanted: bool) -> AbstractContextManager[Any]:
        if wanted or not isinstance(self._joined, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self._joined.no_sync()

    def _save_and_preview(self, tracking: Tracking | None) -> None:
        if self.step % self.loop.checkpoint_every == 0:
            self._save()
        every = self.options.preview_every
        if every and self.step % every == 0:
            self._preview(tracking)

    def _preview(self, tracking: Tracking | None) -> None:
        begun = time.monotonic()
        preview = partial(self._preview_here, tracking)
        _ = preview() if self.options.preview_everywhere else self.processes.on_main(preview)
        self._meter.started += time.monotonic() - begun  # images a second are those of training

    def _preview_here(self, tracking: Tracking | None) -> None:
        with self._averaged_weights():
            figures = self.task.preview(self.step)
        if tracking is not None and figures:
            tracking.log(self.step, figures)

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """The averaged weights in the model, the trained ones back afterwards."""
        model = self.task.model
        trained = {name: value.clone() for name, value in model.state_dict().items()}
        if self.average is not None:
            model.load_state_dict(self.average.state_dict())
        model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            model.load_state_dict(trained)
            model.train()

    def _check(self) -> None:
        """Stop if a loss since the last look was no number; the steps' figures are read here and not before."""
        found = self._watch.first_bad_step()
        if found is None:
            return
        step, losses = found
        bucket, samples = self.task.order.at(step)
        record = {
            "step": step,
            "bucket": bucket,
            "samples": samples.tolist(),
            "seed": self.loop.seed,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **losses,
        }
        checkpoint = newest_checkpoint(self.loop.output / "checkpoints")
        raise record_divergence(self.loop.output, record, checkpoint, is_main=self.processes.is_main)

    def _save(self) -> None:
        """Write a checkpoint, unless there is one of this step."""
        if self.step == self._saved_step:
            return
        self._check()
        self.processes.on_main(self._write_checkpoint)
        self._saved_step = self.step

    def _write_checkpoint(self) -> None:
        tensors = {"model": self.task.model.state_dict(), "optimizer": optimizer_tensors(self.optimizer)}
        if self.average is not None:
            tensors["average"] = self.average.state_dict()
        if self._scaler.is_enabled():
            tensors["scaler"] = {name: torch.tensor(value) for name, value in self._scaler.state_dict().items()}
        counters = {"step": self.step, "samples": self.step * self.loop.batch_size}
        weights = tensors.get("average", tensors["model"])
        save_checkpoint(
            self.loop.output / "checkpoints",
            self.step,
            Checkpoint(tensors, counters, self._record()),
            self.loop.keep_checkpoints,
            partial(self.task.export, weights=weights) if isinstance(self.task, Exports) else None,
        )

    def _record(self) -> dict[str, Any]:
        return {
            "sequence": self._sequence(),
            "config": {
                "loop": self.loop.model_dump(mode="json"),
                "optimizer": self.settings.model_dump(mode="json"),
                **self.options.config,
            },
            "environment": environment(self.processes),
        }

    def _sequence(self) -> dict[str, Any]:
        """What decides which samples, noise and weights follow on a checkpoint."""
        return {
            "seed": self.loop.seed,
            "batch_size": self.loop.batch_size,
            "data": self.options.data or f"{self.task.num_examples} examples",
            "optimizer": self.settings.name,
        }

    def _resume(self) -> None:
        path = newest_checkpoint(self.loop.output / "checkpoints")
        if path is None:
            return
        checkpoint = load_checkpoint(path)
        check_same_sequence(self.loop.output, checkpoint.record.get("sequence", {}), self._sequence())
        weights = checkpoint.tensors["model"]
        try:
            self.task.model.load_state_dict(weights)
        except RuntimeError as error:
            raise OtherRun(
                f"the run in '{self.loop.output}' trains another model than the one given; give another output folder"
            ) from error
        if self.average is not None:
            self.average.load_state_dict(checkpoint.tensors.get("average", weights))
        restore_optimizer(self.optimizer, checkpoint.tensors["optimizer"])
        if self._scaler.is_enabled() and "scaler" in checkpoint.tensors:
            self._scaler.load_state_dict({name: value.item() for name, value in checkpoint.tensors["scaler"].items()})
        self.step = checkpoint.counters["step"]
        logger.info("resumed %s at step %d", self.loop.output.name, self.step)
        changes = changed_settings(checkpoint.record.get("config", {}), self._record()["config"])
        if changes and self.processes.is_main:
            logger.warning("settings are not those before step %d: %s", self.step, "; ".join(changes))

    @contextmanager
    def _tracking(self) -> Iterator[Tracking | None]:
        """Log and trackers, in the main process."""
        if not self.processes.is_main:
            yield None
            return
        tracking = Tracking(self.loop.output, self.loop.trackers, self._record()["config"], self.step)
        try:
            yield tracking
        finally:
            tracking.close()

    def _log(self, tracking: Tracking | None) -> dict[str, Any]:
        self._check()
        means = self._meter.means(self.processes, self.loop.batch_size)
        self._meter = Meter()
        memory = memory_gigabytes(self.processes.device)
        if tracking is not None:
            figures = {
                "samples": self.step * self.loop.batch_size,
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                **means,
                "memory_gigabytes": memory,
                "time": round(time.time()),
            }
            tracking.log(self.step, figures)
        return {**{name: value for name, value in means.items() if name != "images_per_second"}, "GB": memory}


class _LossModule(nn.Module):
    """A task's loss as a module that knows of what is trained, and of nothing else, such as a frozen base."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self._loss = task.loss

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self._loss(batch)


def train(task: Task, loop: LoopConfig, optimizer: OptimizerConfig, options: RunOptions | None = None) -> int:
    """Train, or go on training, a task; see `Trainer.train`."""
    loop.output.mkdir(parents=True, exist_ok=True)
    return Trainer(task, loop, optimizer, options).train()


def check_same_sequence(folder: Path, saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuse to go on with a run under settings that would make it another one; a longer run is the same.

    Raises:
        OtherRun: Something that decides the sequence of samples and noise differs.
    """
    for name, value in saved.items():
        if present.get(name) != value:
            raise OtherRun(
                f"the run in '{folder}' has {name} {value}, and now {name} {present.get(name)} is asked for, which "
                "would make it another run; keep what it has, or give another output folder"
            )


def changed_settings(saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Settings that a run goes on under and did not begin with, in words; new ones are not told."""
    before, now = flatten(saved), flatten(present)
    return [
        f"{name} was {before[name]}, is {now[name]}" for name in now if name in before and before[name] != now[name]
    ]


def environment(processes: Processes) -> dict[str, Any]:
    """Versions and machine that a checkpoint was made with."""
    versions = {name: _version(name) for name in PACKAGES}
    machine = {"python": platform.python_version(), "device": processes.device.type, "processes": processes.count}
    return {**versions, **machine}


@cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
