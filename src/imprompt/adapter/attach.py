"""Attach adapters to a host and take them off again: afterwards the host is what it was, bit for bit."""

import inspect
import logging
import sys
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from imprompt.adapter import compiled
from imprompt.adapter.adapter import Adapter
from imprompt.adapter.bank import Bank, TimedBank, build_bank
from imprompt.adapter.bound import BoundBranch
from imprompt.adapter.clock import noise_bins, num_levels, progress_bins, run_timesteps, told_timestep
from imprompt.adapter.conditioning import Branch, Conditioning
from imprompt.adapter.devices import floating_dtype, hooked_device, on_device
from imprompt.adapter.families import HostCall, family_of
from imprompt.adapter.fit import check_branch, check_fit, common_family, pipe_and_host, second_denoiser, sites_of
from imprompt.adapter.guidance import LAYOUTS, CallCounter, bank_rows, layout_of
from imprompt.adapter.lora import Loras
from imprompt.adapter.regional_text import TextBank, build_text_bank
from imprompt.adapter.strengths import look_up
from imprompt.adapter.taps import Frame, FusedProcessor, SiteTap, is_stock
from imprompt.core.errors import ConditioningError

logger = logging.getLogger(__name__)

# Not `Self`: beartype, which checks annotations in tests, knows that only inside classes that it decorates itself.
Bond = TypeVar("Bond", bound="Attachment")

Banks = tuple[Bank | TimedBank | TextBank, ...]

# Of how many choices of rows an attachment remembers what it bound: the halves of guidance, and a few sizes of batch.
MOST_BOUND = 4


