"""Sources of training data, one module a format; which one a file or folder is, is told by its content."""

from pathlib import Path

from imprompt.training.data.sources import arrow, folder, official, parquet, tars
from imprompt.training.data.sources.records import Format
from imprompt.training.errors import DataError

FORMATS: tuple[Format, ...] = (
    arrow.FORMAT,
    tars.FORMAT,
    parquet.FORMAT,
    official.FORMAT,
    folder.FORMAT,
)
"""In the order in which they are tried: what is told by fewer files comes first."""


def recognise(source: Path) -> Format:
    """Which format a file or folder has.

    Raises:
        DataError: There is nothing, or nothing that is known.
    """
    if not source.exists():
        raise DataError(f"'{source}' does not exist; give a folder, a tar, a parquet or a JSON file of training data.")
    for known in FORMATS:
        if known.recognises(source):
            return known
    kinds = "; ".join(known.description for known in FORMATS)
    raise DataError(f"'{source}' is no training data that is known; expected one of: {kinds}.")


def by_name(name: str) -> Format:
    """A row of the table."""
    return next(known for known in FORMATS if known.name == name)
