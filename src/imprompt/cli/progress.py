"""Progress on the terminal: one bar on stderr, so that what a command prints on stdout can be piped."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar; what is yielded takes the steps done and their whole number."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    silent = not console.is_terminal  # else an empty line is left in logs
    with Progress(*columns, console=console, transient=True, disable=silent, redirect_stdout=False) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def busy(description: str) -> Iterator[None]:
    """Show that something of unknown length is going on."""
    from rich.console import Console

    with Console(stderr=True).status(description):
        yield


def quiet_libraries() -> None:
    """Keep diffusers and transformers from bars and advice of their own; errors are still raised."""
    import diffusers
    import transformers

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
