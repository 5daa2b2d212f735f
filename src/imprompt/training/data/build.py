"""From a source to the table of a manifest: read in parts by any number of processes, references found, split drawn."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import starmap
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from imprompt.core.processes import process_pool
from imprompt.training.data.sources import by_name, recognise
from imprompt.training.data.sources.records import Unit
from imprompt.training.data.table import SCHEMA, Loss, Sample, pc, table_of
from imprompt.training.errors import DataError

Progress = Callable[[int, int], None]
"""Told how many parts are done, and of how many."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def gather(source: Path, root: Path, *, processes: int, on_progress: Progress | None) -> tuple[pa.Table, list[Loss]]:
    """Read all samples of a source, and the pictures that they name as references.

    Args:
        source: File or folder of a known format.
        root: Folder that all names in the manifest are relative to.
        processes: How many read at a time; the result is the same for any number.
        on_progress: Told how far it is.

    Returns:
        The table, and what the source should have and has not.

    Raises:
        DataError: The source is unknown or empty.
    """
    known = recognise(source)
    table, losses = _read_all(known.units(source, root), processes, on_progress)
    if not len(table) and not losses:
        raise DataError(f"'{source}' is {known.description}, but has no pictures; check the path.")
    missing = _named_but_missing(table)
    if missing:
        more, more_losses = _read_all(known.named(root, missing), processes, None)
        table, losses = pa.concat_tables([table, more]), losses + more_losses
    _refuse_equal_names(table)
    table, unresolved = _without_unknown_names(table)
    told = {loss.where for loss in losses}
    return table, losses + [loss for loss in unresolved if loss.where not in told]


def parallel(
    function: Callable[[_Item], _Result], items: Iterable[_Item], processes: int, on_progress: Progress | None
) -> Iterator[_Result]:
    """Apply a picklable function to all items, in their order, in this process or several.

    Args:
        function: At the top level of a module.
        items: What it takes.
        processes: 1 works in this process.
        on_progress: Told how far it is.

    Raises:
        ImpromptError: One of several processes was killed.
    """
    work = list(items)
    processes, apply = min(processes, len(work)), map
    with ExitStack() as stack:
        if processes > 1:
            apply = stack.enter_context(process_pool(processes, preload=[__name__])).map
        for done, result in enumerate(apply(function, work), start=1):
            if on_progress is not None:
                on_progress(done, len(work))
            yield result


def _read_all(units: list[Unit], processes: int, on_progress: Progress | None) -> tuple[pa.Table, list[Loss]]:
    parts = list(parallel(read_unit, units, processes, on_progress))
    tables = [SCHEMA.empty_table(), *(table for table, _ in parts)]
    return pa.concat_tables(tables), [loss for _, losses in parts for loss in losses]


def read_unit(unit: Unit) -> tuple[pa.Table, list[Loss]]:
    """Read one part of a source."""
    found = list(by_name(unit.format).read(unit))
    samples = table_of(item for item in found if isinstance(item, Sample))
    return samples, [item for item in found if isinstance(item, Loss)]


def _names(table: pa.Table) -> pa.Array:
    """All names of references and faces, each once, in the order of their first use."""
    references = table["references"].combine_chunks()
    faces = table["face_image"].combine_chunks()
    named = pa.chunked_array([pc.list_flatten(references), faces.filter(pc.not_equal(faces, ""))], pa.string())
    return pc.unique(named)


def _named_but_missing(table: pa.Table) -> list[str]:
    names = _names(table)
    return names.filter(pc.invert(pc.is_in(names, value_set=table["sample_id"].combine_chunks()))).to_pylist()


def _refuse_equal_names(table: pa.Table) -> None:
    counts = table["sample_id"].combine_chunks().value_counts()
    values, times = counts.field("values"), counts.field("counts")
    if len(values) < len(table):
        name = values[int(pc.index(pc.greater(times, 1), True).as_py())]
        raise DataError(f"Two samples are called {str(name)!r}; give every sample a name of its own.")


def _without_unknown_names(table: pa.Table) -> tuple[pa.Table, list[Loss]]:
    """Take away references that are not there, and tell them."""
    unknown = set(_named_but_missing(table))
    if not unknown:
        return table, []
    references = [[name for name in names if name not in unknown] for names in table["references"].to_pylist()]
    faces = ["" if face in unknown else face for face in table["face_image"].to_pylist()]
    for name, values in (("references", references), ("face_image", faces)):
        index = SCHEMA.get_field_index(name)
        table = table.set_column(index, SCHEMA.field(index), pa.array(values, SCHEMA.field(index).type))
    return table, [Loss(name, "named as a reference, and not there") for name in sorted(unknown)]


def with_groups_by_folder(table: pa.Table) -> pa.Table:
    """Put pictures into the group that their folder makes, where they are in none."""
    folders = [name.rpartition("/")[0] for name in table["sample_id"].to_pylist()]
    groups = list(starmap(_first, zip(table["group"].to_pylist(), folders, strict=True)))
    index = SCHEMA.get_field_index("group")
    return table.set_column(index, SCHEMA.field(index), pa.array(groups, pa.string()))


def _first(group: str, folder: str) -> str:
    return group or folder


def with_splits(table: pa.Table, validation: float) -> pa.Table:
    """Draw the validation samples by hash, so that a sample stays where it is when others come and go.

    What the source tells stands; if it tells of validation samples, none are drawn. Pictures of one group, and pictures
    with the same bytes, go to the same side.

    Args:
        table: Samples with `split` where the source tells it.
        validation: Fraction to draw; at least one sample is drawn unless it is 0.
    """
    splits = np.array(table["split"].to_pylist(), dtype=object)
    free = splits == ""
    splits[free] = "train"
    if validation > 0 and not (splits == "validation").any():
        chosen = _smallest(_split_keys(table.filter(pa.array(free))), validation)
        splits[np.flatnonzero(free)[chosen]] = "validation"
    index = SCHEMA.get_field_index("split")
    return table.set_column(index, SCHEMA.field(index), pa.array(splits.tolist(), pa.string()))


def _split_keys(table: pa.Table) -> list[str]:
    columns: list[list[Any]] = [table[name].to_pylist() for name in ("group", "sha256", "sample_id")]
    return [group or sha256 or sample_id for group, sha256, sample_id in zip(*columns, strict=True)]


def _smallest(keys: list[str], fraction: float) -> np.ndarray:
    """Which keys hash below the fraction; the smallest alone if none does, and nothing if all keys are one."""
    places = {key: int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64 for key in keys}
    if len(places) < 2:
        return np.zeros(len(keys), bool)
    border = max(fraction, np.nextafter(min(places.values()), 1.0))
    return np.array([places[key] < border for key in keys], bool)
