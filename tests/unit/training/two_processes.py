"""What `torchrun` starts twice for `test_distributed.py`: `two_processes.py FOLDER`."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import distributed, nn

from imprompt.core.errors import ImpromptError
from imprompt.training.errors import TrainingDiverged
from imprompt.training.loop.distributed import Processes, connect, shard_frozen
from imprompt.training.loop.trainer import RunOptions
from tests.unit.training.regression import Regression, run


def undropped(**options) -> Regression:
    """A task whose result does not depend on which process computes a row."""
    task = Regression(batch_size=8, **options)
    task.model[2].p = 0.0
    return task


def stop_of_one(folder: Path, processes: Processes) -> int:
    """Steps taken when one process alone is told to stop in the fourth."""

    def signal_one() -> None:
        if processes.index == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    task = undropped(at_step=4, action=signal_one)
    return run(task, folder, batch_size=8, options=RunOptions(num_workers=1))


def failures(folder: Path, processes: Processes) -> list[str]:
    """What every process hears of a divergence in one of them, and of a checkpoint that cannot be written."""

    class Diverging(Regression):
        def loss(self, batch):
            loss, figures = super().loss(batch)
            return loss * (float("nan") if processes.index == 1 and batch.step == 2 else 1.0), figures

    class Unwritable(Regression):
        def export(self, folder, weights):
            raise ImpromptError("the disk is gone")

    heard = []
    for task in (Diverging(batch_size=8), Unwritable(batch_size=8)):
        try:
            run(task, folder / type(task).__name__, batch_size=8)
        except (TrainingDiverged, ImpromptError) as error:
            heard.append(str(error))
    return heard


class Denoiser(nn.Module):
    """Frozen blocks, one within another."""

    _no_split_modules = ("Sequential", "Linear")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Tanh()) for _ in range(4))
        self.last = nn.Linear(16, 16)

    def forward(self, values):
        for block in self.blocks:
            values = block(values)
        return self.last(values)


def sharded(processes: Processes) -> dict[str, float]:
    """How far gradients through a sharded base are from those through a whole one, and how much of it lies here."""
    whole, base = Denoiser().requires_grad_(False), Denoiser().requires_grad_(False)
    shard_frozen(base, processes)
    gradients = []
    for denoiser in (whole, base):
        prompt = torch.ones(2, 16, requires_grad=True)
        denoiser(prompt + processes.index).square().mean().backward()
        gradients.append(prompt.grad)
    local = sum(value.to_local().numel() for value in base.parameters())
    return {
        "error": float((gradients[0] - gradients[1]).abs().max()),
        "gradient": float(gradients[0].abs().max()),
        "part": local / sum(value.numel() for value in whole.parameters()),
    }


def main(folder: Path) -> None:
    """Do it all, and write down what is not in the run folders."""
    processes = connect("cpu")
    run(undropped(), folder / "two", batch_size=8, micro_batch_size=3)
    told = {
        "stopped": stop_of_one(folder / "stopped", processes),
        "failures": failures(folder, processes),
        "sharded": sharded(processes),
    }
    (folder / f"told-{processes.index}.json").write_text(json.dumps(told))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
