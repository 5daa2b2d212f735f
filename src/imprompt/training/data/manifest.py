"""The manifest: one table of all samples, whatever their source, and how their pictures are read."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from imprompt.core.errors import first_line
from imprompt.core.files import atomic_write
from imprompt.core.images import decode_image
from imprompt.training.data.build import Progress, gather, with_groups_by_folder, with_splits
from imprompt.training.data.embeds import read_embed
from imprompt.training.data.quarantine import write_losses
from imprompt.training.data.sources.parquet import read_cell
from imprompt.training.data.sources.records import read_picture
from imprompt.training.data.table import Loss, content_hash, pc, read_table, with_schema
from imprompt.training.errors import DataError

ReferenceMode = Literal["self", "group", "explicit", "face"]

VALIDATION = 0.02
BAD_SAMPLES = 0.01

_MARK = b"imprompt.manifest"
_ROOT, _ABSOLUTE_ROOT, _NUM_LOST = b"imprompt.root", b"imprompt.absolute_root", b"imprompt.num_lost"


class Manifest:
    """All samples of a training run. It is sent to other processes by its path, and opens no picture before it must.

    Attributes:
        path: The parquet file.
        root: Folder that its file names are relative to.
        table: Its columns, as `training.data.table.SCHEMA` lists them.
        num_lost: Samples that the source should have had when it was built.
    """

    def __init__(self, path: Path, root: Path, table: pa.Table, num_lost: int = 0) -> None:
        self.path = path
        self.root = root
        self.table = table
        self.num_lost = num_lost

    @classmethod
    def read(cls, path: str | Path, root: str | Path | None = None) -> "Manifest":
        """Read a manifest.

        Args:
            path: What `write_manifest` wrote, or a parquet file with at least its columns `sample_id` and `source`.
            root: Where the pictures are, if they have moved without it.

        Raises:
            DataError: There is no such file, or it is no manifest.
        """
        path = Path(path).absolute()
        try:
            table = read_table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(
                f"'{path}' is no manifest ({first_line(error)}); make one with imprompt data build."
            ) from error
        metadata = table.schema.metadata or {}
        found = Path(root) if root is not None else _root_of(path, metadata)
        return cls(path, found, with_schema(table, str(path)), int(metadata.get(_NUM_LOST, b"0")))

    def __reduce__(self) -> tuple[Any, ...]:
        return _read_again, (self.path, self.root)

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all that the table holds, order included; where files lie on this machine is not part of it."""
        return content_hash(self.table)

    @cached_property
    def sizes(self) -> Int[Tensor, "samples 2"]:
        """Height and width of every picture, upright.

        Raises:
            DataError: The table does not tell them all, as one that was not built here may not.
        """
        sides = np.stack([self.table[name].to_numpy().astype(np.int64) for name in ("height", "width")], axis=1)
        unknown = np.flatnonzero((sides < 1).any(1))
        if len(unknown):
            name = self.sample_id(int(unknown[0]))
            raise DataError(f"'{self.path}' has no size of {name!r}; make the manifest with imprompt data build.")
        return torch.from_numpy(sides)

    def sample_id(self, number: int) -> str:
        """Name of a sample."""
        return self.table["sample_id"][number].as_py()

    def captions(self, number: int) -> list[str]:
        """Captions of a sample, any number of them."""
        return self.table["captions"][number].as_py() or []

    def image(self, number: int) -> Image.Image:
        """Read a picture: RGB, upright, laid on white where it was transparent.

        Raises:
            ImageError: It cannot be read; the sentence names it.
        """
        return decode_image(self.content(number), f"{self.sample_id(number)} of {self.path.name}")

    def content(self, number: int) -> bytes:
        """The bytes of a picture's file, read by their range alone.

        Raises:
            ImageError: They are not there.
        """
        source, offset, length, row = (
            self.table[name][number].as_py() for name in ("source", "offset", "length", "row")
        )
        if row >= 0:
            return read_cell(self.root / source, row)
        return read_picture(self.root / source, offset, length or None)

    def id_embed(self, number: int) -> Float[Tensor, " dim"] | None:
        """The face embedding of a sample, as it was saved; None if it has none.

        Raises:
            DataError: The file is missing, damaged, or no embedding.
        """
        name = self.table["id_embed"][number].as_py()
        return read_embed(self.root / name) if name else None

    def split(self, name: str) -> Int[Tensor, " picked"]:
        """Numbers of the samples of a split: "train", "validation", "reference", or another that the source gives."""
        return torch.from_numpy(np.flatnonzero(pc.equal(self.table["split"], name).to_numpy()))

    def numbers(self, sample_ids: Sequence[str]) -> Int[Tensor, " samples"]:
        """Numbers of samples by their names; -1 for names that are not there."""
        found = pc.index_in(pa.array(sample_ids, pa.string()), value_set=self.table["sample_id"].combine_chunks())
        return torch.from_numpy(pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64))

    def reference_ids(self, number: int, mode: ReferenceMode) -> list[int]:
        """Which pictures may be a sample's reference.

        Args:
            number: Of the sample.
            mode: "self": itself; "group": the others of its group; "explicit": those that it names, or else its face;
                "face": its face. A sample that has none of these is its own reference.
        """
        return self._candidates(number, mode) or [number]

    def group_members(self, number: int) -> np.ndarray:
        """Numbers of all samples of a sample's group in rising order, its own among them; none if it is in no group."""
        members, starts, group_of = self._groups
        group = group_of[number]
        return members[starts[group] : starts[group + 1]] if group >= 0 else members[:0]

    def _candidates(self, number: int, mode: ReferenceMode) -> list[int]:
        if mode == "group":
            return [member for member in self.group_members(number).tolist() if member != number]
        if mode == "explicit":
            starts, numbers = self._references
            return numbers[starts[number] : starts[number + 1]].tolist() or self._candidates(number, "face")
        face = int(self._faces[number]) if mode == "face" else -1
        return [face] if face >= 0 else []

    @cached_property
    def _groups(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Members of all groups behind one another, where each group starts, and the group of every sample or -1."""
        codes = self.table["group"].combine_chunks().dictionary_encode()
        named = np.array([group not in ("", None) for group in codes.dictionary.to_pylist()], bool)
        group_of = codes.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        group_of = np.where(named[group_of] if len(named) else False, group_of, -1)
        members = np.argsort(group_of, kind="stable")
        starts = np.searchsorted(group_of[members], np.arange(len(named) + 1))
        return members, starts, group_of

    @cached_property
    def _references(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each sample's references start among all of them, and their numbers."""
        lists = self.table["references"].combine_chunks()
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        numbers = self.numbers(pc.list_flatten(lists).to_pylist()).numpy()
        owners = np.repeat(np.arange(len(lengths)), lengths)[numbers >= 0]
        return np.searchsorted(owners, np.arange(len(lengths) + 1)), numbers[numbers >= 0]

    @cached_property
    def _faces(self) -> np.ndarray:
        return self.numbers(self.table["face_image"].to_pylist()).numpy()


def _read_again(path: Path, root: Path) -> Manifest:
    """A function by its name, which every way of pickling sends; some send a class's method as its code."""
    return Manifest.read(path, root)


def write_manifest(
    source: str | Path,
    output: str | Path,
    *,
    root: str | Path | None = None,
    validation: float = VALIDATION,
    group_by_folder: bool = False,
    bad_samples: float = BAD_SAMPLES,
    processes: int = 1,
    on_progress: Progress | None = None,
) -> Manifest:
    """Make a manifest of a source; the file is there once it is whole, and what was lost is listed beside it.

    Args:
        source: Folder, tar, parquet or JSON of a known format (`training.data.sources.FORMATS`).
        output: The parquet file to write.
        root: Folder that the source's file names are relative to; by default the source, or the folder it lies in.
        validation: Fraction of samples that the trainer does not train on, drawn by hash.
        group_by_folder: Whether the pictures of one folder are a group.
        bad_samples: Fraction of samples that may be lost.
        processes: How many read at a time; the manifest is the same for any number.
        on_progress: Told how many parts are done, and of how many.

    Raises:
        DataError: The source is unknown, empty, or has lost more than it may.
    """
    source, output = Path(source).absolute(), Path(output).absolute()
    base = Path(root).absolute() if root is not None else source if source.is_dir() else source.parent
    table, losses = gather(source, base, processes=processes, on_progress=on_progress)
    losses_file = write_losses(output.with_suffix(".losses.jsonl"), losses)
    _check_budget(source, len(table), losses, bad_samples, losses_file)
    table = with_splits(with_groups_by_folder(table) if group_by_folder else table, validation)
    with atomic_write(output) as path:
        pq.write_table(table.replace_schema_metadata(_metadata(output, base, len(losses))), path, compression="zstd")
    return Manifest.read(output)


def open_manifest(source: str | Path, output: str | Path, **options: Any) -> Manifest:
    """Read a manifest, or make one of a source.

    Args:
        source: A manifest, or what `write_manifest` takes.
        output: Where the manifest of a source is written.
        **options: Of `write_manifest`.
    """
    return Manifest.read(source) if is_manifest(Path(source)) else write_manifest(source, output, **options)


def is_manifest(path: Path) -> bool:
    """Whether a file is a manifest: a parquet file that `write_manifest` made, or one with all of its columns."""
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid):
        return False
    return _MARK in (schema.metadata or {}) or {"sample_id", "source", "captions"} <= set(schema.names)