class Attachment:
    """The live bond between adapters and a host; a context manager.

    Attributes:
        pipe: the pipeline, or None if a bare denoiser was given.
        host: the denoiser.
        second: the bond with the pipeline's other denoiser, where it has two, which is set and detached with this.
        adapters: the attached adapters, all of one family.
        family: how they act on the host.
        sites: the host's sites, in checkpoint order.
    """

    def __init__(
        self,
        target: Any,
        *adapters: Adapter,
        offload: bool = False,
        fuse: bool = True,
        guidance: str | None = None,
        lora_scale: float = 1.0,
        denoiser: str | None = None,
    ) -> None:
        self.pipe, self.host = pipe_and_host(target, denoiser)
        self.adapters = adapters
        self.family = common_family(adapters) if adapters else family_of(self.host)
        self.sites = sites_of(self.family, self.host)
        for adapter in adapters:
            check_fit(adapter, self.sites, self.host)
        if guidance is not None and guidance not in LAYOUTS:
            raise ConditioningError(f"unknown guidance {guidance!r}; expected one of {', '.join(LAYOUTS)}")
        self.offload = offload
        self.guidance = guidance if guidance is not None or self.pipe is not None else "none"
        self._loras = Loras(lora_scale)
        self._frame = Frame()
        self._calls = CallCounter()
        self._parameters = tuple(inspect.signature(self.host.forward).parameters)
        self._banks: Banks = ()
        self._bound: dict[Any, tuple[BoundBranch, ...]] = {}
        self._indices: dict[Any, Tensor] = {}
        self._taps: list[SiteTap] = []
        self._fused: list[FusedProcessor | None] = []
        self._hooks: list[Any] = []
        self._attached = False
        self._handle = compiled.register(self)
        options = {"offload": offload, "fuse": fuse, "guidance": guidance, "lora_scale": lora_scale}
        other = second_denoiser(self.pipe) if denoiser is None else None
        self.second = None if other is None else Attachment(target, *adapters, denoiser=other, **options)
        try:
            self._install(fuse)
        except BaseException:
            self._uninstall()
            raise

    def set(self, conditioning: Conditioning | None) -> None:
        """Give every row its image prompts; None takes them away.

        Keys and values are computed here, once, and not again until the next `set`. With `offload` the adapters'
        weights leave the device again when they are.

        Raises:
            ConditioningError: the attachment was detached, or the conditioning names an adapter that is not attached.
        """
        numbers = set() if conditioning is None else {branch.adapter for branch in conditioning.branches}
        with self._present(numbers):
            self._set(conditioning)

    def _present(self, numbers: Collection[int]) -> AbstractContextManager[None]:
        """Have the adapters of these numbers on the device, and with `offload` away from it again."""
        if not self._attached:
            raise ConditioningError("this attachment was detached; attach the adapter again")
        needed = [adapter for number, adapter in enumerate(self.adapters) if number in numbers]
        return on_device(needed, self.device, self.offload)

    def _set(self, conditioning: Conditioning | None, banks: Banks = ()) -> None:
        """What `set` does, with adapters that are present; and with banks, where they have been built already."""
        self._forget_bound()
        self._banks, self._frame.branches = (), ()
        for tap in self._taps:
            tap.forget()
        self._loras.choose(conditioning)
        if conditioning is not None:
            texts = [
                build_text_bank(text, self.host, self.family, self._taps, self._frame, self.device)
                for text in conditioning.texts
            ]
            self._banks = banks or (*texts, *map(self._bank, conditioning.branches))
        if not self._frame.reads_own and any(bank.strengths.joint is not None for bank in self._banks):
            self._frame.reads_own = True
            self._refresh_taps()
            self._forget_compiled()
        if self.second is not None:
            self.second._set(conditioning, self._banks if self._is_alike(self.second) else ())

    def _is_alike(self, other: "Attachment") -> bool:
        """Whether banks for this host are just as well those for another."""
        hosts = self.host, other.host
        same = self.sites == other.sites and self.device == other.device
        return same and self.family.host_tokens is None and len({*map(floating_dtype, hosts)}) == 1

    def detach(self) -> None:
        """Take the taps off and put the host's processors back. Doing it twice does nothing."""
        if not self._attached:
            return
        self._uninstall()

    def __enter__(self: Bond) -> Bond:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def __repr__(self) -> str:
        names = ", ".join(repr(adapter.spec.name) for adapter in self.adapters)
        state = f"{len(self._banks)} image prompt(s) set" if self._attached else "detached"
        return f"{type(self).__name__}({names} on {type(self.host).__name__}, {len(self.sites)} sites, {state})"

    def _install(self, fuse: bool) -> None:
        if self.family.lora_names is not None:  # before the taps, which read what the changed layers give
            names, dtype = self.family.lora_names(self.host), floating_dtype(self.host)
            self._loras.install(self.host, names, self.adapters, device=self.device, dtype=dtype)
        self._taps = [SiteTap(site, position, self.host, self._frame) for position, site in enumerate(self.sites)]
        self._fused = [
            FusedProcessor(tap, tap.attention.processor) if fuse and is_stock(tap.attention) else None
            for tap in self._taps
        ]
        for tap, fused in zip(self._taps, self._fused, strict=True):
            tap.install()
            if fused is not None:
                tap.attention.processor, tap.is_fused = fused, True
        self._hooks.append(self.host.register_forward_pre_hook(self._before, with_kwargs=True))
        self._hooks.append(self.host.register_forward_hook(self._after))
        self._attached = True
        self._forget_compiled()

    def _uninstall(self) -> None:
        """Take off whatever has been put on, also where that was not all."""
        self._attached = False
        if self.second is not None:
            self.second.detach()
        for hook in self._hooks:
            hook.remove()
        for tap in (*self._taps, self._loras):
            tap.remove()
        for fused in (fused for fused in self._fused if fused is not None):
            if fused.tap.attention.processor is fused:
                fused.tap.attention.processor = fused.stock
            fused.text_cache.clear()
        self._frame.is_live, self._frame.branches, self._frame.run = False, (), None
        self._banks = ()
        self._forget_bound()
        self._forget_compiled()

    def _forget_bound(self) -> None:
        self._bound, self._indices = {}, {}

    def _forget_compiled(self) -> None:
        # A graph that was compiled before the hooks changed does not look at hooks again, and a host cannot tell who
        # compiled it. Without anything compiled this costs nothing.
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()

    def _bank(self, branch: Branch) -> Bank | TimedBank:
        if not 0 <= branch.adapter < len(self.adapters):
            raise ConditioningError(
                f"a prompt names adapter {branch.adapter}, but {len(self.adapters)} are attached; count from 0"
            )
        family, adapter = self.family, self.adapters[branch.adapter]
        check_branch(branch, adapter, self.sites)
        return build_bank(
            adapter,
            branch,
            self.sites,
            device=self.device,
            dtype=floating_dtype(self.host),
            host_tokens=None if family.host_tokens is None else partial(family.host_tokens, self.host),
        )

    @property
    def device(self) -> torch.device:
        """Where the host computes, also when its weights are elsewhere between calls."""
        device = getattr(self.pipe, "_execution_device", None) or hooked_device(self.host)
        return torch.device(device) if device is not None else next(self.host.parameters()).device

    def _before(self, _host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Prepare a call of the host: which rows, which step."""
        call = self.family.read(self.host, dict(zip(self._parameters, args)) | kwargs)  # noqa: B905  (some are named)
        if self.guidance is None and call.layout is not None:
            call = replace(call, part=call.layout)
        self._frame.size, self._frame.num_queries, self._frame.index = call.size, call.num_queries, call.index
        if call.part == "skip":
            self._frame.branches = ()
            return
        if torch.compiler.is_compiling():
            self._frame.branches = self._bind_compiled(call)
            return
        self._refresh_taps()
        self._frame.size = self._measured(call)
        self._frame.run = getattr(getattr(self.pipe, "scheduler", None), "timesteps", None)
        self._frame.branches = self._bind(call)

    def _measured(self, call: HostCall) -> tuple[int, int] | None:
        return self.family.measure(call.positions) if self._has_to_measure(call) else call.size  # pyright: ignore

    def _has_to_measure(self, call: HostCall) -> bool:
        is_told = call.size is not None or call.positions is None or self.family.measure is None
        return not is_told and any(bank.region is not None for bank in self._banks)

    def _after(self, *_: Any) -> None:
        if torch.compiler.is_compiling():
            self._frame.branches = ()  # else the graph would return them
            self._loras.rest()

    def _refresh_taps(self) -> None:
        stale = self._loras.refresh()
        for tap in self._taps:
            if stale or not tap.is_current:
                tap.remove()
                tap.install()

    def _bind(self, call: HostCall) -> tuple[BoundBranch, ...]:
        if not self._banks:
            return ()
        rows = self.bank_rows(call.batch, call.part)
        self._loras.act(rows, call.device)
        # Rows that were picked without gradients serve no call that wants some.
        key = (rows, call.device, torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        kept = self._bound.get(key, (None,) * len(self._banks))
        if not all(kept) or any(bank.is_timed for bank in self._banks):
            index = self._index(rows, call.device)
            bound = tuple(
                bank.bind(index, None, call.raw_timestep, rows=rows) if bank.is_timed or branch is None else branch
                for bank, branch in zip(self._banks, kept, strict=True)
            )
            if len(self._bound) >= MOST_BOUND:
                self._bound.clear()
            self._bound[key] = bound
        bound = self._bound[key]
        if any(bank.schedule is not None for bank in self._banks):
            scales = self.scales_at(torch.as_tensor(call.timestep), rows).to(call.device)
            self._strengthen(bound, scales)
        return bound

    def _index(self, rows: tuple[int, ...], device: torch.device) -> Tensor:
        """Rows as numbers on a device, which are copied there once."""
        key = (rows, device, torch.is_inference_mode_enabled())
        if key not in self._indices:
            if len(self._indices) >= 2 * MOST_BOUND:
                self._indices.clear()
            self._indices[key] = torch.tensor(rows, device=device)
        return self._indices[key]

    def _strengthen(self, bound: tuple[BoundBranch, ...], scales: Tensor) -> None:
        """Give every branch its scales of `scales_at`."""
        keyed = iter(scales[len(bound) :])
        for branch, bank, scale in zip(bound, self._banks, scales, strict=False):
            branch.schedule = None if bank.schedule is None else scale
            branch.key_schedule = None if bank.strengths.keys is None else next(keyed)

    @property
    def _num_scales(self) -> int:
        """How many tables `scales_at` reads: one a branch, and one more where keys are scaled."""
        return len(self._banks) + sum(bank.strengths.keys is not None for bank in self._banks)

    def _bind_compiled(self, call: HostCall) -> tuple[BoundBranch, ...]:
        if not self._banks:
            return ()
        timestep = torch.as_tensor(call.timestep, device=call.device)
        rows, scales = torch.ops.imprompt.rows_and_scales(timestep, self._handle, call.batch, call.part or "")
        self._loras.act(rows, call.device)
        bound = tuple(bank.bind(rows, None, call.raw_timestep) for bank in self._banks)
        self._strengthen(bound, scales.to(call.dtype))
        if self._has_to_measure(call):
            placed = torch.ops.imprompt.placed_regions(call.positions, rows, self._handle, call.num_queries)
            for number, branch in enumerate(bound):
                branch.placed = None if branch.region is None else placed[number][:, None, :, None]
        return bound

    def bank_rows(self, batch: int, part: str | None = None) -> tuple[int, ...]:
        """Which row of the banks conditions each row of a host's batch of this size.

        Args:
            batch: rows of the host's call.
            part: which half of guidance the call is, where it says so itself.

        Raises:
            ConditioningError: the batch does not fit the guidance and the rows that were set.
        """
        layout = part or self.guidance or layout_of(self.pipe, batch, self.family.guidance)
        if layout == "separate":
            layout = self._calls.part(self.pipe)
        if "negative" in LAYOUTS[layout] and not all(bank.has_null for bank in self._banks):
            raise ConditioningError(
                f"guidance '{layout}' has negative rows, but a prompt has no null tokens; give the conditioning some"
            )
        return bank_rows(layout, rows=self._banks[0].rows, batch=batch)

    def scales_at(self, timestep: Tensor, rows: tuple[int, ...]) -> Tensor:
        """Scale of every branch, site and row of the host's batch at a timestep: [branches, sites, batch].

        Behind those of the branches stand the scales of keys, of the branches that have some.
        """
        strengths = [bank.strengths for bank in self._banks]
        changes = any(each.changes for each in strengths)
        timestep = told_timestep(timestep, self.pipe) if changes else timestep.new_zeros(1)
        has_steps = any(each.has_steps for each in strengths)
        step = progress_bins(run_timesteps(self.pipe), timestep) if has_steps else None
        level = noise_bins(timestep if step is None else timestep.to(step.device), num_levels(self.pipe))
        index = self._index(rows, level.device)
        tables = [(bank, bank.schedule) for bank in self._banks]
        tables += [(bank, bank.strengths.keys) for bank in self._banks if bank.strengths.keys is not None]
        none = torch.ones(len(self.sites), len(index), device=index.device)
        return torch.stack(
            [
                none if table is None else look_up(table.to(index.device), bank.strengths.bins(step, level), index)
                for bank, table in tables
            ]
        )


def attach(
    target: Any,
    *adapters: Adapter,
    offload: bool = False,
    fuse: bool = True,
    guidance: str | None = None,
    lora_scale: float = 1.0,
) -> Attachment:
    """Attach adapters to a pipeline's denoiser, or to a bare one.

    Attaching and detaching reset `torch.compiler`, so that no graph goes on without, or with, the taps.

    Args:
        target: a diffusers pipeline, or its denoiser.
        adapters: what to attach.
        offload: move the adapters' weights off the device whenever they have done their work in `set`. What works at
            every step stays: the LoRA of a FaceID adapter, and all of an adapter whose keys and values depend on the
            timestep (Stable Diffusion 3.5).
        fuse: put a faster processor with the same output in place of diffusers' stock one.
        guidance: the layout of a batch, one of `guidance.LAYOUTS`; by default the pipeline tells. A bare denoiser has
            positive rows alone unless this says otherwise.
        lora_scale: how strongly the changes act that some adapters make to the host's own attentions (FaceID), in rows
            that follow an image of theirs.

    Raises:
        HostMismatch: the adapter was made for another host, or the adapters for different ones.
        ConditioningError: the guidance is unknown.
    """
    return Attachment(target, *adapters, offload=offload, fuse=fuse, guidance=guidance, lora_scale=lora_scale)
