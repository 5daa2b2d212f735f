"""Progress on the terminal: one bar on stderr, so that what a command prints on stdout can be piped.

Of the processes that a launcher starts on a machine, which all write to one terminal, the first shows it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from imprompt.core.ranks import local_rank

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def progress_bar(description: str, *, unit: str = "") -> Iterator[Callable[[int, int], None]]:
    """Show a bar; what is yielded takes the steps done and their whole number.

    Args:
        description: Of what is going on.
        unit: What a step is called where its rate is of interest, as "samples".
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class RateColumn(ProgressColumn):
        """Steps a second."""

        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:,.1f} {unit}/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *([RateColumn()] if unit else []),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = _console()
    silent = console.quiet or not console.is_terminal  # else an empty line is left in logs
    with Progress(*columns, console=console, transient=True, disable=silent, redirect_stdout=False) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def busy(description: str) -> Iterator[None]:
    """Show that something of unknown length is going on."""
    with _console().status(description):
        yield


def _console() -> "Console":
    """Where progress is shown: stderr, of the first process of a machine."""
    from rich.console import Console

    return Console(stderr=True, quiet=bool(local_rank()))