def _check_budget(source: Path, kept: int, losses: list[Loss], budget: float, listed: Path | None) -> None:
    total = kept + len(losses)
    if len(losses) > budget * total:
        reason = losses[0].reason.rstrip(".")
        raise DataError(
            f"'{source}' has lost {len(losses):,} of {total:,} samples, and {budget:.1%} may be lost; the first is "
            f"{losses[0].where!r}: {reason}. All are listed in '{listed}'; mend them or raise bad_samples."
        )


def _metadata(output: Path, root: Path, num_lost: int) -> dict[bytes, bytes]:
    try:
        relative = Path(os.path.relpath(root, output.parent))
    except ValueError:  # on another drive
        relative = root
    texts = {_MARK: "1", _ROOT: relative.as_posix(), _ABSOLUTE_ROOT: root.as_posix(), _NUM_LOST: str(num_lost)}
    return {key: value.encode() for key, value in texts.items()}


def _root_of(path: Path, metadata: dict[bytes, bytes]) -> Path:
    """Where the pictures are: at the same place relative to the manifest, or else where they were."""
    relative = path.absolute().parent / metadata.get(_ROOT, b".").decode()
    absolute = Path(metadata.get(_ABSOLUTE_ROOT, b"").decode())
    return absolute if not relative.exists() and absolute.is_absolute() else relative
