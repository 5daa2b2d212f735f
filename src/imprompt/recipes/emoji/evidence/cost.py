"""What a training run costs: steps, parameters, arithmetic, and what has to be kept of it."""

import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from imprompt.core.files import atomic_write
from imprompt.recipes.emoji.stage import StageConfig, plain_attention
from imprompt.training.loop.distributed import resolve_device
from imprompt.training.loop.optimizers import autocast_format, build_optimizer, trainable
from imprompt.training.loop.task import Draw, Task, map_tensors

COST = "cost.json"
NUM_TIMED_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a finished run has taken, and what it leaves.

    Attributes:
        seed: Of the run.
        learning_rate: Its peak.
        num_steps: Taken.
        batch_size: Pictures a step.
        num_pictures: Seen in all.
        num_parameters: Trained.
        num_stored_bytes: Of these in half precision.
        seconds_per_step: Of arithmetic, the median of some steps: a processor's own, or an accelerator's by the clock.
        seconds: The same for all steps.
        operations_per_step: Floating-point operations of a step's matrix products and convolutions.
        minutes: Time after which it would have stopped; None is none.
    """

    seed: int
    learning_rate: float
    num_steps: int
    batch_size: int
    num_pictures: int
    num_parameters: int
    num_stored_bytes: int
    seconds_per_step: float
    seconds: float
    operations_per_step: int
    minutes: float | None


def measure_cost(task: Task, config: StageConfig, num_steps: int) -> Cost:
    """Cost of a run, its arithmetic measured on some more steps; afterwards the weights are not those of the run.

    Args:
        task: As it was trained.
        config: With which settings.
        num_steps: How many steps it took.
    """
    loop = config.loop
    seconds, operations = _measure_steps(task, config)
    num_parameters = sum(value.numel() for value in trainable(task.model))
    return Cost(
        seed=loop.seed,
        learning_rate=config.optimizer.learning_rate,
        num_steps=num_steps,
        batch_size=loop.batch_size,
        num_pictures=num_steps * loop.batch_size,
        num_parameters=num_parameters,
        num_stored_bytes=num_parameters * torch.float16.itemsize,
        seconds_per_step=seconds,
        seconds=seconds * num_steps,
        operations_per_step=operations,
        minutes=loop.minutes,
    )


def write_cost(folder: Path, cost: Cost) -> None:
    """Put a cost beside the run, which thereby is finished."""
    with atomic_write(folder / COST) as path:
        path.write_text(json.dumps(asdict(cost), indent=1))


def read_cost(folder: Path) -> Cost | None:
    """Cost of a run; None where it is not finished."""
    file = folder / COST
    return Cost(**json.loads(file.read_text())) if file.exists() else None


def _measure_steps(task: Task, config: StageConfig) -> tuple[float, int]:
    """Seconds of a step's arithmetic, and its floating-point operations."""
    loop = config.loop
    device = resolve_device(loop.device)
    _, samples = task.order.at(0)
    draw = Draw(0, loop.seed, samples, torch.arange(loop.batch_size), loop.batch_size)
    batch = map_tensors(task.batch(draw), lambda value: value.to(device))
    form = autocast_format(loop.autocast, device)
    autocast = partial(torch.autocast, device.type, form, enabled=form is not None)
    take_step = partial(_take_step, task, build_optimizer(task.model, config.optimizer), batch, autocast, device)
    with plain_attention(device):
        with FlopCounterMode(display=False) as counter:
            take_step()
        times = [take_step() for _ in range(NUM_TIMED_STEPS)]
    return statistics.median(times), counter.get_total_flops()


def _take_step(
    task: Task,
    optimizer: torch.optim.Optimizer,
    batch: Any,
    autocast: Callable[[], AbstractContextManager[Any]],
    device: torch.device,
) -> float:
    """One step as the trainer takes it.

    Returns:
        Its seconds.
    """
    begun = _seconds(device)
    with autocast():
        loss, _ = task.loss(batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return _seconds(device) - begun


def _seconds(device: torch.device) -> float:
    """A processor's own time, which others do not stretch; by the clock, where an accelerator has no work left."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()
