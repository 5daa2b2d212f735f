"""The processes that train together: which one this is, what they agree on, and how a frozen base is shared out."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from imprompt.core.errors import ImpromptError, first_line

Result = TypeVar("Result")

PATIENCE = timedelta(hours=12)
"""How long processes wait for the main one, which may be drawing a sheet or writing gigabytes."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run. Agreements go over the CPU, so that no accelerator is waited for.

    Attributes:
        device: Where this process trains.
        index: Its number.
        count: How many there are.
        group: Of torch.distributed, for agreements; None where the process is alone.
    """

    device: torch.device
    index: int = 0
    count: int = 1
    group: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.index == 0

    def any(self, wish: bool) -> bool:
        """Whether any process wishes it; all get the same answer."""
        return wish if self.group is None else bool(self.mean(torch.tensor([float(wish)]))[0] > 0)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes, on the CPU."""
        values = values.detach().cpu()
        if self.group is not None:
            distributed.all_reduce(values, group=self.group)
        return values / self.count

    def on_main(self, work: Callable[[], Result]) -> Result | None:
        """Let the main process work while the others wait; they get None.

        Raises:
            ImpromptError: The work failed; in the main process whatever it raised.
        """
        if self.group is None:
            return work()
        if self.is_main:
            return self._work_for_all(work)
        failure = self._broadcast(None)
        if failure is not None:
            raise ImpromptError(f"the main process stopped: {failure}")
        return None

    def on_all(self, work: Callable[[], Result]) -> Result:
        """Let every process do its share; none goes on before all are done.

        Raises:
            ImpromptError: The work failed in another process; in that one whatever it raised.
        """
        failure, made = None, []
        try:
            made.append(work())
        except Exception as error:
            failure = error
        if self.any(failure is not None):
            raise failure or ImpromptError("another process stopped; its own message tells why")
        return made[0]

    def _work_for_all(self, work: Callable[[], Result]) -> Result:
        try:
            result = work()
        except BaseException as error:
            self._broadcast(first_line(error))
            raise
        self._broadcast(None)
        return result

    def _broadcast(self, failure: str | None) -> str | None:
        holder = [failure]
        distributed.broadcast_object_list(holder, src=0, group=self.group)
        return holder[0]


def resolve_device(name: str) -> torch.device:
    """The device that a setting names; "auto" is the accelerator, if there is one.

    Raises:
        ImpromptError: No such device is known here.
    """
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise ImpromptError(
                f"unknown device {name!r}; give 'auto', or what torch calls it, such as 'cuda'"
            ) from error
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def connect(device: str) -> Processes:
    """Join the other processes that `torchrun` or `accelerate launch` started; alone if none was.

    Args:
        device: As a configuration names it. Under a launcher, every process takes its own accelerator of that kind.
    """
    chosen = resolve_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(chosen)
    from accelerate import PartialState

    state = PartialState(cpu=chosen.type == "cpu")
    group = distributed.new_group(backend="gloo", timeout=PATIENCE)
    return Processes(state.device or chosen, state.process_index, state.num_processes, group)


def join_gradients(module: nn.Module, processes: Processes) -> nn.Module:
    """The module, or one whose backward pass averages gradients over the processes."""
    if processes.count == 1:
        return module
    return nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)


def shard_frozen(module: nn.Module, processes: Processes) -> nn.Module:
    """Split frozen weights over the processes (FSDP2): each holds its part, and gathers a block when it computes it.

    To be called when nothing reads the weights themselves any more; they must lie on the CPU or on the device.

    Args:
        module: A frozen denoiser; changed in place.
        processes: Who shares.

    Raises:
        ImpromptError: A weight is to be trained.
    """
    trained = [name for name, value in module.named_parameters() if value.requires_grad]
    if trained:
        raise ImpromptError(f"only a frozen base is sharded, and '{trained[0]}' is to be trained; freeze it first")
    if processes.count == 1:
        return module
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(processes.device.type, (processes.count,))
    for block in reversed(repeated_blocks(module)):  # inner ones first
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks that a denoiser is built of, outer ones first: those its class names, else members of its lists."""
    names = {*(getattr(module, "_no_split_modules", None) or ()), *(getattr(module, "_repeated_blocks", None) or ())}
    named = [part for part in module.modules() if type(part).__name__ in names]
    lists = (part for part in module.children() if isinstance(part, nn.ModuleList))
    return named or [block for blocks in lists for block in blocks]
