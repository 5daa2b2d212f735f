"""The columns of a manifest, and the hash of what they hold."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from imprompt.training.errors import DataError

pc: Any = pyarrow.compute
"""Its functions are made while it is imported, where no type checker sees them."""

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("source", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("row", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("captions", pa.list_(pa.string())),
        ("sha256", pa.string()),
        ("group", pa.string()),
        ("references", pa.list_(pa.string())),
        ("face_image", pa.string()),
        ("id_embed", pa.string()),
        ("split", pa.string()),
    ]
)

REFERENCE = "reference"
"""Split of pictures that others name as their reference and that are no targets themselves."""


@dataclass(frozen=True)
class Sample:
    """One row of a manifest: a picture, where its bytes lie, and what is said of it.

    Attributes:
        sample_id: Its name, which no other has.
        source: File that holds it, relative to the manifest's root.
        offset: Where its bytes begin in that file.
        length: How many they are.
        row: Its number in a parquet file, whose pictures have no bytes of their own; -1 elsewhere.
        width: In pixels, once the picture stands upright.
        height: Likewise.
        captions: Any of them describes it.
        sha256: Of its file, or, where a sidecar tells it, of the file that was downloaded.
        group: Pictures of one group may be references of each other; "" is in none.
        references: Names of the samples that are its references.
        face_image: Name of the sample that shows the face alone.
        id_embed: File of a face embedding, relative to the root.
        split: "train", "validation", "reference", or another name that the source gives.
    """

    sample_id: str
    source: str
    offset: int = 0
    length: int = 0
    row: int = -1
    width: int = 0
    height: int = 0
    captions: tuple[str, ...] = ()
    sha256: str = ""
    group: str = ""
    references: tuple[str, ...] = ()
    face_image: str = ""
    id_embed: str = ""
    split: str = ""


@dataclass(frozen=True)
class Loss:
    """A sample that a source should have and that cannot be had.

    Attributes:
        where: Its name, or the place in a file where it should be.
        reason: What is wrong.
    """

    where: str
    reason: str


def table_of(samples: Iterable[Sample]) -> pa.Table:
    """Samples as a table of the manifest's columns."""
    rows = list(samples)
    columns = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names}
    return pa.table(columns, schema=SCHEMA)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one parquet file, and no more columns out of the names of the folders it lies in.

    Args:
        path: The file.
        columns: Which columns; all by default.
    """
    with pq.ParquetFile(path) as file:
        return file.read(columns=None if columns is None else list(columns))


def with_schema(table: pa.Table, name: str) -> pa.Table:
    """Take the columns of a manifest from a table that may have more; those that a sample can do without may miss.

    Args:
        table: Any table.
        name: What errors call it.

    Raises:
        DataError: A column that no sample can do without is missing, or one is of another kind.
    """
    missing = [column for column in ("sample_id", "source") if column not in table.column_names]
    if missing:
        raise DataError(f"'{name}' is no manifest: it has no column {missing[0]!r}; make one with imprompt data build.")
    columns = [
        table[field.name] if field.name in table.column_names else _default(field, len(table)) for field in SCHEMA
    ]
    try:
        return pa.table(columns, names=SCHEMA.names).cast(SCHEMA).combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise DataError(f"'{name}' has a column of the wrong kind ({error}); expected {_kinds()}.") from error


def _default(field: pa.Field, length: int) -> pa.Array:
    value = getattr(Sample("", ""), field.name)
    return pa.array([list(value) if isinstance(value, tuple) else value] * length, field.type)


def _kinds() -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in SCHEMA)


def content_hash(table: pa.Table) -> str:
    """Hash of all samples in their order, the same however the table was cut into pieces or packed.

    Returns:
        The hexadecimal SHA-256, 64 characters.
    """
    digest = hashlib.sha256()
    for field in SCHEMA:
        digest.update(field.name.encode())
        digest.update(_column_hash(table[field.name]))
    return digest.hexdigest()


def _column_hash(column: pa.ChunkedArray) -> bytes:
    digest = hashlib.sha256()
    if pa.types.is_list(column.type):
        digest.update(_column_hash(pc.fill_null(pc.list_value_length(column), 0)))
        digest.update(_column_hash(pc.list_flatten(column)))
        return digest.digest()
    if pa.types.is_string(column.type):
        digest.update(_column_hash(pc.fill_null(pc.binary_length(column), 0)))
    for chunk in column.chunks:
        digest.update(_content_of(chunk))
    return digest.digest()


def _content_of(chunk: pa.Array) -> Any:
    """The numbers of a piece, or the letters of all its texts behind one another."""
    if not pa.types.is_string(chunk.type):
        return np.ascontiguousarray(chunk.to_numpy(zero_copy_only=False))
    _, offsets, letters = chunk.buffers()
    if not len(chunk) or letters is None:
        return memoryview(b"")
    places = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    return memoryview(letters)[places[0] : places[-1]]
