import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from imprompt.core.errors import ImpromptError
from imprompt.training.errors import OtherRun, TrainingDiverged
from imprompt.training.loop.checkpointing import (
    load_averaged_weights,
    load_checkpoint,
    newest_checkpoint,
    read_manifest,
)
from imprompt.training.loop.optimizers import computes_bfloat16
from imprompt.training.loop.trainer import RunOptions, Trainer
from tests.unit.training.regression import Regression, loop_config, optimizer_config, run


class Killed(BaseException):
    """Stands for kill -9: nothing in the loop may catch it."""


def kill():
    raise Killed


def final_state(folder):
    return load_checkpoint(newest_checkpoint(folder / "checkpoints"))


def assert_same_state(first, second):
    assert first.counters == second.counters
    assert first.tensors.keys() == second.tensors.keys()
    for group, tensors in first.tensors.items():
        assert tensors.keys() == second.tensors[group].keys()
        for name, value in tensors.items():
            assert torch.equal(value, second.tensors[group][name]), f"{group}/{name}"


@pytest.mark.parametrize("killed_at", [3, 6, 10, 11])
def test_resume_after_a_kill_equals_an_uninterrupted_run(tmp_path, killed_at):
    run(Regression(), tmp_path / "whole")
    with pytest.raises(Killed):
        run(Regression(at_step=killed_at, action=kill), tmp_path / "killed")
    run(Regression(), tmp_path / "killed")
    assert_same_state(final_state(tmp_path / "whole"), final_state(tmp_path / "killed"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_and_leaves_the_handlers_as_they_were(tmp_path, number):
    before = signal.getsignal(number)
    task = Regression(at_step=7, action=lambda: os.kill(os.getpid(), number))
    assert run(task, tmp_path / "stopped") == 7
    assert signal.getsignal(number) == before
    assert run(Regression(), tmp_path / "stopped") == 12
    run(Regression(), tmp_path / "whole")
    assert_same_state(final_state(tmp_path / "whole"), final_state(tmp_path / "stopped"))


def test_a_run_outside_the_main_thread_trains_without_listening_to_signals(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run, Regression(), tmp_path / "thread").result() == 12
    run(Regression(), tmp_path / "whole")
    assert_same_state(final_state(tmp_path / "whole"), final_state(tmp_path / "thread"))


def test_the_average_is_left_out_where_none_is_wanted(tmp_path):
    run(Regression(), tmp_path, optimizer=optimizer_config(ema_decay=0.0))
    state = final_state(tmp_path)
    assert state.tensors.keys() == {"model", "optimizer"}
    weights = load_averaged_weights(tmp_path)
    assert all(torch.equal(value, weights[name]) for name, value in state.tensors["model"].items())


def test_parts_of_a_batch_give_what_the_whole_batch_gives(tmp_path):
    tasks = [Regression(batch_size=6), Regression(batch_size=6)]
    for task, folder, size in zip(tasks, ("whole", "parts"), (None, 4), strict=True):
        task.model[2].p = 0.0
        run(task, tmp_path / folder, batch_size=6, micro_batch_size=size)
    assert [len(draw.rows) for draw in tasks[1].draws[:2]] == [4, 2]
    whole, parts = final_state(tmp_path / "whole"), final_state(tmp_path / "parts")
    for name, value in whole.tensors["model"].items():
        torch.testing.assert_close(parts.tensors["model"][name], value, rtol=1e-5, atol=1e-6)


def test_other_processes_that_read_ahead_change_nothing(tmp_path):
    run(Regression(), tmp_path / "alone")
    run(Regression(), tmp_path / "ahead", options=RunOptions(num_workers=2))
    assert_same_state(final_state(tmp_path / "alone"), final_state(tmp_path / "ahead"))


class Unreadable(Regression):
    def batch(self, draw):
        if draw.step == 3:
            raise ImpromptError("picture 7 cannot be read; remove it")
        return super().batch(draw)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_goes_wrong_in_reading_is_told_in_one_sentence(tmp_path, num_workers):
    with pytest.raises(ImpromptError, match="^picture 7 cannot be read; remove it$"):
        run(Unreadable(), tmp_path, options=RunOptions(num_workers=num_workers))


def test_a_damaged_checkpoint_is_passed_over_and_the_reason_told(tmp_path, caplog):
    run(Regression(), tmp_path / "run", num_steps=10)
    newest = newest_checkpoint(tmp_path / "run" / "checkpoints")
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    run(Regression(), tmp_path / "run")
    run(Regression(), tmp_path / "whole")
    assert "model.safetensors is not the file that was written" in caplog.text
    assert_same_state(final_state(tmp_path / "whole"), final_state(tmp_path / "run"))


def test_a_run_can_be_made_longer(tmp_path, caplog):
    run(Regression(), tmp_path / "run", num_steps=7)
    assert run(Regression(), tmp_path / "run", num_steps=12) == 12
    assert "settings are not those before step 7: loop.num_steps was 7, is 12" in caplog.text
    run(Regression(), tmp_path / "whole")
    assert_same_state(final_state(tmp_path / "whole"), final_state(tmp_path / "run"))


@pytest.mark.parametrize(
    ("changes", "options", "named"),
    [
        ({"seed": 1}, {}, "seed 0, and now seed 1"),
        ({"batch_size": 2}, {}, "batch_size 4, and now batch_size 2"),
        ({}, {"data": "abc"}, "data 10 examples, and now data abc"),
    ],
)
def test_another_sequence_in_the_same_folder_is_refused(tmp_path, changes, options, named):
    run(Regression(), tmp_path, num_steps=5)
    with pytest.raises(OtherRun, match=named):
        run(Regression(batch_size=changes.get("batch_size", 4)), tmp_path, options=RunOptions(**options), **changes)


def test_another_model_in_the_same_folder_is_refused(tmp_path):
    run(Regression(), tmp_path, num_steps=5)
    task = Regression()
    task.model = torch.nn.Linear(3, 1)
    with pytest.raises(OtherRun, match="another model"):
        run(task, tmp_path)


def test_checkpoints_of_the_loop_before_are_read(tmp_path):
    """Its manifests had neither a record nor an export."""
    run(Regression(), tmp_path / "run", num_steps=10)
    newest = newest_checkpoint(tmp_path / "run" / "checkpoints")
    manifest = read_manifest(newest)
    del manifest["record"]
    (newest / "manifest.json").write_text(json.dumps(manifest))
    assert run(Regression(), tmp_path / "run") == 12
    run(Regression(), tmp_path / "whole")
    assert_same_state(final_state(tmp_path / "whole"), final_state(tmp_path / "run"))


def test_a_loss_that_is_not_a_number_stops_the_run_records_its_batch_and_keeps_the_last_checkpoint(tmp_path):
    task = Regression(at_step=8)
    with pytest.raises(TrainingDiverged, match=r"at step 7 the loss is nan .*'step-00000005' is the last good"):
        run(task, tmp_path, log_every=100)
    record = json.loads((tmp_path / "diverged-step-00000007.json").read_text())
    assert record["samples"] == task.order.at(7)[1].tolist()
    assert list(record["losses"]) == ["5", "6", "7", "8", "9"]  # all that was not looked at: 8 and 9 follow from 7
    assert float(record["losses"]["6"]) > 0
    assert newest_checkpoint(tmp_path / "checkpoints").name == "step-00000005"


class Exploding(Regression):
    def loss(self, batch):
        loss, figures = super().loss(batch)
        if batch.step == 9:  # the loss is a number, its gradient is none
            loss = loss + 0 * (self.model[0].weight.square().sum() - self.model[0].weight.square().sum()).sqrt()
        return loss, figures


def test_a_gradient_that_is_not_a_number_is_found_before_it_reaches_a_checkpoint(tmp_path):
    with pytest.raises(TrainingDiverged, match="at step 9 the loss is [0-9.]+ and the norm of the gradient nan"):
        run(Exploding(), tmp_path)
    assert newest_checkpoint(tmp_path / "checkpoints").name == "step-00000005"


def test_the_time_budget_ends_at_a_checkpoint(tmp_path):
    assert run(Regression(), tmp_path, minutes=1e-9) == 0
    assert run(Regression(), tmp_path) == 12


def test_previews_see_the_averaged_weights_and_training_goes_on_with_its_own(tmp_path):
    task = Regression()
    run(task, tmp_path / "seen", options=RunOptions(preview_every=12))
    run(Regression(), tmp_path / "unseen")
    state = final_state(tmp_path / "seen")
    assert_same_state(final_state(tmp_path / "unseen"), state)
    step, weights = task.previews[0]
    assert step == 12
    assert torch.equal(weights, state.tensors["average"]["0.weight"])
    assert json.loads((tmp_path / "seen" / "log.jsonl").read_text().splitlines()[-1]) == {"step": 12, "previewed": 12.0}


def test_a_first_preview_sees_the_weights_that_training_begins_with_and_is_not_seen_again(tmp_path):
    task, options = Regression(), RunOptions(preview_every=12, preview_first=True)
    begun = task.model[0].weight.clone()
    run(task, tmp_path / "seen", options=options, num_steps=5)
    assert [step for step, _ in task.previews] == [0]
    assert torch.equal(task.previews[0][1], begun)
    resumed = Regression()
    run(resumed, tmp_path / "seen", options=options)
    assert [step for step, _ in resumed.previews] == [12]
    run(Regression(), tmp_path / "unseen")
    assert_same_state(final_state(tmp_path / "unseen"), final_state(tmp_path / "seen"))


def test_the_time_of_previews_does_not_count_as_trainings(tmp_path):
    task = Regression()
    task.preview = lambda step: time.sleep(0.5)
    run(task, tmp_path, options=RunOptions(preview_every=2))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert min(line["images_per_second"] for line in lines) > 2 * 4 / 0.5  # of two steps with four rows


@pytest.mark.parametrize(("instruction", "expected"), [("avx2", False), ("avx512_bf16", True), ("bf16", True)])
def test_bfloat16_is_for_devices_that_compute_in_it(monkeypatch, instruction, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instruction: True}, raising=False)
    assert computes_bfloat16(torch.device("cpu")) is expected


def test_half_precision_keeps_its_scale_over_a_resume(tmp_path):
    for folder, lengths in (("whole", (12,)), ("resumed", (7, 12))):
        for num_steps in lengths:
            run(Regression(), tmp_path / folder, autocast="float16", num_steps=num_steps)
    state = final_state(tmp_path / "whole")
    assert_same_state(state, final_state(tmp_path / "resumed"))
    assert "scale" in state.tensors["scaler"]


def test_the_log_tells_step_samples_loss_speed_and_memory(tmp_path):
    run(Regression(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert {"samples", "loss", "error", "learning_rate", "gradient_norm", "images_per_second"} <= lines[0].keys()
    assert lines[0]["memory_gigabytes"] > 0


class Reads(TorchDispatchMode):
    """Counts how often a number is read off a device, for which all that was asked of it before must be done."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero)
        return function(*args, **(kwargs or {}))


def test_steps_between_two_lines_of_the_log_wait_for_nothing(tmp_path, monkeypatch):
    take_step, reads = Trainer._take_step, []

    def watched(trainer, portions):
        with Reads() as mode:
            take_step(trainer, portions)
        reads.append(mode.count)

    monkeypatch.setattr(Trainer, "_take_step", watched)
    run(Regression(), tmp_path, log_every=12, checkpoint_every=12)
    assert reads == [0] * 12


def test_frozen_parameters_are_neither_trained_nor_averaged(tmp_path):
    task = Regression()
    task.model[0].requires_grad_(False)
    before = task.model[0].weight.clone()
    run(task, tmp_path)
    assert torch.equal(task.model[0].weight, before)
    assert torch.equal(final_state(tmp_path).tensors["average"]["0.weight"], before)


class Exported(Regression):
    def export(self, folder, weights):
        save_file(weights, folder / "for_users.safetensors")


def test_a_checkpoint_holds_what_users_take_away_and_watches_over_it(tmp_path):
    run(Exported(), tmp_path)
    newest = newest_checkpoint(tmp_path / "checkpoints")
    exported = load_file(newest / "export" / "for_users.safetensors")
    assert all(torch.equal(value, exported[name]) for name, value in load_averaged_weights(tmp_path).items())
    (newest / "export" / "for_users.safetensors").unlink()
    assert newest_checkpoint(tmp_path / "checkpoints").name == "step-00000010"


def test_an_export_that_fails_leaves_no_checkpoint(tmp_path):
    task = Exported()
    task.export = lambda folder, weights: kill()
    with pytest.raises(Killed):
        run(task, tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_checkpoint_carries_configuration_data_and_versions(tmp_path):
    run(Regression(), tmp_path, options=RunOptions(data="abc", config={"recipe": "sd15"}))
    record = final_state(tmp_path).record
    assert record["sequence"] == {"seed": 0, "batch_size": 4, "data": "abc", "optimizer": "adamw"}
    assert record["config"]["recipe"] == "sd15"
    assert record["config"]["loop"]["num_steps"] == 12
    assert record["environment"]["torch"] == torch.__version__


def test_eight_bits_without_their_package_say_what_to_install(tmp_path):
    with pytest.raises(ImpromptError, match="pip install bitsandbytes"):
        Trainer(Regression(), loop_config(tmp_path), optimizer_config(name="adamw8bit"))


def test_nothing_to_train_is_refused(tmp_path):
    task = Regression()
    task.model.requires_grad_(False)
    with pytest.raises(ImpromptError, match="no parameter"):
        Trainer(task, loop_config(tmp_path), optimizer_config())
