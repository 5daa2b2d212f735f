"""Two processes, once, by torchrun: what they train is what one does, and they stop, fail and save together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imprompt.core.errors import ImpromptError
from imprompt.training.loop.batches import split_batch
from imprompt.training.loop.checkpointing import load_averaged_weights, load_checkpoint, newest_checkpoint
from imprompt.training.loop.distributed import Processes, resolve_device, shard_frozen
from imprompt.training.loop.order import BatchOrder
from tests.unit.training.regression import loop_config, run
from tests.unit.training.two_processes import undropped

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("two_processes.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, script, folder], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def told(folder):
    return [json.loads((folder / f"told-{index}.json").read_text()) for index in range(2)]


def test_two_processes_train_what_one_does_on_the_same_global_batch(folder, tmp_path):
    run(undropped(), tmp_path, batch_size=8)
    one, two = (load_checkpoint(newest_checkpoint(path / "checkpoints")) for path in (tmp_path, folder / "two"))
    assert one.counters == two.counters
    assert two.record["environment"]["processes"] == 2
    for group in ("model", "average"):
        for name, value in one.tensors[group].items():
            torch.testing.assert_close(two.tensors[group][name], value, rtol=1e-6, atol=1e-7)


def test_the_log_tells_the_mean_of_both(folder, tmp_path):
    run(undropped(), tmp_path, batch_size=8)
    logs = [
        [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
        for path in (tmp_path, folder / "two")
    ]
    assert [line["loss"] for line in logs[0]] == pytest.approx([line["loss"] for line in logs[1]], abs=2e-5)


def test_all_stop_after_the_same_step_when_one_is_told_to(folder, told):
    assert [part["stopped"] for part in told] == [4, 4]
    assert newest_checkpoint(folder / "stopped" / "checkpoints").name == "step-00000004"


def test_what_diverges_in_one_process_stops_all_and_is_recorded_once(folder, told):
    assert all("at step 2 the loss is nan" in part["failures"][0] for part in told)
    record = json.loads((folder / "Diverging" / "diverged-step-00000002.json").read_text())
    assert len(record["samples"]) == 8


def test_a_checkpoint_that_cannot_be_written_stops_all(folder, told):
    assert told[0]["failures"][1] == "the disk is gone"
    assert told[1]["failures"][1] == "the main process stopped: the disk is gone"
    assert load_averaged_weights(folder / "Unwritable") is None


def test_a_sharded_base_gives_the_gradients_of_a_whole_one_and_half_of_it_lies_in_each_process(told):
    for part in (part["sharded"] for part in told):
        assert part["error"] <= 1e-6 * part["gradient"]
        assert part["part"] == 0.5


def test_processes_take_equal_parts_that_make_the_whole_batch():
    order = BatchOrder(100, 12, seed=0)
    loop = loop_config("runs", batch_size=12, micro_batch_size=4)
    splits = [split_batch(order, loop, Processes(torch.device("cpu"), index, 2)) for index in range(2)]
    draws = [draw for split in splits for draw in split.draws(3)]
    assert [draw.rows.tolist() for draw in draws] == [[0, 1, 2, 3], [4, 5], [6, 7, 8, 9], [10, 11]]
    assert torch.equal(torch.cat([draw.samples for draw in draws]), order.at(3)[1])


def test_a_batch_that_cannot_be_shared_out_is_refused():
    with pytest.raises(ImpromptError, match="batch_size 4 cannot be shared out over 3 processes"):
        split_batch(BatchOrder(10, 4, seed=0), loop_config("runs"), Processes(torch.device("cpu"), 0, 3))


def test_only_a_frozen_base_is_sharded():
    with pytest.raises(ImpromptError, match="'weight' is to be trained"):
        shard_frozen(torch.nn.Linear(2, 2), Processes(torch.device("cpu"), 0, 2))


def test_devices_by_name():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps", "xpu")
    with pytest.raises(ImpromptError, match="'gpu'"):
        resolve_device("gpu")
