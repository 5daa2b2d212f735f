"""What is trained, as the loop sees it: a model, batches that are pure functions of the step, and a loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from imprompt.training.loop.order import BatchOrder, generator_at


@dataclass(frozen=True)
class Draw:
    """Which samples of one global batch somebody takes, and what randomness belongs to them.

    Attributes:
        step: Number of the step, from 0.
        seed: Of the run.
        samples: Numbers of the samples.
        rows: Their places in the global batch.
        batch_size: Of the global batch, over all processes.
        bucket: The one bucket that all its samples are of.
    """

    step: int
    seed: int
    samples: Int[Tensor, " rows"]
    rows: Int[Tensor, " rows"]
    batch_size: int
    bucket: int = 0

    def generator(self, purpose: str) -> torch.Generator:
        """The same numbers for whoever takes rows of this step: draw `batch_size` of them and index by `rows`."""
        return generator_at(self.seed, purpose, self.step)

    def row_generators(self, purpose: str) -> list[torch.Generator]:
        """One generator a row, for what is too much to draw for rows that others take, such as noise."""
        return [generator_at(self.seed, purpose, self.step, row) for row in self.rows.tolist()]

    def per_row(self, purpose: str, make: Callable[[torch.Generator, int], Tensor]) -> Tensor:
        """What `make(generator, batch_size)` draws for the rows of the global batch, for those taken here."""
        return make(self.generator(purpose), self.batch_size)[self.rows]

    def uniform(self, purpose: str, count: int) -> Float[Tensor, "rows {count}"]:
        """So many numbers from 0 to 1 for each row."""
        return self.per_row(purpose, lambda generator, rows: torch.rand(rows, count, generator=generator))

    def normal(self, purpose: str, shape: tuple[int, ...]) -> Float[Tensor, " rows *shape"]:
        """Standard normal numbers of the given shape for each row, from the row's own generator."""
        return torch.stack([torch.randn(shape, generator=generator) for generator in self.row_generators(purpose)])


@runtime_checkable
class Task(Protocol):
    """What is trained. All randomness comes from the draw, so that a resumed run is the uninterrupted one.

    A task may also offer `export(folder, weights)`: see `Exports`.
    """

    @property
    def model(self) -> nn.Module:
        """Everything that is trained and saved; a frozen base is not part of it."""
        ...

    @property
    def num_examples(self) -> int:
        """Samples of an epoch."""
        ...

    @property
    def order(self) -> BatchOrder:
        """Which samples each step takes."""
        ...

    def batch(self, draw: Draw) -> Any:
        """CPU tensors in a dataclass, dict, tuple or list; may run in another process, and touches no model."""
        ...

    def loss(self, batch: Any) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean loss over the rows of a batch that lies on the model's device, and figures for the log.

        Figures stay on the device: reading one here would make every step wait.
        """
        ...

    def preview(self, step: int) -> Mapping[str, float] | None:
        """Draw or measure what the (averaged) model makes now; what is returned goes into the log."""
        ...


@runtime_checkable
class Exports(Protocol):
    """A task whose checkpoints also hold what users take away."""

    def export(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write files for users into the folder, made of the (averaged) state of the model, and read them back.

        An error raised here leaves no checkpoint behind.
        """
        ...


def map_tensors(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same dataclasses, dicts, tuples and lists with every tensor changed; all else stays."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: map_tensors(value, change) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):  # a named tuple takes its parts one by one
        return type(tree)(*(map_tensors(value, change) for value in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(map_tensors(value, change) for value in tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(tree, **{part.name: map_tensors(getattr(tree, part.name), change) for part in fields(tree)})
    return tree
