"""Which part of work that several processes or machines share is this one's."""

import os
from collections.abc import Mapping
from enum import StrEnum

from imprompt.core.errors import PromptError


class Engine(StrEnum):
    """Who does the work."""

    LOCAL = "local"
    RAY = "ray"


# A process's number among all and how many there are, as launchers tell them: torchrun (and accelerate, which calls it
# or mpirun), Open MPI, MPICH and Intel's, srun, arrays of sbatch.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", ""),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ""),
    ("PMI_RANK", "PMI_SIZE", ""),
    ("SLURM_PROCID", "SLURM_NTASKS", ""),
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
)


def split_of(text: str | None) -> tuple[int, int]:
    """The part that `--split` says, or without it the launcher: its number, from 0, and how many there are.

    Raises:
        PromptError: It is no such part.
    """
    return split_from_environment() if text is None else parse_split(text)


def parse_split(text: str) -> tuple[int, int]:
    """Read "2/8", the second of eight parts, as the numbers 1, from 0, and 8.

    Raises:
        PromptError: It is no such part.
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise PromptError(f"--split wants a part and how many there are, as 2/8; got {text!r}")
    return int(number) - 1, int(count)


def split_from_environment(environment: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Which part of the work this process takes, as torchrun, MPI or SLURM tell it; all of it if nobody does.

    Args:
        environment: Variables; the process's own by default.
    """
    variables = os.environ if environment is None else environment
    for number, count, first in _LAUNCHERS:
        if int(variables.get(count) or 1) > 1 and number in variables:
            return int(variables[number]) - int(variables.get(first) or 0), int(variables[count])
    return 0, 1
