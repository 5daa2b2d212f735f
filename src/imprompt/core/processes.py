"""Pools of processes: none outlives the one that made it, and an interrupt is that one's to answer."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import torch

from imprompt.core.errors import ImpromptError

_place: int | None = None


@contextmanager
def process_pool(
    num_processes: int,
    *,
    num_threads: int = 1,
    preload: Sequence[str] = (),
    prepare: Callable[[], None] | None = None,
) -> Generator[ProcessPoolExecutor, None, None]:
    """Processes of this machine that take work as they get free; whatever happens here, they end with the block.

    They begin without threads of torch or an accelerator in use. When an exception leaves the block, Ctrl-C included,
    the work at hand is dropped and no further begins, so let work write files that are whole or not there.

    Args:
        num_processes: How many.
        num_threads: Of torch, in each; of others too, such as Arrow, that read OMP_NUM_THREADS, unless it is set here.
        preload: Modules that are imported once for all of them, where the system can.
        prepare: Called in each before its first work; a function of a module.

    Raises:
        ImpromptError: A process was killed from outside.
    """
    context = _start_method(preload)
    places, stop = context.SimpleQueue(), context.Event()
    for place in range(num_processes):
        places.put(place)
    environment = {"OMP_NUM_THREADS": str(num_threads), **os.environ}
    initial = (places, stop, environment, num_threads, prepare)
    with ProcessPoolExecutor(num_processes, context, initializer=_enter, initargs=initial) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise ImpromptError(
                f"one of {num_processes} processes was killed, perhaps for want of memory; use fewer processes"
            ) from error
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def place_in_pool() -> int | None:
    """Number of this process in its pool, from 0; None in a process of no pool."""
    return _place


def _start_method(preload: Sequence[str]) -> Any:
    """Where the system can, processes are copies of one that has modules loaded and nothing begun."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *preload])
    return context


def _enter(
    places: Any, stop: Any, environment: dict[str, str], num_threads: int, prepare: Callable[[], None] | None
) -> None:
    """Prepare a process of a pool; it ends at once when it is told to, or when the one that made it ends."""
    global _place
    _place = places.get()
    os.environ.clear()  # what it has is of the time when modules were loaded
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for waiting in (stop.wait, multiprocessing.parent_process().join):  # pyright: ignore[reportOptionalMemberAccess]
        threading.Thread(target=_end_after, args=(waiting,), daemon=True).start()
    torch.set_num_threads(num_threads)
    if prepare is not None:
        prepare()


def _end_after(waiting: Callable[[], object]) -> None:
    waiting()
    os._exit(1)
