"""What an interrupt leaves behind, told by the commands that go on from there."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def goes_on(kept: str) -> Iterator[None]:
    """Within it, or in a function that it decorates, an interrupt tells what is kept and how to go on.

    Args:
        kept: What the next call finds, as "finished pictures".

    Raises:
        KeyboardInterrupt: There was an interrupt; its message is what `imprompt.cli.main` says of it.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {kept} are kept, and the same command goes on from there") from None
