"""Which accelerator a process takes, with numbers of accelerators and processes made up."""

import pytest
import torch

from imprompt.core.devices import chosen_device
from imprompt.generation.pipelines import default_device


@pytest.fixture
def two_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_accelerators")
@pytest.mark.parametrize(
    ("environment", "place", "device"),
    [
        ({"LOCAL_RANK": "3"}, None, "cuda:1"),
        ({"SLURM_LOCALID": "2"}, None, "cuda:0"),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "3"}, None, "cuda:1"),
        ({"MPI_LOCALRANKID": "1"}, None, "cuda:1"),
        ({"LOCAL_RANK": "1", "SLURM_LOCALID": "0"}, None, "cuda:1"),  # torchrun within a task of SLURM
        ({"SLURM_LOCALID": "0"}, 3, "cuda:1"),  # a pool of processes within a task of SLURM, which has one number
        ({}, 1, "cuda:1"),
        ({}, None, "cuda"),  # whichever torch has made the current one
        ({"LOCAL_RANK": ""}, None, "cuda"),
    ],
)
def test_processes_take_turns(environment: dict[str, str], place: int | None, device: str) -> None:
    assert chosen_device(place=place, environment=environment) == torch.device(device)
    assert chosen_device("cpu", place=place, environment=environment) == torch.device("cpu")


def test_without_an_accelerator_it_is_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert chosen_device(place=1, environment={"LOCAL_RANK": "1"}) == torch.device("cpu")


@pytest.mark.usefixtures("two_accelerators")
def test_pipelines_and_judges_go_where_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_LOCALID", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert default_device() == torch.device("cuda:1")
    monkeypatch.delenv("LOCAL_RANK")
    assert default_device() == torch.device("cuda")
