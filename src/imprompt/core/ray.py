"""Numbered tasks on a Ray cluster: tried again where a machine is lost, stopped with the process that wants them."""

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from imprompt.core.errors import ImpromptError, first_line

Shared = TypeVar("Shared")
Result = TypeVar("Result")

MAX_RETRIES = 3
"""How often a task is begun again whose machine or process was lost; one that raised an error is not."""


def join_cluster() -> Any:
    """Ray, connected: to the cluster that is running or that RAY_ADDRESS names, else to one made here.

    Raises:
        ImpromptError: Ray is not installed, or there is no cluster where it was looked for.
    """
    try:
        ray = import_module("ray")
    except ImportError as error:
        raise ImpromptError(
            "the engine 'ray' needs Ray, which is not installed; pip install 'imprompt[ray]', or take --engine local"
        ) from error
    if not ray.is_initialized():
        try:
            ray.init(include_dashboard=False, log_to_driver=False)
        except Exception as error:  # of many kinds, some of them bare
            raise ImpromptError(
                f"Ray cannot be reached or started ({first_line(error)}); look at RAY_ADDRESS, or take --engine local"
            ) from error
    return ray


def num_at_once(ray: Any, accelerated: bool = True) -> int:
    """How many tasks the cluster runs at a time: one an accelerator, or without those one a processor.

    Args:
        ray: What `join_cluster` returned.
        accelerated: Whether tasks compute on accelerators where there are any.
    """
    resources = ray.cluster_resources()
    return int((accelerated and resources.get("GPU", 0)) or resources.get("CPU", 0)) or 1


def run_tasks(
    ray: Any,
    work: Callable[[Shared, int], Result],
    shared: Shared,
    numbers: Sequence[int],
    on_result: Callable[[Result], None],
    *,
    accelerated: bool = True,
) -> None:
    """Do numbered pieces of work on all machines of a cluster, each in the folder where this process stands.

    A process is kept for further tasks, so that what it has loaded is loaded once. When this call ends early, by an
    error or an interrupt, no further task begins.

    Args:
        ray: What `join_cluster` returned.
        work: A function of a module, which the machines import; it is told `shared` and a number.
        shared: What all tasks need; it is sent to a machine once.
        numbers: One a task.
        on_result: Told what each task returned, as they end.
        accelerated: Whether a task wants an accelerator, where the cluster has any.

    Raises:
        ImpromptError: A task's machine or process was lost again and again.
        Exception: A task's own error.
    """
    has_accelerators = accelerated and ray.cluster_resources().get("GPU", 0) > 0
    options = {"num_gpus": 1 if has_accelerators else 0, "max_retries": MAX_RETRIES}
    task = ray.remote(max_calls=0, **options)(_there)  # by default a process ends after its first task on a GPU
    sent, here = ray.put(shared), Path.cwd()
    pending = [task.remote(here, work, sent, number) for number in numbers]
    try:
        while pending:
            done, pending = ray.wait(pending)
            for result in ray.get(done):
                on_result(result)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise ImpromptError(
            f"Ray gave a task up ({first_line(error)}); what other tasks did is kept, so run the same command again"
        ) from error
    finally:
        for reference in pending:
            ray.cancel(reference)


def _there(folder: Path, work: Callable[[Shared, int], Result], shared: Shared, number: int) -> Result:
    """A task, where names of files mean what they mean to the process that wants it."""
    os.chdir(folder)
    return work(shared, number)
