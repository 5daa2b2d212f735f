import errno
import json
import logging

import pytest
import torch
from PIL import Image

from imprompt.core.errors import EncoderMismatch
from imprompt.training.feedback import feedback as module
from imprompt.training.feedback.feedback import Feedback, named_figures
from imprompt.training.feedback.validation import ValidationResult
from imprompt.training.loop.distributed import Processes

PLACES = torch.tensor([0.125, 0.375, 0.625, 0.875])
LOSSES = torch.tensor([0.4, 0.2, 0.1, 0.1])
GAINS = torch.tensor([0.1, 0.3, 0.2, float("nan")])


class Painter:
    """Draws grey, or fails."""

    def __init__(self, error=None):
        self.error, self.drawn = error, []

    def draw(self, adapter):
        self.drawn.append(adapter)
        if self.error is not None:
            raise self.error
        return Image.new("RGB", (8, 8), "grey")


@pytest.fixture
def measured(monkeypatch):
    """Steps do not matter: every validation finds the same, and is counted."""
    calls = []
    result = ValidationResult(torch.arange(4), PLACES, LOSSES, GAINS)
    monkeypatch.setattr(module, "validate", lambda *arguments: calls.append(arguments) or result)
    return calls


@pytest.fixture
def make(tmp_path, unchecked):
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1, "loss": 0.5}) + "\n")

    def made(**options):
        parts = {"task": "task", "adapter": "adapter", "folder": tmp_path, "processes": Processes(torch.device("cpu"))}
        return Feedback(**{**parts, "plan": "plan", **options})

    return made


def test_everything_is_done_when_it_is_due(make, measured, tmp_path):
    painter = Painter()
    feedback = make(painter=painter, validate_every=20, sheet_every=30, report_every=50)
    assert feedback.every == 10
    done = {}
    for step in range(10, 60, 10):
        (tmp_path / "report.html").unlink(missing_ok=True)
        figures = feedback.after(step)
        done[step] = (
            bool(figures),
            (tmp_path / f"sheets/step-{step:08d}.png").exists(),
            (tmp_path / "report.html").exists(),
        )
    assert done == {
        10: (False, False, False),
        20: (True, False, True),
        30: (False, True, True),
        40: (True, False, True),
        50: (False, False, True),
    }
    assert measured[0] == ("task", "plan", feedback.processes)
    assert painter.drawn == ["adapter"]


def test_what_there_is_nothing_for_is_never_due(make):
    assert make(plan=None, painter=None, validate_every=10, sheet_every=10).every == 0
    assert make(painter=None, validate_every=10, sheet_every=4).every == 10


def test_the_report_shows_the_figures_before_they_are_logged(make, measured, tmp_path):
    make(validate_every=5, num_buckets=2).after(5)
    assert "Reference gain by noise level" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("error", [EncoderMismatch("no encoder"), torch.OutOfMemoryError("CUDA out of memory\nTried")])
def test_a_sheet_that_cannot_be_drawn_is_told_and_stops_nothing(make, caplog, tmp_path, error):
    feedback = make(plan=None, painter=Painter(error), sheet_every=5)
    with caplog.at_level(logging.WARNING):
        assert feedback.after(5) == {}
    reason = str(error).splitlines()[0]
    assert reason in caplog.text
    assert f"no contact sheet of step 5: {reason}" in (tmp_path / "report.html").read_text()


def test_a_disk_without_room_for_the_report_does_not_stop_the_run(make, measured, caplog, tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("imprompt.training.feedback.report.atomic_write", full)
    monkeypatch.setattr("imprompt.training.feedback.feedback.atomic_write", full)
    feedback = make(painter=Painter(), validate_every=5, sheet_every=5)
    assert feedback.after(5)["validation/loss"] == pytest.approx(0.2)
    for name in ("step-00000005.png", "report.html"):
        assert f"{name}' cannot be written: [Errno 28] No space left on device" in caplog.text


def test_figures_are_named_by_their_part_of_the_schedule():
    figures = named_figures(ValidationResult(torch.arange(4), PLACES, LOSSES, GAINS), 2)
    assert figures["validation/loss"] == pytest.approx(0.2)
    assert figures["validation/loss/1of2"] == pytest.approx(0.3)
    assert figures["validation/loss/2of2"] == pytest.approx(0.1)
    assert figures["validation/reference_gain"] == pytest.approx(0.2)  # of those that have one
    assert figures["validation/reference_gain_error"] == pytest.approx(0.1 / 3**0.5)
    assert figures["validation/reference_gain/2of2"] == pytest.approx(0.2)
    assert "validation/reference_gain/2of2_error" not in figures  # of one sample there is none


def test_others_wait_while_the_main_process_draws_and_writes(make, measured, tmp_path):
    class Second(Processes):
        """The second of two: it does nothing of what the main one does."""

        def on_main(self, work):
            return None

    painter = Painter()
    feedback = make(painter=painter, validate_every=5, sheet_every=5, processes=Second(torch.device("cpu"), 1, 2))
    assert feedback.after(5)["validation/loss"] == pytest.approx(0.2)
    assert not painter.drawn
    sharded = make(painter=painter, sheet_every=5, draws_everywhere=True, processes=feedback.processes)
    sharded.after(5)
    assert len(painter.drawn) == 1  # a base that is shared out needs all
    assert not (tmp_path / "sheets").exists() and not (tmp_path / "report.html").exists()
