"""Attach adapters to a host and take them off again: afterwards the host is what it was, bit for bit."""

import itertools
import logging
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.bank import Bank, BoundBranch, build_bank
from imprompt.adapter.clock import progress_bins, run_timesteps
from imprompt.adapter.conditioning import Conditioning
from imprompt.adapter.guidance import LAYOUTS, bank_rows, layout_of
from imprompt.adapter.sites import Site, find_sites
from imprompt.adapter.taps import Frame, FusedProcessor, SiteTap, is_stock
from imprompt.core.errors import ConditioningError, HostMismatch

logger = logging.getLogger(__name__)

# Not `Self`: beartype, which checks annotations in tests, knows that only inside classes that it decorates itself.
Bond = TypeVar("Bond", bound="Attachment")

_live: weakref.WeakValueDictionary[int, "Attachment"] = weakref.WeakValueDictionary()
_handles = itertools.count()


class Attachment:
    """The live bond between adapters and a host; a context manager.

    Attributes:
        pipe: the pipeline, or None if a bare UNet was given.
        host: the UNet.
        adapters: the attached adapters.
        sites: the host's sites, in checkpoint order.
    """

    def __init__(
        self, target: Any, *adapters: Adapter, offload: bool = False, fuse: bool = True, guidance: str | None = None
    ) -> None:
        self.pipe, self.host = _pipe_and_host(target)
        self.adapters = adapters
        self.sites = find_sites(self.host)
        for adapter in adapters:
            _check_fit(adapter, self.sites, self.host)
        if guidance is not None and guidance not in LAYOUTS:
            raise ConditioningError(f"unknown guidance {guidance!r}; expected one of {', '.join(LAYOUTS)}")
        self.offload = offload
        self.guidance = guidance if guidance is not None or self.pipe is not None else "none"
        self._frame = Frame()
        self._banks: tuple[Bank, ...] = ()
        self._bound: tuple[Any, tuple[BoundBranch, ...]] | None = None
        self._attached = False
        self._handle = next(_handles)
        _live[self._handle] = self
        self._install(fuse)

    def set(self, conditioning: Conditioning | None) -> None:
        """Give every row its image prompts; None takes them away.

        Keys and values are computed here, once, and not again until the next `set`. With `offload` the adapters'
        weights leave the device again when they are.

        Raises:
            ConditioningError: the attachment was detached, or the conditioning names an adapter that is not attached.
        """
        if not self._attached:
            raise ConditioningError("this attachment was detached; attach the adapter again")
        self._bound, self._banks, self._frame.branches = None, (), ()
        for tap in self._taps:
            tap.query = None
        if conditioning is not None:
            self._banks = tuple(self._bank(branch) for branch in conditioning.branches)

    def detach(self) -> None:
        """Take the taps off and put the host's processors back. Doing it twice does nothing."""
        if not self._attached:
            return
        self._attached = False
        for hook in self._hooks:
            hook.remove()
        for tap in self._taps:
            tap.remove()
        for tap, fused in zip(self._taps, self._fused, strict=True):
            if fused is not None and tap.attention.processor is fused:
                tap.attention.processor = fused.stock
        for fused in self._fused:
            if fused is not None:
                fused.text_cache.clear()
        self._frame.is_live, self._frame.branches, self._frame.run = False, (), None
        self._banks, self._bound = (), None
        self._forget_compiled()

    def __enter__(self: Bond) -> Bond:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def __repr__(self) -> str:
        names = ", ".join(repr(adapter.spec.name) for adapter in self.adapters)
        state = f"{len(self._banks)} image prompt(s) set" if self._attached else "detached"
        return f"{type(self).__name__}({names} on {type(self.host).__name__}, {len(self.sites)} sites, {state})"

    def _install(self, fuse: bool) -> None:
        modules = [self.host.get_submodule(site.name) for site in self.sites]
        self._taps = [
            SiteTap(site, position, module, self._frame)
            for position, (site, module) in enumerate(zip(self.sites, modules, strict=True))
        ]
        self._fused = [
            FusedProcessor(tap, tap.attention.processor) if fuse and is_stock(tap.attention.processor) else None
            for tap in self._taps
        ]
        for tap, fused in zip(self._taps, self._fused, strict=True):
            tap.install()
            if fused is not None:
                tap.attention.processor = fused
        self._hooks = [
            self.host.register_forward_pre_hook(self._before, with_kwargs=True),
            self.host.register_forward_hook(self._after),
        ]
        self._attached = True
        self._forget_compiled()

    def _forget_compiled(self) -> None:
        # A graph that was compiled before the hooks changed does not look at hooks again, and a host cannot tell who
        # compiled it. Without anything compiled this costs nothing.
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()

    def _bank(self, branch: Any) -> Bank:
        if not 0 <= branch.adapter < len(self.adapters):
            raise ConditioningError(
                f"a prompt names adapter {branch.adapter}, but {len(self.adapters)} are attached; count from 0"
            )
        device = self.device
        with _on_device(self.adapters[branch.adapter], device, self.offload) as adapter:
            return build_bank(adapter, branch, self.sites, device=device, dtype=_floating_dtype(self.host))

    @property
    def device(self) -> torch.device:
        """Where the host computes, also when its weights are elsewhere between calls."""
        device = getattr(self.pipe, "_execution_device", None) or _hooked_device(self.host)
        return torch.device(device) if device is not None else next(self.host.parameters()).device

    def _before(self, _host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Prepare a call of the host: which rows, which step."""
        sample = args[0] if args else kwargs["sample"]
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        self._frame.size = (sample.shape[-2], sample.shape[-1])
        if torch.compiler.is_compiling():
            self._frame.branches = self._bind_compiled(sample, timestep)
            return
        self._refresh_taps()
        self._frame.run = getattr(getattr(self.pipe, "scheduler", None), "timesteps", None)
        self._frame.branches = self._bind(sample, timestep)

    def _after(self, *_: Any) -> None:
        if torch.compiler.is_compiling():
            self._frame.branches = ()  # else the graph would return them

    def _refresh_taps(self) -> None:
        for tap in self._taps:
            if not tap.is_current:
                tap.remove()
                tap.install()

    def _bind(self, sample: Tensor, timestep: Any) -> tuple[BoundBranch, ...]:
        if not self._banks:
            return ()
        rows = self.bank_rows(sample.shape[0])
        # Rows that were picked without gradients serve no call that wants some.
        key = (rows, sample.device, torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        if self._bound is None or self._bound[0] != key:
            index = torch.tensor(rows, device=sample.device)
            self._bound = (key, tuple(bank.bind(index, None) for bank in self._banks))
        bound = self._bound[1]
        if any(bank.schedule is not None for bank in self._banks):
            scales = self.scales_at(torch.as_tensor(timestep), rows)
            for branch, bank, scale in zip(bound, self._banks, scales, strict=True):
                branch.schedule = None if bank.schedule is None else scale.to(sample.device)
        return bound

    def _bind_compiled(self, sample: Tensor, timestep: Any) -> tuple[BoundBranch, ...]:
        if not self._banks:
            return ()
        timestep = torch.as_tensor(timestep, device=sample.device)
        rows, scales = torch.ops.imprompt.rows_and_scales(timestep, self._handle, sample.shape[0])
        return tuple(
            bank.bind(rows, None if bank.schedule is None else scales[number].to(sample.dtype))
            for number, bank in enumerate(self._banks)
        )

    def bank_rows(self, batch: int) -> tuple[int, ...]:
        """Which row of the banks conditions each row of a host's batch of this size.

        Raises:
            ConditioningError: the batch does not fit the guidance and the rows that were set.
        """
        layout = self.guidance or layout_of(self.pipe, batch)
        if "negative" in LAYOUTS[layout] and not all(bank.has_null for bank in self._banks):
            raise ConditioningError(
                f"guidance '{layout}' has negative rows, but a prompt has no null tokens; give the conditioning some"
            )
        return bank_rows(layout, rows=self._banks[0].rows, batch=batch)

    def scales_at(self, timestep: Tensor, rows: tuple[int, ...]) -> Tensor:
        """Scale of every branch, site and row of the host's batch at a timestep: [branches, sites, batch]."""
        bins = progress_bins(run_timesteps(self.pipe), timestep)
        index = torch.tensor([row % self._banks[0].rows for row in rows], device=bins.device)
        return torch.stack([self._scale(bank, bins, index) for bank in self._banks])

    def _scale(self, bank: Bank, bins: Tensor, index: Tensor) -> Tensor:
        if bank.schedule is None:
            return torch.ones(len(self.sites), len(index), device=index.device)
        table = bank.schedule.to(bins.device)[bins][..., index]
        return table[0] if len(bins) == 1 else table.diagonal(dim1=0, dim2=2)


def attach(
    target: Any, *adapters: Adapter, offload: bool = False, fuse: bool = True, guidance: str | None = None
) -> Attachment:
    """Attach adapters to a pipeline's UNet, or to a bare UNet.

    Attaching and detaching reset `torch.compiler`, so that no graph goes on without, or with, the taps.

    Args:
        target: a diffusers pipeline with a `UNet2DConditionModel`, or that UNet.
        adapters: what to attach.
        offload: move the adapters' weights off the device whenever they have done their work in `set`.
        fuse: put a faster processor with the same output in place of diffusers' stock one.
        guidance: the layout of a batch, one of `guidance.LAYOUTS`; by default the pipeline tells. A bare UNet has
            positive rows alone unless this says otherwise.

    Raises:
        HostMismatch: the adapter was made for a host of another shape.
        ConditioningError: the guidance is unknown.
    """
    return Attachment(target, *adapters, offload=offload, fuse=fuse, guidance=guidance)


@torch.library.custom_op("imprompt::rows_and_scales", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def rows_and_scales(timestep: Tensor, handle: int, batch: int) -> tuple[Tensor, Tensor]:
    """What a compiled graph asks for at every call: rows of the banks [batch], scales [branches, sites, batch].

    Opaque to the compiler, so guidance, prompts, weights and schedules can change under a graph without a new one.
    """
    attachment = _live[handle]
    attachment._refresh_taps()
    rows = attachment.bank_rows(batch)
    index = torch.tensor(rows, device=timestep.device)
    if all(bank.schedule is None for bank in attachment._banks):
        return index, timestep.new_zeros((len(attachment._banks), len(attachment.sites), batch), dtype=torch.float32)
    return index, attachment.scales_at(timestep, rows).to(timestep.device, torch.float32).contiguous()


@rows_and_scales.register_fake
def _(timestep: Tensor, handle: int, batch: int) -> tuple[Tensor, Tensor]:
    attachment = _live[handle]
    attachment._refresh_taps()  # at tracing, and so before the sites are traced: a LoRA may have come since
    shape = (len(attachment._banks), len(attachment.sites), batch)
    return timestep.new_empty((batch,), dtype=torch.int64), timestep.new_empty(shape, dtype=torch.float32)


@contextmanager
def _on_device(adapter: Adapter, device: torch.device, offload: bool) -> Iterator[Adapter]:
    home = adapter.device
    adapter.to(device)
    try:
        yield adapter
    finally:
        if offload:
            adapter.to("cpu" if home == device else home)


def _hooked_device(host: nn.Module) -> Any:
    """Where accelerate's hooks bring the weights for a call; None without any."""
    hooks = (getattr(module, "_hf_hook", None) for module in host.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    return next((device for device in devices if device is not None), None)


def _floating_dtype(host: nn.Module) -> torch.dtype:
    floating = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    dtypes = (parameter.dtype for parameter in host.parameters())
    return next((dtype for dtype in dtypes if dtype in floating), torch.float32)


def _pipe_and_host(target: Any) -> tuple[Any, nn.Module]:
    host = target if isinstance(target, nn.Module) else getattr(target, "unet", None)
    if not isinstance(host, nn.Module):
        raise HostMismatch(
            f"{type(target).__name__} has no UNet to attach to; pass a diffusers pipeline with a UNet2DConditionModel"
        )
    pipe = None if isinstance(target, nn.Module) else target
    return pipe, getattr(host, "_orig_mod", host)


def _check_fit(adapter: Adapter, sites: tuple[Site, ...], host: nn.Module) -> None:
    spec = adapter.spec
    wanted = (spec.cross_attention_dim, len(spec.site_widths))
    found = (sites[0].key_width, len(sites))
    if wanted != found:
        raise HostMismatch(
            f"{spec.name!r} wants a {spec.family} UNet with {wanted[1]} cross-attentions of width {wanted[0]}; "
            f"{type(host).__name__} has {found[1]} of width {found[0]}. Load the base that the adapter was made for."
        )
    for site, index, width in zip(sites, spec.site_indices, spec.site_widths, strict=True):
        if (site.index, site.query_width) != (index, width):
            raise HostMismatch(
                f"{spec.name!r} has keys of width {width} at number {index}; {site.name} of {type(host).__name__} has "
                f"width {site.query_width} at number {site.index}. Load the base that the adapter was made for."
            )
