import json
import os
import signal

import pytest
import torch
from torch import nn

from imprompt.training.checkpointing import load_checkpoint, newest_checkpoint
from imprompt.training.errors import TrainingDiverged
from imprompt.training.loop import LoopConfig, _computes_bfloat16, train


class Regression:
    """Fits noisy labels; can send a signal, raise or diverge at a chosen step."""

    def __init__(self, *, at_step=None, action=None):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.num_examples = 10
        self.inputs = torch.randn(10, 3)
        self.steps_taken = 0
        self.at_step, self.action = at_step, action
        self.previews = []

    def loss(self, indices, generator):
        self.steps_taken += 1
        if self.steps_taken == self.at_step and self.action is not None:
            self.action()
        noise = torch.randn(len(indices), 1, generator=generator)
        loss = (self.model(self.inputs[indices]) - noise).square().mean()
        factor = float("nan") if self.steps_taken == self.at_step and self.action is None else 1.0
        return loss * factor, {"error": loss.detach()}

    def preview(self, step):
        self.previews.append((step, next(self.model.parameters()).clone()))


class Killed(BaseException):
    """Stands for kill -9: nothing in the loop may catch it."""


def kill():
    raise Killed


def config(folder, **changes):
    options = {"num_steps": 12, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 3, "checkpoint_every": 5}
    return LoopConfig(folder=folder, bfloat16=False, log_every=2, **{**options, **changes})


def final_state(folder):
    return load_checkpoint(newest_checkpoint(folder / "checkpoints"))


def assert_same_state(first, second):
    assert first.counters == second.counters
    for group, tensors in first.tensors.items():
        assert tensors.keys() == second.tensors[group].keys()
        for name, value in tensors.items():
            assert torch.equal(value, second.tensors[group][name]), f"{group}/{name}"


@pytest.mark.parametrize("killed_at", [3, 6, 10, 11])
def test_resume_after_a_kill_equals_an_uninterrupted_run(tmp_path, killed_at):
    train(Regression(), config(tmp_path / "whole"))
    with pytest.raises(Killed):
        train(Regression(at_step=killed_at, action=kill), config(tmp_path / "killed"))
    train(Regression(), config(tmp_path / "killed"))
    assert_same_state(final_state(tmp_path / "whole"), final_state(tmp_path / "killed"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_and_leaves_the_handlers_as_they_were(tmp_path, number):
    before = signal.getsignal(number)
    task = Regression(at_step=7, action=lambda: os.kill(os.getpid(), number))
    assert train(task, config(tmp_path / "stopped")) == 7
    assert signal.getsignal(number) == before
    assert train(Regression(), config(tmp_path / "stopped")) == 12
    train(Regression(), config(tmp_path / "whole"))
    assert_same_state(final_state(tmp_path / "whole"), final_state(tmp_path / "stopped"))


def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog):
    train(Regression(), config(tmp_path / "run", num_steps=10))
    newest = newest_checkpoint(tmp_path / "run" / "checkpoints")
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    train(Regression(), config(tmp_path / "run"))
    train(Regression(), config(tmp_path / "whole"))
    assert "damaged" in caplog.text
    assert_same_state(final_state(tmp_path / "whole"), final_state(tmp_path / "run"))


def test_a_checkpoint_without_its_manifest_is_passed_over(tmp_path):
    train(Regression(), config(tmp_path, num_steps=10))
    newest = newest_checkpoint(tmp_path / "checkpoints")
    (newest / "manifest.json").unlink()
    assert newest_checkpoint(tmp_path / "checkpoints").name == "step-00000005"


def test_only_the_newest_checkpoints_stay(tmp_path):
    train(Regression(), config(tmp_path, num_steps=20, checkpoint_every=4))
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000016", "step-00000020"]


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    with pytest.raises(TrainingDiverged, match="step 7"):
        train(Regression(at_step=8), config(tmp_path))
    assert newest_checkpoint(tmp_path / "checkpoints").name == "step-00000005"


def test_the_time_budget_ends_at_a_checkpoint(tmp_path):
    assert train(Regression(), config(tmp_path, minutes=0.0)) == 0
    assert train(Regression(), config(tmp_path)) == 12


def test_previews_see_the_averaged_weights_and_training_goes_on_with_its_own(tmp_path):
    task = Regression()
    train(task, config(tmp_path / "seen", preview_every=12))
    train(Regression(), config(tmp_path / "unseen"))
    state = final_state(tmp_path / "seen")
    assert_same_state(final_state(tmp_path / "unseen"), state)
    step, weights = task.previews[0]
    assert step == 12
    assert torch.equal(weights, state.tensors["average"]["0.weight"])


@pytest.mark.parametrize(("instruction", "expected"), [("avx2", False), ("avx512_bf16", True), ("bf16", True)])
def test_bfloat16_is_for_devices_that_compute_in_it(monkeypatch, instruction, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instruction: True}, raising=False)
    assert _computes_bfloat16("cpu") is expected
    assert _computes_bfloat16("cuda")


def test_the_log_tells_step_samples_loss_and_speed(tmp_path):
    train(Regression(), config(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert {"samples", "loss", "error", "learning_rate", "gradient_norm", "images_per_second"} <= lines[0].keys()


def test_frozen_parameters_are_neither_trained_nor_averaged(tmp_path):
    task = Regression()
    task.model[0].requires_grad_(False)
    before = task.model[0].weight.clone()
    train(task, config(tmp_path))
    assert torch.equal(task.model[0].weight, before)
    assert torch.equal(final_state(tmp_path).tensors["average"]["0.weight"], before)
