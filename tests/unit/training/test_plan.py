"""What a plan says, against a real step of the same run; and Stable Diffusion 1.5's published sizes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import finalize

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from imprompt.core.errors import DownloadError
from imprompt.recipes import config_named
from imprompt.training.config import TrainConfig
from imprompt.training.loop.task import Draw
from imprompt.training.overrides import override
from imprompt.training.planning.plan import ACCELERATORS, GIB, describe, plan
from imprompt.training.run import Run
from tests import training_data

ROWS = 4


class Live(TorchDispatchMode):
    """Counts the bytes of every storage that an operation makes, as long as it lives: a real peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and (number := leaf.untyped_storage()._cdata) not in self._known | given:
                self._known.add(number)
                num_bytes = leaf.untyped_storage().nbytes()
                self.now += num_bytes
                self.peak = max(self.peak, self.now)
                finalize(leaf.untyped_storage(), self._forget, number, num_bytes)
        return made

    def _forget(self, number: int, num_bytes: int) -> None:
        self._known.discard(number)
        self.now -= num_bytes


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return training_data.picture_folder(tmp_path_factory.mktemp("pictures"))


def run_of(pictures: Any, output: Any, name: str, *changes: str) -> TrainConfig:
    said = (f"data.source={pictures}", f"loop.output={output}", f"loop.batch_size={ROWS}", "data.num_workers=0")
    return override(config_named(name), [*said, "base.dtype=float32", "loop.autocast=no", "loop.device=cpu", *changes])


@contextmanager
def real_step(config: TrainConfig) -> Iterator[tuple[Any, Any, Run]]:
    run = Run(config)
    task = run.task
    with task.attachment:
        draw = Draw(step=0, seed=0, samples=task.order.at(0)[1], rows=torch.arange(ROWS), batch_size=ROWS)
        yield task, replace(task.batch(draw), no_image=torch.zeros(ROWS, dtype=torch.bool)), run


@pytest.mark.parametrize("name", ["emoji-global", "emoji-plus"])
def test_parameters_arithmetic_and_memory_are_those_of_a_real_step(name: str, pictures: Any, tmp_path: Any) -> None:
    config = run_of(pictures, tmp_path / "run", name)
    planned = plan(config)
    with real_step(config) as (task, batch, run):
        with FlopCounterMode(display=False) as forward:
            loss = task.row_losses(batch).mean()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
        del loss
        trained = sum(value.numel() for value in run.adapter.parameters())
        with Live() as live:
            task.row_losses(batch).mean().backward()
    parts = planned.parameters
    assert parts["projector (trained)"] + parts["keys and values (trained)"] == trained
    assert parts["unet"] == sum(value.numel() for value in run.base.denoiser.parameters())
    # torch does not count the attention of processors; in a model this small that is a part of both
    found = planned.flops["forward"] + planned.flops["texts"], planned.flops["backward"]
    real = forward.get_total_flops() / ROWS, backward.get_total_flops() / ROWS
    assert found[0] == pytest.approx(real[0], rel=0.1) and found[0] >= real[0]
    assert found[1] == pytest.approx(real[1], rel=0.1) and found[1] >= real[1]
    kept = next(part.num_bytes for part in planned.memory if part.name == "what a micro batch keeps")
    assert kept == pytest.approx(live.peak, rel=0.15)


def test_what_is_computed_online_is_told_apart(pictures: Any, tmp_path: Any) -> None:
    cached = plan(run_of(pictures, tmp_path, "emoji-plus"))
    online = plan(run_of(pictures, tmp_path, "emoji-plus", "features.latents=online", "features.references=online"))
    assert online.flops["latents"] > 0 and online.flops["reference features"] > 0
    assert online.flops["forward"] == pytest.approx(cached.flops["forward"], rel=1e-6)
    assert online.num_bytes >= cached.num_bytes


def test_checkpointing_and_micro_batches_take_less_memory(pictures: Any, tmp_path: Any) -> None:
    def kept(*changes: str) -> float:
        planned = plan(run_of(pictures, tmp_path, "emoji-global", "loop.batch_size=8", *changes))
        names = ("what a micro batch keeps", "the largest recomputed layer")
        return sum(part.num_bytes for part in planned.memory if part.name in names)

    whole = kept()
    assert kept("loop.micro_batch_size=4") == pytest.approx(whole / 2, rel=0.05)
    assert kept("base.gradient_checkpointing=true") < 0.6 * whole


def test_hours_follow_from_arithmetic(pictures: Any, tmp_path: Any) -> None:
    config = run_of(pictures, tmp_path, "emoji-global", "loop.num_steps=1000")
    one, eight = plan(config), plan(config, 4)
    card = ACCELERATORS[0]
    assert one.images_per_second(card, 0.5) == pytest.approx(card.teraflops * 0.5e12 / sum(one.flops.values()))
    assert eight.hours(card, 0.5) == pytest.approx(one.hours(card, 0.5) / 4)
    assert eight.micro_batch_size == 1 and one.micro_batch_size == ROWS
    assert one.fits(card) and not replace(one, memory=(replace(one.memory[0], num_bytes=33.0 * GIB),)).fits(card)
    assert any("H100" in line and "images/s" in line for line in describe(one))


def test_a_base_that_is_not_there_is_told(pictures: Any, tmp_path: Any) -> None:
    with pytest.raises(DownloadError, match="nowhere"):
        plan(run_of(pictures, tmp_path, "sd15-global", f"base.path={tmp_path / 'nowhere'}"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DownloadError, match="diffusers' layout"):
        plan(run_of(pictures, tmp_path, "sd15-global", f"base.path={tmp_path / 'empty'}"))
