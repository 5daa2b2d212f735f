"""How much faster is our cached training step than the published scripts' step, and how close to what must be computed?

Three steps on the same models, pictures and texts, in turn:

* official: `official_step.py`, the published scripts' step said again: all encoders at every step, a UNet in single
  precision under autocast, a loss that is read before the backward pass.
* ours: the trainer itself, `imprompt.training`: batches read from the feature stores (drawing all noise and reading
  latents and pooled features), texts encoded in the step, AdamW, clipping, the log every ten steps.
* bare: frozen forward and activation backward alone, everything else computed before. Nothing can be faster.

First, in float32 and on the same noise, the losses of the first step must agree: it is one objective. Seconds are
medians over rounds in which the three take turns. On a processor models are Stable Diffusion's at an eighth of its
width, everything is float32 on one thread, and two clocks are told: that of the wall, and that of the process, which
other programs on the machine hardly change and which the marks are held against. On CUDA models have their true size
and weights are random; the frozen base is bfloat16, blocks of steps are timed on the wall after a synchronisation,
and peak memory is told.

    python benchmarks/train_step.py [--sdxl] [--device cuda] [--quick]
"""

import argparse
import copy
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from official_step import OfficialBatch, OfficialStep
from step_data import official_batch, prepare_run, write_features, write_pictures
from step_models import NARROW_SD15, NARROW_SDXL, SD15, SDXL, Models, Size, build_models
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from imprompt.adapter.conditioning import Branch, Conditioning
from imprompt.generation.quiet import quiet_libraries
from imprompt.training.adapters.inputs import FEATURES, AdapterBatch
from imprompt.training.adapters.task import AdapterTask
from imprompt.training.loop.batches import Portion
from imprompt.training.loop.trainer import Trainer
from imprompt.training.objective.objective import row_errors
from imprompt.training.run import Run

WANTED_RATIO, WANTED_OVERHEAD = 1.8, 1.10
AGREEMENT = 1e-4


@dataclass(frozen=True)
class Setting:
    """How it is measured.

    Attributes:
        size: Of the models.
        device: Where.
        rounds: In each of which every step is timed.
        block: Steps that are timed together.
    """

    size: Size
    device: torch.device
    rounds: int
    block: int

    @property
    def is_cuda(self) -> bool:
        """Whether an accelerator is measured."""
        return self.device.type == "cuda"

    def allocated(self) -> int:
        """Bytes that tensors take on an accelerator now."""
        return torch.cuda.memory_allocated(self.device) if self.is_cuda else 0

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)


@dataclass
class Times:
    """Seconds a step, round by round: of the wall, and of this process on its processors."""

    wall: list[float] = field(default_factory=list)
    process: list[float] = field(default_factory=list)


# Our step -----------------------------------------------------------------------------------------------------------


class OurStep:
    """The trainer's own steps, one at a time."""

    def __init__(self, run: Run) -> None:
        """Begin a run."""
        self.run = run
        self.task: AdapterTask = run.task
        self.trainer = Trainer(self.task, run.config.loop, run.config.optimizer, run.options)
        self.task.model.train()
        self._portions = self.trainer._read()

    def read(self) -> list[Portion]:
        """The next batch, as the loop reads it."""
        return next(self._portions)

    def take(self, portions: list[Portion]) -> None:
        """A step on a batch, as the loop takes it."""
        self.trainer._take_step(portions)
        if self.trainer.step % self.trainer.loop.log_every == 0:
            self.trainer._log(None)

    def __call__(self) -> None:
        """Read and step."""
        self.take(self.read())

    def close(self) -> None:
        """End the processes that read ahead."""
        self._portions.close()


class BareStep:
    """Frozen forward and activation backward of a task on a batch; what they start from is computed here."""

    @torch.no_grad()
    def __init__(self, task: AdapterTask, batch: AdapterBatch, autocast: torch.dtype | None) -> None:
        """Compute everything else."""
        self.task, self.batch, self.format = task, batch, autocast
        latents = batch.targets.latents
        assert latents is not None
        self.text = task._texts(batch)
        self.noisy = task.noise.add(latents, batch.noise, batch.timesteps)
        self.target = task.noise.target(latents, batch.noise, batch.timesteps)
        self.tokens = task.model.project(batch.references.features[FEATURES].flatten(0, 1).float())

    def loss(self) -> Tensor:
        """The loss, as a function of the image tokens."""
        rows = len(self.noisy)
        tokens = self.tokens.detach().requires_grad_()
        scale = torch.ones(1, len(self.task.attachment.sites), rows)
        with torch.autocast(self.noisy.device.type, self.format, enabled=self.format is not None):
            branch = Branch(tokens=tokens, null_tokens=None, scale=scale)
            self.task.attachment.set(Conditioning(branches=(branch,), rows=rows))
            with self.task._base_precision(self.noisy.device):
                sizes = self.batch.targets.sizes
                predicted = self.task.base.predict(self.noisy, self.batch.timesteps, self.text, sizes)
        return row_errors(predicted, self.target).mean()

    def __call__(self) -> None:
        """One step; no weight gets a gradient."""
        self.task.model.requires_grad_(False)
        self.loss().backward()
        self.task.model.requires_grad_(True)


