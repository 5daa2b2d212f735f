"""Work that is shared out over processes of one thread each: on small models two of these do twice as much as one."""

import multiprocessing
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from imprompt.core.processes import leave_with_maker
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
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(num_processes, context, initializer=_enter, initargs=(stop,)) as pool:
        try:
            for done in as_completed([pool.submit(work, job) for job in jobs]):
                yield done.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _enter(stop: Any) -> None:
    """Prepare a process of a pool."""
    torch.set_num_threads(1)
    quiet_libraries()
    leave_with_maker(stop)
