"""A tiny model of every class that attaches, with a fresh random adapter for it."""

import functools
from typing import Any

from torch import Tensor, nn

from imprompt.adapter.adapter import Adapter, new_adapter, token_width
from imprompt.adapter.conditioning import Branch
from imprompt.adapter.families import NOT_ATTACHABLE, Family, family_of
from imprompt.adapter.sites import Site
from tests import tiny
from tests.denoisers import DENOISERS, Denoiser

ATTACHABLE: tuple[str, ...] = tuple(sorted(set(DENOISERS) - set(NOT_ATTACHABLE)))


class Attachable:
    """One class, built once.

    Attributes:
        entry: how it is built and called.
        model: the tiny model.
        family: its own.
        sites: the model's.
        adapter: a fresh one, every weight of it random.
        rows: of a call.
        plain: the output of such a call without an adapter.
    """

    def __init__(self, name: str) -> None:
        self.entry: Denoiser = DENOISERS[name]
        self.model: Any = self.entry.build()
        self.family: Family = family_of(self.model)
        self.sites: tuple[Site, ...] = self.family.sites(self.model)
        self.adapter: Adapter = tiny.seeded(functools.partial(random_adapter, self.model), 1)
        self.rows = self.entry.most_rows or 2
        self.plain = self.call()

    def inputs(self, rows: int | None = None, *, seed: int = 3) -> dict[str, Any]:
        """Arguments of one call. They are made anew, since some hosts write into what they are given."""
        return self.entry.inputs(rows or self.rows, seed=seed)

    def call(self, rows: int | None = None, *, seed: int = 3) -> Tensor:
        """The output of one call."""
        return self.entry.call(self.model, self.inputs(rows, seed=seed))

    def branch(self, rows: int | None = None, **options: Any) -> Branch:
        """An image prompt for every row, as `tiny.branch` makes them."""
        return tiny.branch(self.adapter, rows or self.rows, **options)


@functools.cache
def attachable(name: str) -> Attachable:
    """One class, built once for all that ask."""
    return Attachable(name)


def random_adapter(model: nn.Module) -> Adapter:
    """A fresh adapter, whose keys and values have a variance near one."""
    fresh = new_adapter(
        model,
        tiny.projector_spec("linear", width=token_width(model)),
        tiny.feature_spec("linear"),
        null_image="zero_features",
        name="tiny",
    )
    for parameter in fresh.parameters():
        fan_in = parameter.shape[-1] if parameter.ndim > 1 else 1
        nn.init.normal_(parameter, std=fan_in**-0.5)
    return fresh
