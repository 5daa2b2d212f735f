from pathlib import Path
from typing import get_args

from typer.testing import CliRunner

from imprompt.cli.emoji import Course, Stage, app
from imprompt.recipes.emoji import quality, stages, unet
from imprompt.training.loop.schedule import Schedule


def test_every_stage_can_be_named():
    assert [stage.value for stage in Stage] == list(stages.STAGES)


def test_train_changes_what_was_asked_and_nothing_else(monkeypatch):
    calls = []
    monkeypatch.setattr(stages, "train", lambda stage, **changes: calls.append((stage, changes)) or Path("models"))
    result = CliRunner().invoke(app, ["train", "unet", "--minutes", "5", "--schedule", "cosine"])
    assert result.exit_code == 0, result.output
    assert calls == [("unet", {"everything": False, "minutes": 5.0, "schedule": "cosine"})]


def test_courses_of_the_learning_rate_are_those_of_the_loop():
    assert [course.value for course in Course] == list(get_args(Schedule))


def test_snapshot_without_a_checkpoint_says_what_to_run(monkeypatch, tmp_path):
    monkeypatch.setenv("IMPROMPT_CACHE", str(tmp_path))
    result = CliRunner().invoke(app, ["snapshot"])
    assert "train unet" in str(result.exception)
    assert not unet.models_folder().exists()


def test_quality_keeps_its_table_for_the_next_bundle(monkeypatch, tmp_path):
    monkeypatch.setenv("IMPROMPT_CACHE", str(tmp_path))
    monkeypatch.setattr("imprompt.emoji.bundle.bundle_folder", lambda: tmp_path)
    monkeypatch.setattr(quality, "measure", lambda config: [])
    result = CliRunner().invoke(app, ["quality", "--pictures", "8"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "emoji" / "quality.md").read_text().startswith("|")
