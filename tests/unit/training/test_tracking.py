import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from imprompt.core.errors import ImpromptError
from imprompt.training.loop.tracking import Tracking, drop_lines_after, flatten


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_log_has_a_line_a_call_and_null_for_what_is_no_number(tmp_path):
    tracking = Tracking(tmp_path / "run", (), {}, step=0)
    tracking.log(1, {"loss": 0.5})
    tracking.log(2, {"loss": float("nan"), "gradient_norm": float("inf")})
    tracking.close()
    assert lines(tmp_path / "run") == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None, "gradient_norm": None}]


def test_lines_of_steps_that_are_taken_again_are_dropped_and_so_is_half_a_line(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    drop_lines_after(log, 2)
    assert lines(tmp_path) == [{"step": 1}, {"step": 2}]


def test_a_line_without_its_end_is_ended_before_the_next(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}')
    Tracking(tmp_path, (), {}, step=2).log(3, {})
    assert lines(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_a_log_that_cannot_be_written_is_told_in_a_sentence(tmp_path):
    tracking = Tracking(tmp_path / "run", (), {}, step=0)
    (tmp_path / "run" / "log.jsonl").mkdir()
    with pytest.raises(ImpromptError, match="log.jsonl' cannot be written .*goes on from the newest checkpoint"):
        tracking.log(1, {})


def test_tensorboard_gets_every_figure_at_its_step(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracking = Tracking(tmp_path, ("tensorboard",), {"loop": {"seed": 0}}, step=0)
    for step in (10, 20):
        tracking.log(step, {"loss": step / 10})
    tracking.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 1.0), (20, 2.0)]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImpromptError, match=f"'pip install {name}', or leave it out of loop.trackers"):
        Tracking(tmp_path, (name,), {}, step=0)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_get_settings_and_figures_and_know_the_run_again(tmp_path, monkeypatch, name):
    calls = []
    run = SimpleNamespace(
        log=lambda figures, step: calls.append(("log", step, figures)), finish=lambda: calls.append("finish")
    )
    module = ModuleType(name)
    module.init = lambda **options: calls.append(options) or run
    module.config = SimpleNamespace(update=lambda values, **_: calls.append(values))
    monkeypatch.setitem(sys.modules, name, module)
    for step in (0, 5):
        tracking = Tracking(tmp_path / "my-run", (name,), {"loop": {"seed": 0, "output": None}}, step=step)
        tracking.log(step + 5, {"loss": 1.0})
        tracking.close()
    first, again = calls[0], calls[4]
    assert first == again
    assert first["project"] == "imprompt"
    assert first["resume"] == "allow"
    assert first["name"].startswith("my-run")
    assert calls[1:4] == [{"loop.seed": 0, "loop.output": None}, ("log", 5, {"loss": 1.0}), "finish"]


def test_settings_are_flattened_to_what_trackers_take():
    nested = {"loop": {"seed": 0, "trackers": ["tensorboard"]}, "recipe": "sd15"}
    assert flatten(nested) == {"loop.seed": 0, "loop.trackers": "['tensorboard']", "recipe": "sd15"}
