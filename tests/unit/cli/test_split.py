"""Parts of shared work as launchers tell them."""

from imprompt.cli.split import split_from_environment, split_of


def test_launchers_say_which_part_a_process_takes() -> None:
    assert split_from_environment({}) == (0, 1)
    assert split_from_environment({"RANK": "3", "WORLD_SIZE": "8"}) == (3, 8)
    assert split_from_environment({"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "WORLD_SIZE": "1"}) == (1, 4)
    assert split_from_environment({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}) == (1, 2)
    assert split_from_environment({"PMI_RANK": "1", "PMI_SIZE": "2", "SLURM_NTASKS": "1"}) == (1, 2)
    array = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "5"}
    assert split_from_environment(array) == (2, 3)


def test_what_is_said_goes_before_the_launcher(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert split_of(None) == (3, 8)
    assert split_of("1/2") == (0, 2)
