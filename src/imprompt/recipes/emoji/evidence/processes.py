"""Work that is shared out over processes of one thread each: on small models two of these do twice as much as one."""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager
from typing import TypeVar

import torch

from imprompt.core.processes import process_pool
from imprompt.generation.quiet import quiet_libraries

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Job], Result], jobs: Sequence[Job], num_processes: int
) -> Generator[Result, None, None]:
    """Do jobs, several at a time, and yield what comes of each once it is done.

    Processes take jobs in their order as they get free. Where the caller is interrupted, or closes the generator, the
    jobs at hand are dropped.

    Args:
        work: A function of a module, or a `functools.partial` of one.
        jobs: What it is called with.
        num_processes: With 1 the work is done in this process, with one thread as well.

    Raises:
        Exception: What a job raised; jobs that have not begun are not begun.
    """
    num_processes = min(num_processes, len(jobs))
    if num_processes < 2:
        with _one_thread():
            yield from map(work, jobs)
        return
    with process_pool(num_processes, prepare=quiet_libraries) as pool:
        for done in as_completed([pool.submit(work, job) for job in jobs]):
            yield done.result()


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