# Measuring ----------------------------------------------------------------------------------------------------------


def measure(steps: dict[str, Callable[[], Any]], setting: Setting, rounds: int, block: int) -> dict[str, Times]:
    """Time all steps in turn, each round beginning with another one; the first round is not counted."""
    times = {name: Times() for name in steps}
    names = list(steps)
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            wall, process = _timed(steps[name], setting, block)
            if number:
                times[name].wall.append(wall)
                times[name].process.append(process)
    return times


def _timed(step: Callable[[], Any], setting: Setting, block: int) -> tuple[float, float]:
    setting.wait()
    wall, process = time.perf_counter(), time.process_time()
    for _ in range(block):
        step()
    setting.wait()
    return (time.perf_counter() - wall) / block, (time.process_time() - process) / block


def first_losses(setting: Setting, models: Models, folder: Path) -> tuple[float, float]:
    """Loss of the first step on the same numbers, official and ours, in float32."""
    ours = OurStep(prepare_run(models, folder, setting.size, setting.device, "float32"))
    (portion,) = ours.read()
    batch = portion.to(setting.device)
    official = OfficialStep(copy.deepcopy(models), setting.device, "no", sys.stderr)
    official.load(ours.run.adapter.state_dict())
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        theirs = official.loss(official_batch(ours.run, models, portion)).item()
        own = ours.task.loss(batch)[0].item()
    ours.close()
    return theirs, own


def count_flops(official: OfficialStep, bare: BareStep, batch: OfficialBatch) -> dict[str, float]:
    """GFLOP a picture of each part, as torch counts them; attention by its formula."""
    found = {}
    rows = len(batch.images)
    with sdpa_kernel(SDPBackend.MATH):
        for name, compute in encoders(official, batch).items():
            found[name] = _flops(compute) / rows
        bare.task.model.requires_grad_(False)
        losses: list[Tensor] = []
        found["UNet forward"] = _flops(lambda: losses.append(bare.loss())) / rows
        found["UNet backward"] = _flops(lambda: losses[0].backward()) / rows
        bare.task.model.requires_grad_(True)
    return found


