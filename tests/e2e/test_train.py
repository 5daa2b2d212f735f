"""The embedded model's recipe on a folder of pictures: it learns, goes on where it stopped, and does so in company."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imprompt.adapter.checkpoint import load_adapter
from imprompt.recipes import config_named
from imprompt.training.feedback.validation import plan_validation, validate
from imprompt.training.loop.optimizers import build_optimizer
from imprompt.training.loop.task import Draw
from imprompt.training.overrides import override
from imprompt.training.run import Run, groups_of
from tests.training_data import picture_folder

SHORT = ("loop.batch_size=4", "loop.trackers=[]", "loop.autocast=no", "validation.every=0", "validation.sheet_every=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("emoji-train")
    picture_folder(root / "pictures", 10, validation=2)
    return root


def arguments(folder, output, *more):
    return [
        f"data.source={folder / 'pictures'}",
        f"features.folder={folder / 'features'}",
        f"loop.output={output}",
        *SHORT,
        *more,
    ]


def weights_of(path):
    return load_adapter(path).state_dict()


def test_a_handful_of_pictures_is_learnt_by_its_references(folder, tmp_path):
    """What the image prompt is worth: nothing at first, and more than chance after some steps."""
    rate = ("optimizer.learning_rate=2e-3", "optimizer.warmup_steps=0")
    run = Run(override(config_named("emoji-global"), arguments(folder, tmp_path / "run", *rate)))
    task = run.task
    samples = torch.arange(task.num_examples)
    groups = groups_of(run.manifest, run.members("train"))
    plan = plan_validation(samples.repeat(4), torch.zeros(4 * len(samples), dtype=torch.long), groups.repeat(4), 8)
    with task.attachment:
        before = validate(task, plan, run.processes).gain
        optimizer = build_optimizer(task.model, run.config.optimizer)
        for step in range(40):
            draw = Draw(step, 0, samples, samples, len(samples))
            task.loss(task.batch(draw))[0].backward()
            optimizer.step()
            optimizer.zero_grad()
        after = validate(task, plan, run.processes).gain
    assert abs(before.mean) < 4 * before.error
    assert after.mean > 3 * after.error > 0


def test_a_run_in_two_parts_is_the_run_in_one(folder, tmp_path):
    whole, parts = (override(config_named("emoji-plus"), arguments(folder, tmp_path / name)) for name in ("one", "two"))
    expected = weights_of(Run(override(whole, ["loop.num_steps=4"])).train().adapter)
    Run(override(parts, ["loop.num_steps=2"])).train()
    found = weights_of(Run(override(parts, ["loop.num_steps=4"])).train().adapter)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.slow
def test_two_processes_train_what_one_trains(folder, tmp_path):
    changes = arguments(folder, tmp_path / "one", "loop.num_steps=2")
    expected = weights_of(Run(override(config_named("emoji-global"), changes)).train().adapter)
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "imprompt"]
    changes = arguments(folder, tmp_path / "two", "loop.num_steps=2")
    done = subprocess.run(
        [sys.executable, *together, "train", "emoji-global", *changes],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = weights_of(next(Path(tmp_path / "two").glob("*.safetensors")))
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
