"""Folders that `save_to_disk` of Hugging Face's `datasets` wrote: its tables are files of Arrow's stream format.

They are not packed, so that a picture in a cell is a range of bytes of the file, and is read as such ever after.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from imprompt.core.errors import first_line
from imprompt.training.data.sources.parquet import picture_column, sample_of
from imprompt.training.data.sources.records import KNOWN, SPLITS, Format, Unit, parse_json, place_of
from imprompt.training.data.table import Loss, Sample
from imprompt.training.errors import DataError

STATE, SPLIT_LIST = "state.json", "dataset_dict.json"


def recognises(source: Path) -> bool:
    """Whether it is the folder of a data set, or of one with splits."""
    return bool(_datasets(source)) if source.is_dir() else False


def _datasets(source: Path) -> list[tuple[Path, str]]:
    """Folders of the data sets, and the name of each one's split."""
    splits = _json_of(source / SPLIT_LIST).get("splits", [])
    folders = [(source / str(split), str(split)) for split in splits] if isinstance(splits, list) else []
    return [(folder, split) for folder, split in folders or [(source, "")] if _json_of(folder / STATE)]


def _json_of(path: Path) -> dict[str, Any]:
    content = parse_json(path.read_bytes()) if path.is_file() else None
    return content if isinstance(content, dict) else {}


def units(source: Path, root: Path) -> list[Unit]:
    """One part a file of a table."""
    parts: list[Unit] = []
    for folder, split in _datasets(source):
        for file in _files_of(folder):
            parts.append(Unit("arrow", root, (place_of(folder / file, root), SPLITS.get(split, split))))
    return parts


def _files_of(folder: Path) -> list[str]:
    """Names of a data set's files, which all lie in its folder.

    Raises:
        DataError: Its list of them is damaged.
    """
    entries = _json_of(folder / STATE).get("_data_files")
    names = [entry.get("filename") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    known = [Path(name).name for name in names if isinstance(name, str)]
    if not known or len(known) < len(entries or ()):
        raise DataError(f"'{folder / STATE}' does not list the data set's files; write it again with save_to_disk.")
    return known


def read(unit: Unit) -> Iterator[Sample | Loss]:
    """Read the pictures' headers and what the other columns say."""
    name, split = unit.part
    try:
        with pa.memory_map(str(unit.root / name)) as file:
            begin, size = file.read_buffer(1).address, file.size()
            file.seek(0)
            first = 0
            for batch in pa.ipc.open_stream(file):
                yield from _samples(batch, Sample("", name, split=split), first, (begin, begin + size))
                first += batch.num_rows
    except (OSError, pa.ArrowInvalid, EOFError) as error:
        yield Loss(name, f"the table cannot be read ({first_line(error)})")


def _samples(batch: pa.RecordBatch, place: Sample, first: int, mapped: tuple[int, int]) -> Iterator[Sample | Loss]:
    """Samples of a piece of a table.

    Args:
        batch: The piece.
        place: Its file and split.
        first: Number of its first row.
        mapped: First and last address of the file in memory.
    """
    column = picture_column(batch.schema)
    if column is None:
        yield Loss(place.source, "the table has no column of pictures")
        return
    pictures, starts = _addresses(batch.column(column))
    known = [name for name in KNOWN if name in batch.schema.names and name != column]
    for number, record in enumerate(batch.select(known).to_pylist()):
        content = pictures[number].as_py()
        offset = int(starts[number]) - mapped[0]
        label = f"{place.source}:{first + number}"
        if content is None or not 0 <= offset <= mapped[1] - mapped[0] - len(content):
            yield Loss(label, "the row has no picture's bytes, or they are packed")
            continue
        record["split"] = record.get("split") or place.split
        yield sample_of(record, content, Sample(label, place.source, offset=offset, length=len(content)))


def _addresses(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The bytes of all cells, and where in memory each begins."""
    cells = column.field("bytes") if pa.types.is_struct(column.type) else column
    kind = np.int64 if pa.types.is_large_binary(cells.type) else np.int32
    _, offsets, content = cells.buffers()
    starts = np.frombuffer(offsets, kind)[cells.offset : cells.offset + len(cells)].astype(np.int64)
    return cells, starts + (content.address if content is not None else 0)


FORMAT = Format("arrow", "a folder that Hugging Face's save_to_disk wrote", recognises, units, read)
