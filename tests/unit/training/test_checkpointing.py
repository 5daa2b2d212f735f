import errno
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from imprompt.training.errors import DiskFull
from imprompt.training.loop import checkpointing
from imprompt.training.loop.checkpointing import Checkpoint, flaw, load_checkpoint, newest_checkpoint, save_checkpoint

WEIGHTS = {"weight": torch.arange(1000.0)}


def checkpoint(value=0.0):
    return Checkpoint({"model": {name: weight + value for name, weight in WEIGHTS.items()}}, {"step": 1})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_read(tmp_path):
    written = Checkpoint({"model": WEIGHTS, "average": {}}, {"step": 3}, {"sequence": {"seed": 1}})
    read = load_checkpoint(save_checkpoint(tmp_path, 3, written))
    assert (read.counters, read.record) == (written.counters, written.record)
    assert torch.equal(read.tensors["model"]["weight"], WEIGHTS["weight"])


def test_only_the_newest_stay(tmp_path):
    for step in range(5):
        save_checkpoint(tmp_path, step, checkpoint(), keep=2)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_a_damaged_newer_one_never_costs_the_one_just_written(tmp_path):
    damaged = save_checkpoint(tmp_path, 10, checkpoint())
    (damaged / "model.safetensors").write_bytes(b"")
    save_checkpoint(tmp_path, 8, checkpoint(), keep=1)
    assert newest_checkpoint(tmp_path).name == "step-00000008"
    save_checkpoint(tmp_path, 10, checkpoint(1.0), keep=1)
    assert names(tmp_path) == ["step-00000010"]
    assert load_checkpoint(tmp_path / "step-00000010").tensors["model"]["weight"][0] == 1.0


def test_an_intact_checkpoint_of_the_same_step_is_left_alone(tmp_path):
    save_checkpoint(tmp_path, 1, checkpoint(1.0))
    save_checkpoint(tmp_path, 1, checkpoint(2.0))
    assert load_checkpoint(tmp_path / "step-00000001").tensors["model"]["weight"][0] == 1.0


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / "manifest.json").unlink(), "manifest.json cannot be read"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda path: (path / "manifest.json").write_text("null"), "manifest.json cannot be read"),
        (
            lambda path: (path / "manifest.json").write_text('{"sha256": {}}'),
            "manifest.json names no model",
        ),
        (lambda path: (path / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda path: (path / "export" / "adapter").write_text("other"), "export/adapter is not the file"),
    ],
)
def test_the_newest_intact_one_is_used_and_it_is_said_what_is_wrong_with_the_other(tmp_path, caplog, damage, reason):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, checkpoint(), export=lambda folder: (folder / "adapter").write_text("one"))
    damage(tmp_path / "step-00000002")
    assert newest_checkpoint(tmp_path).name == "step-00000001"
    assert reason in caplog.text


def test_what_a_killed_writer_left_goes_before_the_next_one_needs_the_room(tmp_path):
    (tmp_path / ".writing-00000001-7").mkdir()
    seen = []
    save_checkpoint(tmp_path, 2, checkpoint(), export=lambda folder: seen.extend(names(tmp_path)))
    assert seen == [f".writing-00000002-{os.getpid()}"]
    assert names(tmp_path) == ["step-00000002"]


def test_a_disk_without_room_is_found_before_anything_is_written(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, checkpoint())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1500))
    monkeypatch.setattr(checkpointing, "save_file", None)
    with pytest.raises(DiskFull, match=r"4,000 bytes .* 1,500 bytes are free: 2,500 bytes are missing"):
        save_checkpoint(tmp_path, 2, checkpoint())
    assert names(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_fills_up_while_writing_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, error):
    save_checkpoint(tmp_path, 1, checkpoint())

    def fill_up(tensors, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpointing, "save_file", fill_up)
    with pytest.raises(DiskFull, match="'step-00000001' before it is kept"):
        save_checkpoint(tmp_path, 2, checkpoint())
    assert names(tmp_path) == ["step-00000001"]
    assert flaw(tmp_path / "step-00000001") is None


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full here")
def test_safetensors_says_that_a_disk_is_full_as_we_expect():
    """Should its words change, a full disk would be told as another error."""
    with pytest.raises((OSError, SafetensorError)) as caught:
        with open("/dev/full", "wb") as file:
            file.write(b"0")
    assert checkpointing._is_full(caught.value)


def test_other_errors_of_a_writer_pass_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointing, "save_file", lambda tensors, path: save_file({"x": None}, path))
    with pytest.raises(Exception) as caught:
        save_checkpoint(tmp_path, 1, checkpoint())
    assert not isinstance(caught.value, DiskFull)
    assert names(tmp_path) == []
