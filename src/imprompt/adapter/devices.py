"""Where adapters and hosts are, and in which number format they compute."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from imprompt.adapter.adapter import Adapter


@contextmanager
def on_device(adapters: Sequence[Adapter], device: torch.device, offload: bool) -> Iterator[None]:
    """Have adapters on a device; with `offload` away from it again afterwards."""
    homes = [adapter.device for adapter in adapters]
    try:
        for adapter in adapters:
            adapter.to(device)
        yield
    finally:
        for adapter, home in zip(adapters, homes, strict=True) if offload else ():
            adapter.to("cpu" if home.type == device.type else home)


def hooked_device(host: nn.Module) -> Any:
    """Where accelerate's hooks bring the weights for a call; None without any."""
    hooks = (getattr(module, "_hf_hook", None) for module in host.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    return next((device for device in devices if device is not None), None)


def floating_dtype(host: nn.Module) -> torch.dtype:
    """Number format in which a host computes, also where its weights are quantised."""
    floating = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    dtypes = (parameter.dtype for parameter in host.parameters())
    return next((dtype for dtype in dtypes if dtype in floating), torch.float32)