def _flops(compute: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops() / 1e9


def encoders(official: OfficialStep, batch: OfficialBatch) -> dict[str, Callable[[], Any]]:
    """What the official step computes beside the UNet."""
    return {
        "VAE encode": lambda: official.encode_images(batch.images),
        "vision": lambda: official.look(batch.clip_images),
        "text": lambda: official.read(batch.token_ids),
    }


def own_parts(ours: OurStep, portion: Portion) -> dict[str, Callable[[], Any]]:
    """What our step does beside the UNet."""
    trainer, task = ours.trainer, ours.task
    batch = portion.to(trainer.processes.device)
    parameters = [value for value in task.model.parameters() if value.requires_grad]
    for value in parameters:
        value.grad = torch.zeros_like(value)

    def move() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        trainer.optimizer.step()

    return {
        "read a batch": ours.read,
        "encode texts": lambda: task._texts(batch),
        "clip and AdamW": move,
    }


# Telling ------------------------------------------------------------------------------------------------------------


def tell_flops(found: dict[str, float], true: dict[str, float]) -> Iterator[str]:
    """Arithmetic of the parts here, and of the true models."""
    yield f"\n{'GFLOP a picture':18s} {'here':>9s} {'/ forward':>10s} {'true':>9s} {'/ forward':>10s}"
    for name, value in found.items():
        here, there = value / found["UNet forward"], true[name] / true["UNet forward"]
        yield f"{name:18s} {value:9.3f} {here:10.3f} {true[name]:9.1f} {there:10.3f}"
    here, there = (_cached_gain(each) for each in (found, true))
    yield f"all / (all but VAE and vision): {here:.2f} here, {there:.2f} true: the ratio of steps, were time arithmetic"


def _cached_gain(flops: dict[str, float]) -> float:
    whole = sum(flops.values())
    return whole / (whole - flops["VAE encode"] - flops["vision"])


def tell_times(times: dict[str, Times], batch: int, unit: str = "ms a step") -> Iterator[str]:
    """Both clocks, with quartiles."""
    heads = f"{'process clock':>15s} {'quartiles':>19s} {'wall clock':>12s} {'quartiles':>19s}"
    yield f"\n{unit:18s} {heads} {'images/s':>9s}"
    for name, each in times.items():
        cells = [f"{1e3 * median(one):12.1f} {_spread(one, 1e3, 1):>19s}" for one in (each.process, each.wall)]
        yield f"{name:18s}    {cells[0]} {cells[1]} {batch / median(each.process):9.2f}"


def _spread(values: list[float], factor: float = 1.0, digits: int = 2) -> str:
    low, _, high = quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{low * factor:.{digits}f} to {high * factor:.{digits}f}"


def tell_ratio(times: dict[str, Times], above: str, below: str, *, clock: str) -> tuple[float, str]:
    """Median over the rounds of how many times longer one step takes than another, by a clock."""
    ratios = [one / two for one, two in zip(getattr(times[above], clock), getattr(times[below], clock), strict=True)]
    return median(ratios), f"{median(ratios):.3f} by the {clock} clock (quartiles {_spread(ratios)})"


def verdict(is_met: bool) -> str:
    """In a word."""
    return "met" if is_met else "MISSED"


def tell_marks(times: dict[str, Times], setting: Setting) -> Iterator[str]:
    """What was wanted, and what was found."""
    held, other = ("wall", "process") if setting.is_cuda else ("process", "wall")
    gain, text = tell_ratio(times, "official", "ours", clock=held)
    is_marked = len(setting.size.texts) == 1  # of SDXL's arithmetic a cache spares less than the mark
    mark = f"; wanted {WANTED_RATIO}: {verdict(gain >= WANTED_RATIO)}" if is_marked else ""
    yield f"\nimages/s, ours over official: {text}{mark}"
    overhead, more = tell_ratio(times, "ours", "bare", clock=held)
    yield f"our step over the bare one: {more}; wanted {WANTED_OVERHEAD}: {verdict(overhead <= WANTED_OVERHEAD)}"
    pairs = (("official", "ours"), ("ours", "bare"))
    yield "the other clock: " + "; ".join(tell_ratio(times, *pair, clock=other)[1] for pair in pairs)


def peak_gigabytes(step: Callable[[], Any], setting: Setting, before: int) -> float:
    """Most memory that tensors take in a few steps, without what was there before the step was built."""
    torch.cuda.reset_peak_memory_stats(setting.device)
    for _ in range(3):
        step()
    return (torch.cuda.max_memory_allocated(setting.device) - before) / 1e9


def compare(setting: Setting, folder: Path) -> Iterator[str]:
    """Everything, line by line."""
    size, device = setting.size, setting.device
    write_pictures(folder, size.pixels)
    models = build_models(size, device)
    write_features(models, folder, device)
    dtype, precision = ("bfloat16", "bf16") if setting.is_cuda else ("float32", "no")
    yield f"{size.name}: {size.pixels} pixels, batch {size.batch}, {dtype}, {_device_name(setting)}"
    theirs, own = first_losses(setting, models, folder)
    difference = abs(theirs - own) / theirs
    yield f"loss of the first step in float32: official {theirs:.7f}, ours {own:.7f}, {difference:.1e} apart"
    assert difference <= AGREEMENT, f"the losses differ by {difference:.1e}; expected at most {AGREEMENT:.0e}"

    before = setting.allocated()
    ours = OurStep(prepare_run(models, folder, size, device, dtype))
    if setting.is_cuda:
        yield f"peak memory of our step: {peak_gigabytes(ours, setting, before):.2f} GB"
    others = setting.allocated() - before
    (portion,) = ours.read()
    with open(os.devnull, "w") as log, ours.task.attachment:
        official = OfficialStep(models, device, precision, log)
        official.load(ours.run.adapter.state_dict())
        batch = official_batch(ours.run, models, portion)
        if setting.is_cuda:
            peak = peak_gigabytes(lambda: official(batch.drawn_anew()), setting, others)
            yield f"peak memory of the official step: {peak:.2f} GB"
        yield from timings(setting, ours, official, portion, batch.drawn_anew())
    ours.close()


def timings(
    setting: Setting, ours: OurStep, official: OfficialStep, portion: Portion, batch: OfficialBatch
) -> Iterator[str]:
    """Arithmetic, times, marks, and where the times go."""
    bare = BareStep(ours.task, portion.to(setting.device), ours.trainer._format)
    yield from tell_flops(count_flops(official, bare, batch), setting.size.true_flops)
    steps = {"official": lambda: official(batch), "ours": ours, "bare": bare}
    times = measure(steps, setting, setting.rounds, setting.block)
    yield from tell_times(times, setting.size.batch)
    yield from tell_marks(times, setting)
    parts = {**encoders(official, batch), **own_parts(ours, portion)}
    found = measure(parts, setting, max(1, setting.rounds // 3), setting.block)
    yield from tell_times(found, setting.size.batch, "of it, ms")


def _device_name(setting: Setting) -> str:
    return torch.cuda.get_device_name(setting.device) if setting.is_cuda else "processor, one thread"


def setting_of(options: argparse.Namespace) -> Setting:
    """What is asked for on the command line."""
    is_cuda = options.device.startswith("cuda")
    size = (SDXL if options.sdxl else SD15) if is_cuda else (NARROW_SDXL if options.sdxl else NARROW_SD15)
    rounds, block = (2, 2) if options.quick else (options.rounds, 10 if is_cuda else 1)
    if options.quick and not is_cuda:
        size, block = replace(size, pixels=128, batch=2), 1
    return Setting(size, torch.device(options.device), rounds, block)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sdxl", action="store_true", help="Stable Diffusion XL instead of 1.5")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--quick", action="store_true", help="a smoke run: its numbers say nothing")
    setting = setting_of(parser.parse_args())
    if not setting.is_cuda:
        torch.set_num_threads(1)
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        for line in compare(setting, Path(folder)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
