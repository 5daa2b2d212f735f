"""Optimizers by name, their state as flat tensors, and the number format of the arithmetic."""

import importlib
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imprompt.core.errors import ImpromptError
from imprompt.training.config import OptimizerConfig

NUMBER = "#"
"""Ends the name of what an optimizer keeps as a number and not as a tensor."""


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that a model is trained in."""
    return [value for value in model.parameters() if value.requires_grad]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW, or AdamW with a state of 8 bits, that decays matrices and kernels only.

    Raises:
        ImpromptError: The model has nothing to train, or the package of the optimizer is not installed.
    """
    matrices = [value for value in trainable(model) if value.ndim > 1]
    vectors = [value for value in trainable(model) if value.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ImpromptError("the model has no parameter that is to be trained; set requires_grad on some")
    options = {"lr": config.learning_rate, "betas": config.betas, "weight_decay": config.weight_decay}
    if config.name == "adamw8bit":
        return _bitsandbytes().optim.AdamW8bit(groups, **options)
    return torch.optim.AdamW(groups, fused=True, **options)


def _bitsandbytes() -> Any:
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ImpromptError(
            "optimizer.name=adamw8bit needs the package bitsandbytes, which is not installed; 'pip install "
            "bitsandbytes', or give optimizer.name=adamw"
        ) from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of an optimizer with numbered parameters, flat: "{parameter number}.{name}" -> tensor."""
    return _flatten(optimizer.state_dict()["state"])


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    state: dict[Any, Any] = {}
    for key, value in tensors.items():
        number, *groups, name = key.split(".")
        values = state.setdefault(int(number), {})
        for group in groups:
            values = values.setdefault(group, {})
        values[name.removesuffix(NUMBER)] = value.item() if name.endswith(NUMBER) else value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _flatten(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            mark = "" if isinstance(value, Tensor) else NUMBER
            flat[f"{prefix}{name}{mark}"] = torch.as_tensor(value)
    return flat


def autocast_format(choice: Literal["auto", "no", "bfloat16", "float16"], device: torch.device) -> torch.dtype | None:
    """Number format that a setting means on a device; None computes in that of the weights."""
    if choice == "auto":
        return torch.bfloat16 if computes_bfloat16(device) else None
    return None if choice == "no" else getattr(torch, choice)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; a processor without them emulates it, many times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.10 cannot tell: float32 is safe
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
