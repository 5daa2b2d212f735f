"""One training loop for every stage: resumable to the bit, interruptible at any step, watched by a progress bar."""

import json
import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from imprompt.training.checkpointing import (
    Checkpoint,
    load_checkpoint,
    newest_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from imprompt.training.ema import ExponentialMovingAverage
from imprompt.training.errors import TrainingDiverged
from imprompt.training.order import batch_indices, generator_at
from imprompt.training.schedule import Schedule, learning_rate_factor

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how fast a stage trains.

    Attributes:
        folder: Run folder: `checkpoints/`, `log.jsonl`.
        num_steps: Steps of the whole run.
        batch_size: Examples a step.
        learning_rate: Peak learning rate of AdamW.
        warmup_steps: Steps of its linear rise.
        schedule: What follows the rise.
        weight_decay: Of AdamW, on matrices and kernels; vectors are spared.
        betas: Of AdamW.
        max_gradient_norm: Gradients are clipped to this norm.
        ema_decay: Of the averaged weights, which are what a stage hands on.
        seed: Decides data order and all randomness.
        bfloat16: Autocast to bfloat16; None does so where the device computes in it.
        device: Where the model is trained; random numbers are drawn on the CPU, so they are the same everywhere.
        checkpoint_every: Steps between checkpoints.
        preview_every: Steps between previews; 0 draws none.
        log_every: Steps between log lines.
        minutes: Time after which this call stops at a checkpoint; None trains to the end.
    """

    folder: Path
    num_steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 200
    schedule: Schedule = "constant"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    max_gradient_norm: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    bfloat16: bool | None = None
    device: str = "cpu"
    checkpoint_every: int = 500
    preview_every: int = 0
    log_every: int = 50
    minutes: float | None = None


@runtime_checkable
class Task(Protocol):
    """What is trained: a model, a number of examples and a loss."""

    @property
    def model(self) -> nn.Module:
        """Everything that is trained and saved."""
        ...

    @property
    def num_examples(self) -> int:
        """Examples of an epoch."""
        ...

    def loss(
        self, indices: Int[Tensor, " batch"], generator: torch.Generator
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Loss of the examples and figures for the log; all randomness comes from the generator."""
        ...

    def preview(self, step: int) -> None:
        """Draw what the (averaged) model makes now."""
        ...


@dataclass
class _Meter:
    """Means of logged figures, and speed, since the last line."""

    started: float = field(default_factory=time.monotonic)
    num_steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, figures: dict[str, Tensor]) -> None:
        self.num_steps += 1
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def means(self, batch_size: int) -> dict[str, float]:
        seconds = max(time.monotonic() - self.started, 1e-9)
        means = {name: round(total / self.num_steps, 5) for name, total in self.sums.items()}
        return {**means, "images_per_second": round(self.num_steps * batch_size / seconds, 1)}


class Trainer:
    """State of one run: model, its average, optimizer, and the number of steps taken."""

    def __init__(self, task: Task, config: LoopConfig) -> None:
        """Take up the run in `config.folder` where its newest intact checkpoint left it, or begin it."""
        self.task = task
        self.config = config
        self.step = 0
        self._bfloat16 = _computes_bfloat16(config.device) if config.bfloat16 is None else config.bfloat16
        task.model.to(config.device)
        self.optimizer = _adamw(task.model, config)
        self.average = ExponentialMovingAverage(task.model, config.ema_decay)
        self._resume()

    def train(self) -> int:
        """Train to the last step, to the end of the time budget, or until SIGTERM or SIGINT.

        Returns:
            Number of steps taken since the run began.

        Raises:
            TrainingDiverged: The loss is not finite.
        """
        config = self.config
        deadline = None if config.minutes is None else time.monotonic() + 60 * config.minutes
        meter = _Meter()
        with _stop_requests() as requests, _progress_bar(config, self.step) as bar:
            while self.step < config.num_steps and not requests and not _is_past(deadline):
                meter.add(self._take_step())
                bar.update(config.batch_size)
                if self.step % config.log_every == 0:
                    bar.set_postfix(self._log(meter))
                    meter = _Meter()
                self._save_and_preview()
        if self.step % config.checkpoint_every:
            self._save()
        return self.step

    def _take_step(self) -> dict[str, Tensor]:
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(
                self.step, num_steps=config.num_steps, warmup_steps=config.warmup_steps, schedule=config.schedule
            )
        indices = batch_indices(self.step, config.batch_size, self.task.num_examples, config.seed)
        with torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=self._bfloat16):
            loss, figures = self.task.loss(indices, generator_at(config.seed, "step", self.step))
        if not torch.isfinite(loss):
            raise TrainingDiverged(
                f"the loss is {loss.item()} at step {self.step}; run again from the last checkpoint in "
                f"'{config.folder}' with a lower learning rate than {config.learning_rate}"
            )
        loss.backward()
        norm = nn.utils.clip_grad_norm_(_trainable(self.task.model), config.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.step)
        self.step += 1
        return {"loss": loss.detach(), **figures, "gradient_norm": norm}

    def _save_and_preview(self) -> None:
        config = self.config
        if self.step % config.checkpoint_every == 0:
            self._save()
        if config.preview_every and self.step % config.preview_every == 0:
            with self._averaged_weights():
                self.task.preview(self.step)

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """The averaged weights in the model, the trained ones back afterwards."""
        model = self.task.model
        trained = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.average.state_dict())
        model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            model.load_state_dict(trained)
            model.train()

    def _save(self) -> None:
        tensors = {
            "model": self.task.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
        }
        counters = {"step": self.step, "samples": self.step * self.config.batch_size}
        save_checkpoint(self.config.folder / "checkpoints", self.step, Checkpoint(tensors, counters))

    def _resume(self) -> None:
        path = newest_checkpoint(self.config.folder / "checkpoints")
        if path is None:
            return
        checkpoint = load_checkpoint(path)
        self.task.model.load_state_dict(checkpoint.tensors["model"])
        self.average.load_state_dict(checkpoint.tensors["average"])
        restore_optimizer(self.optimizer, checkpoint.tensors["optimizer"])
        self.step = checkpoint.counters["step"]
        logger.info("resumed %s at step %d", self.config.folder.name, self.step)

    def _log(self, meter: _Meter) -> dict[str, Any]:
        means = meter.means(self.config.batch_size)
        line = {
            "step": self.step,
            "samples": self.step * self.config.batch_size,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **means,
            "time": round(time.time()),
        }
        with (self.config.folder / "log.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        return means


def train(task: Task, config: LoopConfig) -> int:
    """Train, or go on training, a task; see `Trainer.train`."""
    config.folder.mkdir(parents=True, exist_ok=True)
    return Trainer(task, config).train()


def _adamw(model: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels only."""
    matrices = [value for value in _trainable(model) if value.ndim > 1]
    vectors = [value for value in _trainable(model) if value.ndim <= 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [value for value in model.parameters() if value.requires_grad]


def _computes_bfloat16(device: str) -> bool:
    """Whether a device has instructions for bfloat16; a processor without them emulates it, many times slower."""
    if torch.device(device).type != "cpu":
        return True
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.10 cannot tell: float32 is safe
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _is_past(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Signals received so far: SIGTERM and SIGINT ask the loop to stop after the step; a second SIGINT kills."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _progress_bar(config: LoopConfig, step: int) -> tqdm:
    """Bar in images; written rarely where nobody watches."""
    return tqdm(
        total=config.num_steps * config.batch_size,
        initial=step * config.batch_size,
        desc=config.folder.name,
        unit="image",
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
    )
