"""Sources of training data, one module a format; which one a file or folder is, is told by its content."""

import logging
from pathlib import Path

from imprompt.training.data.sources import arrow, folder, official, parquet, tars
from imprompt.training.data.sources.records import Format
from imprompt.training.errors import DataError

logger = logging.getLogger(__name__)

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
    known = next((known for known in FORMATS if known.recognises(source)), None)
    if known is not None:
        _warn_of_pictures(source, known)
        return known
    kinds = "; ".join(known.description for known in FORMATS)
    raise DataError(f"'{source}' is no training data that is known; expected one of: {kinds}.")


def _warn_of_pictures(source: Path, known: Format) -> None:
    """Say that loose pictures are passed over where a folder also has files that hold many."""
    if known is not folder.FORMAT and source.is_dir() and folder.recognises(source):
        logger.warning("'%s' is read as %s; pictures that lie there singly are passed over.", source, known.description)


def by_name(name: str) -> Format:
    """A row of the table."""
    return next(known for known in FORMATS if known.name == name)
