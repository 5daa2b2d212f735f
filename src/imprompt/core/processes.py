"""Processes of a pool: none outlives the one that made it, and an interrupt is that one's to answer."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from typing import Any


def leave_with_maker(stop: Any) -> None:
    """Let this process of a pool end at once when it is told to, or when the one that made it ends.

    A terminal interrupts all of them; this one ignores that, and the one that made it says what becomes of it.

    Args:
        stop: Event of the pool's context that tells to end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for waiting in (stop.wait, multiprocessing.parent_process().join):  # pyright: ignore[reportOptionalMemberAccess]
        threading.Thread(target=_end_after, args=(waiting,), daemon=True).start()


def _end_after(waiting: Callable[[], object]) -> None:
    waiting()
    os._exit(1)
