"""Nothing is lost: a run that is killed again and again ends with the weights, bit for bit, of one that was not.

A small run is started, killed with SIGKILL and started again until it is done: at random moments, and at injected ones:
within a step, when half of a file is written, before and after a flush, before and after the rename that makes a
checkpoint real, and when half of an old checkpoint has been deleted. Then its newest checkpoint (weights, average,
optimizer) is compared with that of an uninterrupted run.

    python benchmarks/kill_and_resume.py [--kills 30] [--seed 0]
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imprompt.training.config import LoopConfig, OptimizerConfig
from imprompt.training.loop import checkpointing
from imprompt.training.loop.checkpointing import load_checkpoint, newest_checkpoint
from imprompt.training.loop.order import BatchOrder
from imprompt.training.loop.task import Draw
from imprompt.training.loop.tracking import Tracking
from imprompt.training.loop.trainer import Trainer

NUM_STEPS = 40
BATCH_SIZE = 8


class Denoising:
    """Tells inputs from noise; what is trained makes no difference here, that every step changes it does."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Dropout(0.1), nn.Linear(64, 16))
        self.num_examples = 100
        self.order = BatchOrder(self.num_examples, BATCH_SIZE, seed=0)
        self.clean = torch.randn(self.num_examples, 16)

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Samples and noise."""
        return {"clean": self.clean[draw.samples], "noise": draw.normal("noise", (16,))}

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Error of what it takes for noise."""
        error = (self.model(batch["clean"] + batch["noise"]) - batch["noise"]).square().mean()
        return error, {"error": error.detach()}

    def preview(self, step: int) -> None:
        """Nothing to see."""

    def export(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """What users would take away."""
        checkpointing.save_file(weights, folder / "adapter.safetensors")


def trainer(folder: Path) -> Trainer:
    """A run as its folder has it."""
    lengths = {"num_steps": NUM_STEPS, "batch_size": BATCH_SIZE, "checkpoint_every": 3, "keep_checkpoints": 2}
    loop = LoopConfig(output=folder, device="cpu", autocast="no", log_every=2, trackers=(), **lengths)
    optimizer = OptimizerConfig(learning_rate=1e-2, schedule="cosine", warmup_steps=5, ema_decay=0.99)
    return Trainer(Denoising(), loop, optimizer)


def die() -> None:
    """Be killed now, as by the kernel."""
    os.kill(os.getpid(), signal.SIGKILL)


def before(function: Callable[..., Any], *given: Any) -> None:
    """Die without doing it."""
    die()


def after(function: Callable[..., Any], *given: Any) -> None:
    """Do it and die."""
    function(*given)
    die()


def half_written(function: Callable[..., Any], tensors: Any, path: Path) -> None:
    """Die with half of the file on disk."""
    function(tensors, path)
    os.truncate(path, path.stat().st_size // 2)
    die()


def half_deleted(function: Callable[..., Any], path: Path, **options: Any) -> None:
    """Die when one of the folder's files is gone."""
    for file in list(path.glob("*.safetensors"))[:1]:
        file.unlink()
    die()


def half_logged(function: Callable[..., Any], tracking: Tracking, *given: Any) -> None:
    """Die within a line of the log."""
    with tracking._log.open("a") as stream:
        stream.write('{"step": 1')
    die()


POINTS: dict[str, tuple[Any, str, Callable[..., Any], int]] = {
    "within a step": (Denoising, "loss", before, 20),
    "half of a file written": (checkpointing, "save_file", half_written, 16),
    "files written, not hashed": (checkpointing, "sha256_file", before, 20),
    "before a flush": (checkpointing, "_flush", before, 30),
    "before the rename": (Path, "rename", before, 4),
    "after the rename": (Path, "rename", after, 4),
    "before old ones are deleted": (checkpointing, "_prune", before, 4),
    "an old one half deleted": (shutil, "rmtree", half_deleted, 4),
    "within a line of the log": (Tracking, "log", half_logged, 8),
}
"""Where a run dies: owner and name of a function, what happens there, and at most which call of it."""


def inject(point: str, call: int) -> None:
    """Let this process die at a point."""
    owner, name, death, _ = POINTS[point]
    function = getattr(owner, name)
    calls = Counter()

    def deadly(*given: Any, **options: Any) -> Any:
        calls[name] += 1
        return death(function, *given, **options) if calls[name] == call else function(*given, **options)

    setattr(owner, name, deadly)


def start(folder: Path, point: str | None, call: int) -> int:
    """Train in a process of its own, which dies at a point, if one is given.

    Returns:
        Its number.
    """
    process = os.fork()
    if process:
        return process
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    if point is not None:
        inject(point, call)
    try:
        trainer(folder).train()
        os._exit(0)
    finally:
        os._exit(1)


def was_killed(process: int) -> bool:
    """Whether it was killed, and did not end well.

    Raises:
        RuntimeError: It ended with an error.
    """
    status = os.waitpid(process, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise RuntimeError("the run could not go on after a kill")
    return False


def kill_once(folder: Path, chance: random.Random, point: str | None, seconds: float) -> bool:
    """Start the run, or go on with it, and kill it; at a point, or at a random moment of its duration."""
    call = 0 if point is None else chance.randint(1, POINTS[point][3])
    process = start(folder, point, call)
    if point is None:
        time.sleep(chance.uniform(0.02, seconds))
        os.kill(process, signal.SIGKILL)
    return was_killed(process)


def is_same(first: Path, second: Path) -> bool:
    """Whether the newest checkpoints of two runs hold the same, bit for bit."""
    paths = [path for folder in (first, second) if (path := newest_checkpoint(folder / "checkpoints")) is not None]
    one, other = (load_checkpoint(path) for path in paths)
    pairs = ((group, name) for group, tensors in one.tensors.items() for name in tensors)
    same = all(torch.equal(one.tensors[group][name], other.tensors[group][name]) for group, name in pairs)
    return same and one.counters == other.counters and one.tensors.keys() == other.tensors.keys()


def survive(folder: Path, kills: int, seed: int) -> bool:
    """Kill runs until there were enough kills, finish each, and compare it with one that was not killed."""
    chance, killed, num_runs, all_same = random.Random(seed), Counter(), 0, True
    trainer(folder / "whole")  # whatever it imports, it does so once and not in every process
    began = time.monotonic()
    if was_killed(start(folder / "whole", None, 0)):
        raise RuntimeError("the uninterrupted run was killed")
    seconds = time.monotonic() - began
    while killed.total() < kills:
        run_folder = folder / f"run-{num_runs}"
        while killed.total() < kills:
            points = [None, *POINTS]
            point = points[killed.total() % len(points)]
            if not kill_once(run_folder, chance, point, seconds):
                break  # it was done before it came to that
            killed[point or "at a random moment"] += 1
        if was_killed(start(run_folder, None, 0)):
            raise RuntimeError("the last start of a run was killed")
        all_same &= is_same(folder / "whole", run_folder)
        num_runs += 1
    for point, number in killed.most_common():
        print(f"{number:4d}  {point}")
    verdict = "bit-equal to an uninterrupted one" if all_same else "DIFFERENT from an uninterrupted one"
    print(f"{killed.total()} kills in {num_runs} runs of {NUM_STEPS} steps; every run's end is {verdict}")
    return all_same


def main() -> None:
    """Print how often it was killed where, and whether all ended alike."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(0 if survive(Path(folder), options.kills, options.seed) else 1)


if __name__ == "__main__":
    main()
