"""Fixed validation: loss by place in the schedule, and what the reference picture is worth.

Samples, noise and timesteps are the same at every validation and in every run, so its numbers can be compared. The
**reference gain** is the loss under another sample's reference minus the loss under the right one: nothing but use of
the image prompt makes it grow, where the loss itself hardly moves (an adapter that is ignored has gain 0).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from imprompt.training.loop.distributed import Processes
from imprompt.training.loop.order import generator_at
from imprompt.training.loop.task import Draw, map_tensors
from imprompt.training.objective.noise import NoiseProcess

VALIDATION_SEED = 81_549_300
"""Of noise, views and timesteps; the same in all runs, and far from the seeds that people give to training."""


@runtime_checkable
class ValidationTask(Protocol):
    """What a task must offer to be validated; a batch is whatever `batch` gives."""

    @property
    def model(self) -> nn.Module:
        """All that is trained."""
        ...

    @property
    def noise(self) -> NoiseProcess:
        """Noise of the base."""
        ...

    def batch(self, draw: Draw) -> Any:
        """CPU tensors of the samples; see `Task.batch`."""
        ...

    def without_dropout(self, batch: Any) -> Any:
        """The batch with every image and every text as they are."""
        ...

    def with_timesteps(self, batch: Any, timesteps: Shaped[Tensor, " rows"]) -> Any:
        """The batch at other timesteps, with the same noise."""
        ...

    def with_references(self, batch: Any, permutation: Int[Tensor, " rows"]) -> Any:
        """The batch where row i follows the reference of row `permutation[i]`, all else as it was."""
        ...

    def row_losses(self, batch: Any) -> Float[Tensor, " rows"]:
        """Error of each row of a batch that lies on the model's device, not weighted by timestep."""
        ...


@dataclass(frozen=True)
class ValidationPart:
    """Rows that are computed together.

    Attributes:
        rows: Places in the list of the validation's rows.
        bucket: The one aspect bucket they are of.
        partners: Whose reference each row follows when they are shuffled, counted within the part.
        has_partner: Whether that is a reference of another group.
    """

    rows: Int[Tensor, " rows"]
    bucket: int
    partners: Int[Tensor, " rows"]
    has_partner: Bool[Tensor, " rows"]


