"""A task of a moment, for tests of the loop."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imprompt.training.config import LoopConfig, OptimizerConfig
from imprompt.training.loop.order import BatchOrder
from imprompt.training.loop.trainer import RunOptions, train


@dataclass(frozen=True)
class Rows:
    inputs: Tensor
    noise: Tensor
    step: int


class Regression:
    """Fits noisy labels; does something, or diverges, when the loss of a chosen step is computed."""

    def __init__(self, *, batch_size=4, num_examples=10, at_step=None, action=None):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))
        self.num_examples = num_examples
        self.order = BatchOrder(num_examples, batch_size, seed=0)
        self.inputs = torch.randn(num_examples, 3)
        self.at_step, self.action = at_step, action
        self.previews = []
        self.draws = []

    def batch(self, draw):
        self.draws.append(draw)
        return Rows(self.inputs[draw.samples], draw.normal("noise", (1,)), draw.step)

    def loss(self, batch):
        is_chosen = batch.step + 1 == self.at_step
        if is_chosen and self.action is not None:
            self.action()
        loss = (self.model(batch.inputs) - batch.noise).square().mean()
        factor = float("nan") if is_chosen and self.action is None else 1.0
        return loss * factor, {"error": loss.detach()}

    def preview(self, step):
        self.previews.append((step, next(self.model.parameters()).clone()))
        return {"previewed": float(step)}


def loop_config(folder, **changes):
    lengths = {"num_steps": 12, "batch_size": 4, "checkpoint_every": 5, "log_every": 2, "keep_checkpoints": 2}
    options = {"device": "cpu", "autocast": "no", "trackers": ()}
    return LoopConfig(output=folder, **{**lengths, **options, **changes})


def optimizer_config(**changes):
    return OptimizerConfig(**{"learning_rate": 1e-2, "warmup_steps": 3, "ema_decay": 0.999, **changes})


def run(task, folder, *, optimizer=None, options=None, **changes):
    """Train a task with the loop's settings of these tests, changed."""
    return train(task, loop_config(folder, **changes), optimizer or optimizer_config(), options or RunOptions())
