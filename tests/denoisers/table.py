"""What an entry of the table is, and which classes the table has to cover."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

Config = dict[str, Any]
Arguments = dict[str, Any]


class Draw:
    """Random tensors for the rows of one call.

    Row r of a call with seed s is drawn like row 0 of one with seed s + r: so one row of a batch can be called alone.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self.rows = rows
        self.seed = seed
        self._count = 0

    def generators(self) -> list[torch.Generator]:
        """One a row; others with every call."""
        self._count += 1
        return [torch.Generator().manual_seed(1009 * (self.seed + row) + self._count) for row in range(self.rows)]

    def separate(self, *shape: int) -> list[Tensor]:
        """Normal numbers, a tensor a row."""
        return [torch.randn(shape, generator=generator) for generator in self.generators()]

    def __call__(self, *shape: int) -> Tensor:
        """Normal numbers [rows, *shape]."""
        return torch.stack(self.separate(*shape))

    def integers(self, below: int, *shape: int) -> Tensor:
        """Integers [rows, *shape], from 0 and below `below`."""
        return torch.stack([torch.randint(below, shape, generator=generator) for generator in self.generators()])

    def lengths(self, longest: int) -> list[int]:
        """How much of a text is real, a number a row: from half of it to all of it."""
        return [longest - int(number) for number in self.integers(longest // 2 + 1)]

    def mask(self, longest: int, dtype: torch.dtype = torch.bool) -> Tensor:
        """Which tokens of a text are real [rows, longest]: the first ones."""
        return (torch.arange(longest) < torch.tensor(self.lengths(longest))[:, None]).to(dtype)

    def each(self, value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        """The same number for every row [rows]: a timestep."""
        return torch.full((self.rows,), value, dtype=dtype)


def sample(result: Any) -> Tensor:
    """What nearly every denoiser returns."""
    return result.sample


@dataclass(frozen=True)
class Denoiser:
    """One class.

    Attributes:
        name: its name in diffusers.
        config: a tiny configuration.
        arguments: the keyword arguments of one call.
        output: the tensor [rows, ...] that the call is about, taken from what it returned.
        most_rows: how many rows one call can have; None without a limit.
        warns: how a warning begins that the class gives of itself, whoever builds or calls it.
        reason: why it is not built here; None if it is.
    """

    name: str
    config: Config = field(default_factory=dict)
    arguments: Callable[[Draw], Arguments] = lambda _: {}
    output: Callable[[Any], Tensor] = sample
    most_rows: int | None = None
    warns: str | None = None
    reason: str | None = None

    @property
    def kind(self) -> type[nn.Module]:
        """The class itself."""
        return getattr(diffusers.models, self.name, None) or getattr(diffusers, self.name)

    def build(self, *, seed: int = 0) -> Any:
        """A frozen model in inference mode, every weight of it random; the global generator stays as it is."""
        with torch.random.fork_rng(devices=[]), self.quiet():
            torch.manual_seed(seed)
            model = self.kind(**self.config).eval().requires_grad_(False)
        draw_weights(model, torch.Generator().manual_seed(seed))
        return model

    def inputs(self, rows: int = 1, *, seed: int = 0) -> Arguments:
        """The keyword arguments of one call, `rows` rows that differ."""
        return self.arguments(Draw(rows, seed))

    def call(self, model: Any, inputs: Arguments) -> Tensor:
        """The output of one call, without gradients."""
        with torch.no_grad(), self.quiet():
            return self.output(model(**inputs))

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Without the warning that the class gives of itself."""
        with warnings.catch_warnings():
            if self.warns is not None:
                warnings.filterwarnings("ignore", message=self.warns)
            yield


def draw_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight: many classes start with gates and last layers of zero, and would do nothing at all."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:  # keeps the variance of what passes through
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
        elif name.endswith("weight"):  # of a normalisation
            parameter.copy_(1 + 0.1 * noise)
        else:
            parameter.copy_((0.1 if name.endswith("bias") else 0.5) * noise)


def all_denoiser_classes() -> list[str]:
    """Every class of the installed diffusers that can be what a pipeline denoises with.

    These are the models exported from `models.transformers` and `models.unets`, the other models named a UNet, and
    those that live beside their pipeline. Names alone tell, since importing all pipelines takes long.
    """
    models = {
        name
        for module, names in diffusers.models._import_structure.items()
        for name in names
        if module.startswith(("transformers.", "unets.")) or "UNet" in name
    }
    beside = {
        name
        for name in diffusers._import_structure["pipelines"]
        if name.endswith("Model") and not name.endswith(("ProjectionModel", "RuntimeModel"))
    }
    return sorted(models | beside)
