"""What a family says: where its sites are, how its denoiser is called, and how its pipelines lay out guidance."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from imprompt.adapter.sites import Place, Site, find_places

Arguments = Mapping[str, Any]

# The layers that make the host's own keys, where it attends to one sequence; see `Place.own`.
TEXT_KEYS = (("norm_k", "to_k"),)


@dataclass(frozen=True, kw_only=True)
class HostCall:
    """One call of a denoiser, as far as image prompts care.

    Attributes:
        batch: its rows.
        device: where its latents are.
        dtype: number format of its latents.
        timestep: one, or one a row, as the scheduler counts them; empty where the call does not tell. `raw_timestep` as
            the denoiser was given it.
        size: height and width of what regions are placed on (a UNet's latent, a transformer's grid of tokens); None
            where the call does not tell.
        num_queries: tokens of the picture in sequences that hold others too; None if none do.
        part: the layout of this call, a key of `guidance.LAYOUTS`, where it says so itself; "skip" where no image shall
            act.
        layout: how the pipelines lay out guidance in this call, where its arguments tell that much.
        index: places of the picture's tokens in each row of a sequence, [batch, tokens], where rows differ.
        positions: what `Family.measure` reads the size from, where nothing else tells it.
    """

    batch: int
    device: torch.device
    dtype: torch.dtype
    timestep: Any
    raw_timestep: Any
    size: tuple[int, int] | None
    num_queries: int | None = None
    part: str | None = None
    layout: str | None = None
    index: Tensor | None = None
    positions: Tensor | None = None


def same(value: Any, _host: Any) -> Any:
    """A timestep that the denoiser is given as the scheduler counts it."""
    return value


def thousandths(value: Any, _host: Any) -> Any:
    """A timestep that the denoiser is given as a fraction of 1000."""
    return value * 1000


def packed_tokens(latents: Tensor, _arguments: Arguments, _host: Any) -> tuple[tuple[int, int] | None, int | None]:
    """Latents that are a sequence already: [batch, tokens, channels]; where they lie is not told."""
    return None, latents.shape[1]


def patched_grid(latents: Tensor, _arguments: Arguments, host: Any) -> tuple[tuple[int, int] | None, int | None]:
    """Latents [batch, ..., channels, (frames,) height, width] that the host cuts into patches."""
    patch = patch_of(host.config)
    height, width = (-(-side // part) for side, part in zip(latents.shape[-2:], patch[-2:], strict=True))
    frames = -(-latents.shape[-3] // patch[0]) if latents.ndim > 4 else 1
    return (height, width), frames * height * width


def patch_of(config: Any) -> tuple[int, int, int]:
    """Frames, height and width of a patch, under whichever name a configuration has them."""
    size = getattr(config, "patch_size", None) or 1
    frames, height, width = (1, *size)[-3:] if not isinstance(size, int) else (None, size, size)
    return frames or getattr(config, "patch_size_t", None) or 1, height, width


def whole_latent(latents: Tensor, _arguments: Arguments, _host: Any) -> tuple[tuple[int, int] | None, int | None]:
    """A UNet's latents, whose levels halve them."""
    return (latents.shape[-2], latents.shape[-1]), None


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of denoiser, or a way in which adapters act on one.

    Attributes:
        name: as specs say it.
        title: as people say it.
        hosts: names of the denoiser classes.
        sites: finds the sites of a host, in checkpoint order.
        fits: whether a host of these classes is of this family.
        is_default: whether a fresh adapter for such a host is of this family; others are chosen by a file.
        beside: other families whose adapters may act on a host together with this one's: their sites are the same, and
            what this one does to tokens leaves theirs alone.
        latents: name of the denoiser's argument that holds the latents.
        timestep: name of the argument that holds the timestep; None where there is none.
        clock: the timestep as the scheduler counts it, of the denoiser's and of the host; None where the denoiser's
            does not tell, so that the scheduler is asked.
        grid: size of the picture in tokens, and their number, of latents, arguments and host.
        part: the layout of a call, of its arguments, where they tell; see `HostCall`.
        layout: the same of what this family's pipelines ask for, which a bare denoiser's caller need not.
        index: places of the picture's tokens in each row, [batch, tokens], of arguments and host; see `HostCall`.
        positions: name of the argument that holds the place of every token, where its numbers alone tell the size.
        measure: height and width of the picture in tokens, of that argument; None where it does not tell. It waits for
            the device, so it is asked only where a region has to be placed.
        guidance: how this family's pipelines lay out guidance, where the pipeline itself does not tell more: a key of
            `guidance.LAYOUTS`, or "separate" for one call a half.
        is_packed: whether a call is a single row, its sequences without an axis for rows.
        has_free_tokens: whether tokens may have another width than the host's text has at its attentions.
        host_tokens: what the host itself does to image tokens before keys and values are made of them.
        host_token_width: width of the tokens that it does that to; None if a host has no such part.
        lora_names: paths of all attentions by their numbers in checkpoints, for files that change them.
        text_layer: the layer that the host's text passes before its attentions, None where it comes as it is; for hosts
            whose attentions read the text apart from the picture, in which texts of regions can act.
    """

    name: str
    title: str
    hosts: tuple[str, ...]
    sites: Callable[[nn.Module], tuple[Site, ...]]
    matches: Callable[[nn.Module], bool] | None = None
    is_default: bool = True
    beside: tuple[str, ...] = ()
    latents: str = "hidden_states"
    timestep: str | None = "timestep"
    clock: Callable[[Any, Any], Any] | None = same
    grid: Callable[[Any, Arguments, Any], tuple[tuple[int, int] | None, int | None]] = patched_grid
    part: Callable[[Arguments], str | None] | None = None
    layout: Callable[[Arguments], str | None] | None = None
    index: Callable[[Arguments, Any], Tensor] | None = None
    positions: str | None = None
    measure: Callable[[Tensor], tuple[int, int] | None] | None = None
    guidance: str = "cfg"
    is_packed: bool = False
    has_free_tokens: bool = False
    host_tokens: Callable[[nn.Module, Tensor], Tensor] | None = None
    host_token_width: Callable[[nn.Module], int | None] | None = None
    lora_names: Callable[[nn.Module], dict[int, str]] | None = None
    text_layer: Callable[[nn.Module], nn.Module | None] | None = None

    def fits(self, host: nn.Module) -> bool:
        """Whether a host is of this family. A denoiser that inherits from a known one is known by its parent's name."""
        names = {kind.__name__ for kind in type(host).__mro__}
        return not names.isdisjoint(self.hosts) and (self.matches is None or self.matches(host))

    def read(self, host: nn.Module, arguments: Arguments) -> HostCall:
        """What a call of the host says."""
        latents = arguments[self.latents]
        timestep = None if self.timestep is None else arguments[self.timestep]
        sample = latents[0] if isinstance(latents, list | tuple) else latents
        size, num_queries = self.grid(latents, arguments, host)
        return HostCall(
            batch=1 if self.is_packed else len(latents),
            device=sample.device,
            dtype=sample.dtype if sample.is_floating_point() else next(host.parameters()).dtype,
            timestep=torch.empty(0)
            if self.clock is None or timestep is None
            else self.clock(_one_a_row(timestep), host),
            raw_timestep=timestep,
            size=size,
            num_queries=num_queries,
            part=None if self.part is None else self.part(arguments),
            layout=None if self.layout is None else self.layout(arguments),
            index=None if self.index is None else self.index(arguments, host),
            positions=None if self.positions is None else arguments.get(self.positions),
        )


def _one_a_row(timestep: Any) -> Any:
    """The first in a run of a row's timesteps, where tokens have their own: frames that are given are at its end."""
    has_more = isinstance(timestep, Tensor) and timestep.ndim > 1
    return timestep.flatten(1).amax(dim=1) if has_more else timestep


def table_row(name: str, title: str, hosts: tuple[str, ...], *places: Place, **options: Any) -> Family:
    """A family whose sites a table tells, for adapters that are trained on these hosts and for no published ones."""
    return Family(
        name=name, title=title, hosts=hosts, sites=partial(find_places, places=places), has_free_tokens=True, **options
    )
