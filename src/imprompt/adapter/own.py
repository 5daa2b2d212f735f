"""What a host itself attends to at a site: read only where an image shares one softmax with it.

The host's keys are read where it makes them, as queries are; how it masks and turns them is read off its call of the
attention.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from imprompt.adapter.attention import log_sum_exp, turned
from imprompt.adapter.places import layers_at, place_of
from imprompt.adapter.sites import Site, submodule
from imprompt.core.errors import HostMismatch

# How a call of an attention says which keys are real: as truth, or as a number that is added.
MASKS = ("attention_mask", "mask")

Cut = Callable[[Tensor, int], Tensor]


class OwnKeys:
    """Reads the host's own keys at a site, and what its call says of them.

    Args:
        site: the site.
        host: the denoiser.
        is_wanted: whether anything shall be kept of the present call.
    """

    def __init__(self, site: Site, host: nn.Module, is_wanted: Callable[[], bool]) -> None:
        self.site = site
        self.is_wanted = is_wanted
        self._attention: Any = submodule(host, site.name)
        self._parameters = tuple(inspect.signature(self._attention.forward).parameters)
        self._places = [place_of(host, path) for path in site.own_keys]
        self._keys: list[Tensor | None] = [None] * len(site.own_keys)
        self._arguments: dict[str, Any] = {}
        self._tapped: list[nn.Module] = []
        self._hooks: list[Any] = []

    def install(self) -> None:
        """Hook the layers that are in place now."""
        self._tapped = layers_at(self._places)
        for number, layer in enumerate(self._tapped):
            self._hooks.append(layer.register_forward_hook(KeysHook(self, number)))
        self._hooks.append(self._attention.register_forward_pre_hook(self._ask, with_kwargs=True))

    def remove(self) -> None:
        """Unhook."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._tapped = [], []
        self.forget()

    def forget(self) -> None:
        """Drop what was read."""
        self._keys = [None] * len(self._keys)
        self._arguments = {}

    def keep(self, number: int, keys: Tensor) -> None:
        """Keep one part's keys."""
        self._keys[number] = keys

    @property
    def is_current(self) -> bool:
        """Whether the hooked layers are still the host's; see `SiteTap.is_current`."""
        return bool(self._tapped) and all(a is b for a, b in zip(self._tapped, layers_at(self._places), strict=True))

    def log_mass(
        self, query: Float[Tensor, "batch heads length head"], laid_out: Callable[[Tensor], Tensor], cut: Cut
    ) -> Float[Tensor, "batch heads length 1"]:
        """Logarithm of what the host's own softmax divides by, at each of the picture's queries.

        Args:
            query: the picture's, as they were read.
            laid_out: brings what was read to [batch, heads, length, head].
            cut: the picture's part of a sequence along an axis.

        Raises:
            HostMismatch: the host did not make those keys.
        """
        parts, arguments = [laid_out(part) for part in self._keys if part is not None], self._arguments
        self.forget()
        if len(parts) != len(self.site.own_keys):
            raise HostMismatch(
                f"{self.site.name} made {len(parts)} of the {len(self.site.own_keys)} keys that a joint softmax reads "
                f"({', '.join(self.site.own_keys)}); do not fuse its projections, or choose another attention"
            )
        lengths = [part.shape[2] for part in parts]
        start, length = sum(lengths[: self.site.own_part]), lengths[self.site.own_part]

        def of_picture(sequence: Tensor) -> Tensor:
            return cut(sequence.narrow(2, start, length), 2)

        keys = torch.cat(parts, dim=2)
        rotations = arguments.get(self.site.rotations or "")
        if rotations is not None:
            before = start + length - len(rotations[0]) if self.site.query_span == "last" else start
            cosines, sines = _of_all(rotations, before, sum(lengths))
            query = turned(query, of_picture(cosines), of_picture(sines))
            keys = turned(keys, cosines, sines)
        mask = next((arguments[name] for name in MASKS if arguments.get(name) is not None), None)
        if mask is not None:
            mask = _laid_out_mask(mask, sum(lengths))
            mask = mask if mask.shape[2] in (1, query.shape[2]) else of_picture(mask)
        return log_sum_exp(query, keys, mask)

    def _ask(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.is_wanted():
            self._arguments = dict(zip(self._parameters, args)) | kwargs  # noqa: B905  (some are named)


class KeysHook:
    """Keeps what a layer gives and changes nothing, so that what was kept of the layer's text stays valid beside it."""

    def __init__(self, own: OwnKeys, number: int) -> None:
        self.own, self.number = own, number

    def __call__(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        """The hook."""
        if self.own.is_wanted():
            self.own.keep(self.number, output.clone() if self.own.site.is_overwritten else output)


def _of_all(rotations: Any, before: int, total: int) -> list[Float[Tensor, "1 1 length head"]]:
    """Cosines and sines of a whole sequence: those that a host gives may be the picture's alone."""
    tables = []
    for table, still in zip(rotations, (1.0, 0.0), strict=True):
        if len(table) < total:
            after = total - before - len(table)
            ends = [table.new_full((count, table.shape[1]), still) for count in (before, after)]
            table = torch.cat([ends[0], table, ends[1]])
        tables.append(table[None, None])
    return tables


def _laid_out_mask(mask: Tensor, total: int) -> Tensor:
    """A mask as [batch, 1 or heads, 1 or length, keys]. One of the text alone has the picture before it, all real."""
    axes = {2: (slice(None), None, None), 3: (slice(None), None), 4: (slice(None),)}[mask.ndim]
    is_added = mask.is_floating_point()
    mask = mask[axes] if is_added else mask[axes].bool()
    return functional.pad(mask, (total - mask.shape[-1], 0), value=0.0 if is_added else True)
