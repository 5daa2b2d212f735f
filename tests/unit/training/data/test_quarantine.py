"""What is lost is listed, by any number of processes, and held against a budget."""

import multiprocessing
from pathlib import Path

import pytest

from imprompt.training.data.quarantine import Quarantine, read_losses, write_losses
from imprompt.training.data.table import Loss
from imprompt.training.errors import DataError


def report_some(folder: Path, process: int) -> None:
    quarantine = Quarantine(folder, 0.5, 1000)
    for number in range(40):
        quarantine.report(f"{process * 20 + number}", "broken")


def test_losses_are_counted_once(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "quarantine", 0.02, 100)
    for _ in range(5):
        quarantine.report("a", "it is broken.")
    quarantine.report("b", "so is this.")
    assert quarantine.losses() == {"a": "it is broken.", "b": "so is this."}
    with pytest.raises(DataError, match="3 of 100 samples cannot be used, and 2.0% may be lost; the first is 'a'"):
        quarantine.report("c", "one too many.")
    assert len(list((tmp_path / "quarantine").iterdir())) == 1


def test_a_run_that_goes_on_remembers(tmp_path: Path) -> None:
    Quarantine(tmp_path, 0.1, 10).report("a", "broken")
    with pytest.raises(DataError, match="2 of 10"):
        Quarantine(tmp_path, 0.1, 10).report("b", "broken")
    with pytest.raises(DataError, match="2 of 10"):
        Quarantine(tmp_path, 0.1, 10).check()
    with pytest.raises(DataError, match="2 of 10"):  # a run that is started again meets it once more
        Quarantine(tmp_path, 0.1, 10).report("a", "broken")


def test_no_budget_and_no_losses(tmp_path: Path) -> None:
    Quarantine(tmp_path / "none", 0.0, 10).check()
    assert not (tmp_path / "none").exists()


def test_processes_count_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=report_some, args=(tmp_path, number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(list(tmp_path.iterdir())) == 3
    assert set(Quarantine(tmp_path, 0.5, 1000).losses()) == {str(number) for number in range(80)}


def test_half_a_line_is_no_loss(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, 0.5, 10)
    (tmp_path / "other.jsonl").write_text('{"where": "a", "reason": "x"}\n{"where": "b", "rea')
    assert list(quarantine.losses()) == ["a"]
    with (tmp_path / "other.jsonl").open("a") as file:
        file.write('son": "y"}\nno json\n')
    assert quarantine.losses() == {"a": "x", "b": "y"}


def test_a_list_beside_a_manifest(tmp_path: Path) -> None:
    path = tmp_path / "m.losses.jsonl"
    losses = [Loss("a", "it is\nbroken"), Loss("é", "so is this")]
    assert write_losses(path, losses) == path
    assert read_losses(path) == losses
    assert write_losses(path, []) is None
    assert not path.exists()
    assert read_losses(path) == []