@dataclass(frozen=True)
class ValidationPlan:
    """The same for every validation of a run, whatever the number of processes.

    Attributes:
        samples: Number of the sample of each row; one may have several rows, each with noise of its own.
        places: Where in the schedule each row is, from 0 to 1; spread evenly.
        parts: What is computed together.
    """

    samples: Int[Tensor, " rows"]
    places: Float[Tensor, " rows"]
    parts: tuple[ValidationPart, ...]

    def draw(self, part: ValidationPart) -> Draw:
        """The draw of a part: noise depends on a row's place in the list alone."""
        return Draw(
            step=0,
            seed=VALIDATION_SEED,
            samples=self.samples[part.rows],
            rows=part.rows,
            batch_size=len(self.samples),
            bucket=part.bucket,
        )


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error, and of how many rows; not a number where there are none."""

    mean: float
    error: float
    count: int


@dataclass(frozen=True)
class ValidationResult:
    """What one validation measured.

    Attributes:
        samples: Number of the sample of each row.
        places: Where in the schedule each row is, from 0 to 1.
        losses: Its loss under the right reference.
        gains: Loss under another's reference minus that; not a number where no other was at hand.
    """

    samples: Int[Tensor, " rows"]
    places: Float[Tensor, " rows"]
    losses: Float[Tensor, " rows"]
    gains: Float[Tensor, " rows"]

    @property
    def loss(self) -> Estimate:
        """Mean loss."""
        return estimate(self.losses, self.samples)

    @property
    def gain(self) -> Estimate:
        """Reference gain."""
        return estimate(self.gains, self.samples)

    def losses_by_bucket(self, num_buckets: int) -> list[Estimate]:
        """Mean loss in equal parts of the schedule, from clean to noise."""
        return self._by_bucket(self.losses, num_buckets)

    def gains_by_bucket(self, num_buckets: int) -> list[Estimate]:
        """Reference gain in equal parts of the schedule, from clean to noise."""
        return self._by_bucket(self.gains, num_buckets)

    def _by_bucket(self, values: Tensor, num_buckets: int) -> list[Estimate]:
        buckets = (self.places * num_buckets).long()
        members = (buckets == number for number in range(num_buckets))
        return [estimate(values[rows], self.samples[rows]) for rows in members]


def plan_validation(
    samples: Int[Tensor, " samples"],
    buckets: Int[Tensor, " samples"],
    groups: Int[Tensor, " samples"],
    micro_batch_size: int,
    num_rows: int | None = None,
) -> ValidationPlan:
    """Arrange a validation: parts of one aspect bucket each, no larger than asked, with a partner for every row.

    Args:
        samples: Numbers of the samples, in a fixed order.
        buckets: Aspect bucket of each.
        groups: Samples of one group show the same thing, so that none may lend its reference to another.
        micro_batch_size: Largest part; at least two rows, without which there is no shuffling, are always taken.
        num_rows: Rows in all, where samples are so few that each is to have several; by default each has one.
    """
    turns = torch.arange(num_rows or len(samples)) % len(samples) if len(samples) else torch.arange(0)
    samples, buckets, groups = samples[turns], buckets[turns], groups[turns]
    order = torch.randperm(len(samples), generator=generator_at(VALIDATION_SEED, "places"))
    places = (order + 0.5) / max(1, len(samples))
    parts: list[ValidationPart] = []
    for bucket in buckets.unique().tolist():
        rows = (buckets == bucket).nonzero().flatten()
        number = math.ceil(len(rows) / max(2, micro_batch_size))
        for part in torch.tensor_split(rows, number):
            parts.append(ValidationPart(part, bucket, *shuffled_references(groups[part])))
    return ValidationPlan(samples, places, tuple(parts))


def shuffled_references(groups: Int[Tensor, " rows"]) -> tuple[Int[Tensor, " rows"], Bool[Tensor, " rows"]]:
    """A permutation that gives as many rows as can be the reference of another group, always the same one.

    Rows in the order of their groups are rotated; where no group holds more than half of the rows, a rotation by the
    size of the largest leaves none its own group.

    Returns:
        Whose reference each row takes, and whether that is of another group.
    """
    order = torch.argsort(groups, stable=True)
    best, most = order, -1
    for distance in range(len(groups)):
        lent = order.roll(-distance)
        count = int((groups[lent] != groups[order]).sum())
        if count > most:
            best, most = lent, count
    partners = torch.empty_like(order)
    partners[order] = best
    return partners, groups[partners] != groups


def validate(task: ValidationTask, plan: ValidationPlan, processes: Processes | None = None) -> ValidationResult:
    """Measure the model as it is, each process its share of the parts; all get the whole result.

    Neither gradients nor random numbers of the training are touched, and the model's modes are put back.

    Args:
        task: What is validated.
        plan: With what.
        processes: Those that call this together; only this one by default.
    """
    device = next(task.model.parameters()).device
    processes = processes or Processes(device)
    number = len(plan.samples)
    losses, gains = torch.zeros(number, dtype=torch.float64), torch.zeros(number, dtype=torch.float64)
    has_gain = torch.zeros(number, dtype=torch.bool)
    with undisturbed(task.model):
        for number in rounds(len(plan.parts), processes):
            part = plan.parts[number % len(plan.parts)]
            right, shuffled = _part_losses(task, plan, part, device)
            if number < len(plan.parts):
                losses[part.rows], gains[part.rows] = right, shuffled - right
    for part in plan.parts:
        has_gain[part.rows] = part.has_partner
    losses, gains = processes.mean(torch.stack([losses, gains])) * processes.count  # each has one process's number
    return ValidationResult(plan.samples, plan.places, losses.float(), gains.masked_fill(~has_gain, math.nan).float())


def rounds(num_parts: int, processes: Processes) -> range:
    """Numbers of the parts that a process computes: as many as every other, since a sharded base is computed together.

    Numbers from `num_parts` on are parts over again, whose result is another process's to give.
    """
    count = processes.count
    return range(processes.index, -(-num_parts // count) * count, count)


def estimate(values: Float[Tensor, " values"], clusters: Int[Tensor, " values"]) -> Estimate:
    """Mean of those values that are numbers, and its standard error.

    Args:
        values: May hold what is no number.
        clusters: Values of one cluster are not independent of each other; those of different ones are.
    """
    known = ~values.isnan()
    values, clusters = values[known].double(), clusters[known]
    if not len(values):
        return Estimate(math.nan, math.nan, 0)
    names, members = clusters.unique(return_inverse=True)
    sums = torch.zeros(len(names), dtype=torch.float64).index_add(0, members, values - values.mean())
    number = len(names)
    error = math.sqrt(float(sums.square().sum()) * number / (number - 1)) / len(values) if number > 1 else math.nan
    return Estimate(float(values.mean()), error, len(values))


@contextmanager
def undisturbed(*modules: nn.Module) -> Iterator[None]:
    """Compute without gradients and in evaluation mode; modes and random numbers are as before afterwards."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    for module in modules:
        module.eval()
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def _part_losses(
    task: ValidationTask, plan: ValidationPlan, part: ValidationPart, device: torch.device
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Losses of a part's rows under the right references and under the shuffled ones."""
    batch = task.without_dropout(task.batch(plan.draw(part)))
    batch = task.with_timesteps(batch, task.noise.at(plan.places[part.rows]))
    shuffled = task.with_references(batch, part.partners)
    right, wrong = (
        task.row_losses(map_tensors(each, lambda value: value.to(device))).cpu().double() for each in (batch, shuffled)
    )
    return right, wrong
