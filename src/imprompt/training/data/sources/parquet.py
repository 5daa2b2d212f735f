"""Parquet files with the bytes of pictures in a column, as data sets on the model hub are stored."""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from imprompt.core.errors import ImageError, first_line
from imprompt.training.data.sources.folder import containers_of
from imprompt.training.data.sources.records import KNOWN, Format, Unit, described, head, measured, name_of, place_of
from imprompt.training.data.table import Loss, Sample

PICTURE_COLUMNS = ("image", "img", "picture", "jpg", "png", "webp", "image_bytes", "bytes")


def recognises(source: Path) -> bool:
    """Whether it is a parquet file with pictures in it, or a folder of such files."""
    return any(True for _ in parquet_files(source))


def parquet_files(source: Path) -> Iterator[Path]:
    """All parquet files with pictures, in the order of their names."""
    files = containers_of(source)
    return (path for path in files if head(path, 4) == b"PAR1" and picture_column(_schema(path)) is not None)


def picture_column(schema: pa.Schema) -> str | None:
    """The column that holds pictures: bytes, or Hugging Face's pair of bytes and a path."""
    names = [*(name for name in PICTURE_COLUMNS if name in schema.names), *schema.names]
    return next((name for name in names if _holds_bytes(schema.field(name).type)), None)


def units(source: Path, root: Path) -> list[Unit]:
    """One part a row group."""
    return [
        Unit("parquet", root, (place_of(path, root), group))
        for path in parquet_files(source)
        for group in range(pq.read_metadata(path).num_row_groups)
    ]


def read(unit: Unit) -> Iterator[Sample | Loss]:
    """Read the pictures' headers and what the other columns say."""
    name, group = unit.part
    try:
        with pq.ParquetFile(unit.root / name) as file:
            first = _starts(unit.root / name, (unit.root / name).stat().st_mtime_ns)[group]
            column = str(picture_column(file.schema_arrow))
            wanted = [column, *(known for known in KNOWN if known in file.schema_arrow.names and known != column)]
            rows = file.read_row_group(group, columns=wanted).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        yield Loss(f"{name}, row group {group}", f"the rows cannot be read ({first_line(error)})")
        return
    for number, record in enumerate(rows, start=first):
        yield sample_of(record, record.pop(column), Sample(f"{name}:{number}", name, row=number))


def sample_of(record: dict[str, Any], cell: Any, place: Sample) -> Sample | Loss:
    """A row with a picture in one of its cells.

    Args:
        record: Its other cells.
        cell: Bytes, or a pair of bytes and a path.
        place: Where the picture lies; its name is kept if the row has none.
    """
    content = _bytes_of(cell)
    sample_id = name_of(record) or place.sample_id
    if not content:
        return Loss(sample_id, "the row has no picture's bytes")
    return measured(replace(place, sample_id=sample_id, **described(record)), content)


def read_cell(path: Path, row: int) -> bytes:
    """Bytes of the picture in one row; the pictures of the row groups that were read last are kept.

    Raises:
        ImageError: The row cannot be read.
    """
    try:
        changed = path.stat().st_mtime_ns
        starts = _starts(path, changed)
        group = max(number for number, start in enumerate(starts) if start <= row)
        content = _bytes_of(_pictures_of(path, group, changed)[row - starts[group]].as_py())
    except (OSError, pa.ArrowInvalid, IndexError, ValueError) as error:
        raise ImageError(
            f"Row {row} of '{path}' cannot be read ({first_line(error)}); build the manifest anew."
        ) from error
    if not content:
        raise ImageError(f"Row {row} of '{path}' has no picture; build the manifest anew.")
    return content


@lru_cache(maxsize=256)
def _metadata(path: Path, _changed: int) -> pq.FileMetaData:
    return pq.read_metadata(path)


@lru_cache(maxsize=256)
def _starts(path: Path, changed: int) -> list[int]:
    """Number of the first row of every row group."""
    metadata = _metadata(path, changed)
    counts = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    return [0, *accumulate(counts[:-1])]


@lru_cache(maxsize=4)
def _pictures_of(path: Path, group: int, changed: int) -> pa.ChunkedArray:
    with pq.ParquetFile(path, metadata=_metadata(path, changed)) as file:
        column = str(picture_column(file.schema_arrow))
        return file.read_row_group(group, columns=[column])[column]


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowInvalid):
        return pa.schema([])


def _bytes_of(cell: Any) -> bytes | None:
    return cell.get("bytes") if isinstance(cell, dict) else cell


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


FORMAT = Format("parquet", "parquet files with a column of pictures", recognises, units, read)
