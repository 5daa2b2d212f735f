"""What the stages have alike: where their runs lie, and how they are trained."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from imprompt.recipes.emoji.paths import stage_folder
from imprompt.training.config import LoopConfig, OptimizerConfig
from imprompt.training.loop.distributed import resolve_device
from imprompt.training.loop.task import Task
from imprompt.training.loop.trainer import RunOptions, train


@runtime_checkable
class StageConfig(Protocol):
    """A stage's configuration, of which the loop wants this."""

    @property
    def loop(self) -> LoopConfig:
        """Length, and what the run leaves."""
        ...

    @property
    def optimizer(self) -> OptimizerConfig:
        """Pace."""
        ...

    @property
    def preview_every(self) -> int:
        """Steps between previews."""
        ...


def stage_loop(name: str, **settings: Any) -> LoopConfig:
    """Settings of a stage's loop, on the CPU unless told otherwise.

    Args:
        name: Of the stage's run folder.
        **settings: Fields of `LoopConfig`.
    """
    usual = {"output": stage_folder(name), "device": "cpu", "log_every": 50, "keep_checkpoints": 2}
    return LoopConfig(**{**usual, **settings})


def train_stage(task: Task, config: StageConfig) -> int:
    """Train, or go on training, a stage; see `imprompt.training.loop.trainer.Trainer.train`."""
    with plain_attention(resolve_device(config.loop.device)):
        return train(task, config.loop, config.optimizer, RunOptions(preview_every=config.preview_every))


def plain_attention(device: torch.device) -> AbstractContextManager[Any]:
    """Attention as products and a softmax: on a processor torch's fused one goes backward in bfloat16 far slower."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
