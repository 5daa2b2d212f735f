"""This process's number among those that a launcher started on its machine."""

import os
from collections.abc import Mapping

RANK_VARIABLES = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
"""How torchrun (and accelerate), Open MPI, Intel's MPI and srun tell it."""


def local_rank(environment: Mapping[str, str] | None = None) -> int | None:
    """The number, from 0; None where no launcher tells one.

    Args:
        environment: Where launchers tell it; the process's own by default.
    """
    variables = os.environ if environment is None else environment
    return next((int(variables[name]) for name in RANK_VARIABLES if variables.get(name)), None)
