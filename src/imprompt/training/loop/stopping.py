"""Being asked to stop: by a signal, or by the clock."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SAME_REQUEST_SECONDS = 2.0
"""A launcher passes on an interrupt that the terminal has sent to all processes already."""


class StopRequests:
    """What speaks for stopping after the present step."""

    def __init__(self, minutes: float | None) -> None:
        """Start the clock.

        Args:
            minutes: Time budget; None is none.
        """
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self._first_signal: float | None = None

    @property
    def any(self) -> bool:
        """Whether there is any."""
        is_late = self._deadline is not None and time.monotonic() >= self._deadline
        return is_late or self._first_signal is not None

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: the first asks to stop, a later interrupt does not wait."""
        now = time.monotonic()
        if self._first_signal is None:
            self._first_signal = now
        elif number == signal.SIGINT and now - self._first_signal > SAME_REQUEST_SECONDS:
            raise KeyboardInterrupt


@contextmanager
def stop_requests(minutes: float | None) -> Iterator[StopRequests]:
    """Listen for SIGTERM and SIGINT, and to the clock, within the block; outside the main thread to the clock alone."""
    requests = StopRequests(minutes)
    if threading.current_thread() is not threading.main_thread():  # which alone may listen to signals
        yield requests
        return
    previous = {number: signal.signal(number, requests.note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
