"""Where layers stand in a host: found once, and read at every call, since others may come in their place."""

from collections.abc import Iterable

from torch import nn

from imprompt.adapter.sites import submodule

LayerPlace = tuple[nn.Module, str]


def place_of(host: nn.Module, path: str) -> LayerPlace:
    """A layer's parent, and its name there."""
    parent, _, name = path.rpartition(".")
    return submodule(host, parent), name


def layers_at(places: Iterable[LayerPlace]) -> list[nn.Module]:
    """The layers that stand at some places now."""
    return [parent._modules[name] for parent, name in places]  # pyright: ignore
