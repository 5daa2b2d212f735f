"""Shards of features: a safetensors file with one tensor a feature and shape, and a JSON file that says it is whole.

    00003.safetensors    latents.0 [rows, views, 4, 64, 64], latents.1 [rows, views, 4, 48, 80], index [samples, 2]
    00003.json           fingerprint, sha256 of the above, sample ids, holes and why: written last

Samples of different aspect have latents of different shapes: samples of one shape are a group, and `index` tells each
sample's group and its row there; -1 for a hole, a sample that could not be read.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int, Int8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from imprompt.core.errors import CheckpointError, first_line
from imprompt.core.files import atomic_write, sha256_file

Storage: TypeAlias = Literal["float32", "float16", "int8"]
Columns: TypeAlias = dict[str, Tensor]
"""Features by name: most encoders make one, text encoders several."""

FLOATS = {"float32": torch.float32, "float16": torch.float16}
SCALE = "scale"
_INDEX = "index"
_MAX_CODE = 127


@dataclass(frozen=True)
class ShardRecord:
    """What the JSON beside a shard says.

    Attributes:
        fingerprint: Of encoder, settings and the manifest's rows that this shard is made of.
        sha256: Of the safetensors file.
        num_bytes: Of the safetensors file.
        sample_ids: Of every sample, holes too, in order.
        holes: Ids of samples that are missing, and why.
        groups: Shape of a row of each feature, for each group.
    """

    fingerprint: str
    sha256: str
    num_bytes: int
    sample_ids: tuple[str, ...]
    holes: dict[str, str]
    groups: tuple[dict[str, tuple[int, ...]], ...]


def shard_file(folder: Path, number: int) -> Path:
    """Where a shard's tensors are."""
    return folder / f"{number:05d}.safetensors"


def record_file(folder: Path, number: int) -> Path:
    """Where a shard's record is."""
    return folder / f"{number:05d}.json"


def write_shard(
    folder: Path,
    number: int,
    fingerprint: str,
    samples: Mapping[str, Columns | str],
    storage: Storage,
) -> ShardRecord:
    """Write a shard, its record last, so that a shard with a record is whole whatever happens meanwhile.

    Args:
        folder: The store's.
        number: Of the shard.
        fingerprint: Of what it is made of.
        samples: Of each sample id its features, every one `[views, ...]`, or why it has none.
        storage: Number format to keep them in.

    Raises:
        CheckpointError: A feature is not finite, or too large for float16.
    """
    groups, index = _grouped(samples)
    tensors: Columns = {_INDEX: index}
    for number_of_group, members in enumerate(groups):
        for name in members[0]:
            values = torch.stack([columns[name] for columns in members])
            tensors |= _stored(f"{name}.{number_of_group}", values, storage)
    record_file(folder, number).unlink(missing_ok=True)  # what it says would not hold for the new file
    path = shard_file(folder, number)
    with atomic_write(path) as temporary:
        save_file(tensors, temporary)
    record = ShardRecord(
        fingerprint=fingerprint,
        sha256=sha256_file(path),
        num_bytes=path.stat().st_size,
        sample_ids=tuple(samples),
        holes={name: value for name, value in samples.items() if isinstance(value, str)},
        groups=tuple({name: tuple(value.shape[1:]) for name, value in members[0].items()} for members in groups),
    )
    with atomic_write(record_file(folder, number)) as temporary:
        temporary.write_text(json.dumps(asdict(record), indent=1, sort_keys=True))
    return record


def read_record(folder: Path, number: int) -> ShardRecord | None:
    """A shard's record; None if there is none, or it is damaged, or the shard is missing or of another length."""
    try:
        record = _record(json.loads(record_file(folder, number).read_text()))
        return record if shard_file(folder, number).stat().st_size == record.num_bytes else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_done(folder: Path, number: int, fingerprint: str, *, rehash: bool = False) -> bool:
    """Whether a shard is there, whole, and made of what is wanted.

    Args:
        folder: The store's.
        number: Of the shard.
        fingerprint: What it should be made of.
        rehash: Read the whole file and compare its hash too, not only its length.
    """
    record = read_record(folder, number)
    if record is None or record.fingerprint != fingerprint:
        return False
    return not rehash or sha256_file(shard_file(folder, number)) == record.sha256


class ShardReader:
    """Random access to a shard. Its tensors are mapped, not read: only rows that are asked for are loaded."""

    def __init__(self, path: Path) -> None:
        """Open a shard.

        Raises:
            CheckpointError: It cannot be read.
        """
        try:
            with safe_open(path, framework="pt") as file:
                self._tensors: Columns = {name: file.get_tensor(name) for name in file.keys()}
            self._index = self._tensors.pop(_INDEX)
        except (OSError, SafetensorError, KeyError) as error:
            raise CheckpointError(
                f"the features in '{path}' cannot be read ({first_line(error)}); delete the file and compute them again"
            ) from error
        names = (name.rpartition(".") for name in self._tensors if not name.endswith(f".{SCALE}"))
        self.columns = tuple(sorted({name for name, _, group in names if group == "0"}))

    def shapes(self, places: Int[Tensor, " rows"]) -> list[dict[str, tuple[int, ...]]]:
        """Shape of each feature of samples."""
        groups = self._index[places, 0].tolist()
        return [{name: tuple(self._tensors[f"{name}.{group}"].shape[2:]) for name in self.columns} for group in groups]

    def read_into(self, out: Columns, where: list[int], places: list[int], views: list[int]) -> None:
        """Write features of samples into rows of larger tensors, in one pass over what lies on disk.

        Args:
            out: float32 `[rows, ...]` of each feature.
            where: Which rows to write.
            places: Numbers of the samples within the shard; holes have no features and must not be asked for.
            views: Which view of each.
        """
        for row, (group, number), view in zip(where, self._index[places].tolist(), views, strict=True):
            for column in self.columns:
                name = f"{column}.{group}"
                stored, scale = self._tensors[name][number, view], self._tensors.get(f"{name}.{SCALE}")
                if scale is None:
                    out[column][row].copy_(stored)
                else:
                    torch.mul(stored, scale[number, view, ..., None].float(), out=out[column][row])


def quantise(values: Float[Tensor, "*tokens width"]) -> tuple[Int8[Tensor, "*tokens width"], Float[Tensor, "*tokens"]]:
    """Round each token to 127 steps of its largest number: the error is at most half a step, 0.4 % of that number.

    Returns:
        Codes, and the size of a token's step in float16, rounded up so that the largest number still fits.
    """
    wanted = values.float().abs().amax(dim=-1) / _MAX_CODE
    scale = wanted.half()
    scale = torch.where(scale.float() < wanted, torch.nextafter(scale, torch.full_like(scale, math.inf)), scale)
    steps = values.float() / scale.float().clamp(min=torch.finfo(torch.float16).smallest_normal / 2**10)[..., None]
    return steps.round().to(torch.int8), scale


def _grouped(samples: Mapping[str, Columns | str]) -> tuple[list[list[Columns]], Int[Tensor, "samples 2"]]:
    """Sort samples into groups of one shape; the index tells where each went."""
    groups: dict[tuple[Any, ...], list[Columns]] = {}
    index = torch.full((len(samples), 2), -1, dtype=torch.int32)
    for place, columns in enumerate(samples.values()):
        if isinstance(columns, str):
            continue
        shape = tuple((name, tuple(value.shape)) for name, value in columns.items())
        members = groups.setdefault(shape, [])
        index[place] = torch.tensor((list(groups).index(shape), len(members)))
        members.append(columns)
    return list(groups.values()), index


def _stored(name: str, values: Tensor, storage: Storage) -> Columns:
    if storage == "int8" and values.ndim >= 4:  # samples, views, tokens, width: only sequences are long enough to pay
        codes, scale = quantise(values)
        _check_finite(name, scale)
        return {name: codes, f"{name}.{SCALE}": scale}
    stored = values.to(FLOATS.get(storage, torch.float16)).contiguous()
    _check_finite(name, stored)
    return {name: stored}


def _check_finite(name: str, values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise CheckpointError(
            f"the feature '{name.partition('.')[0]}' has values that are not finite in {values.dtype}; compute it in "
            "float32 and keep it in a wider format"
        )


def _record(content: Mapping[str, Any]) -> ShardRecord:
    groups: Sequence[Mapping[str, Sequence[int]]] = content["groups"]
    return ShardRecord(
        fingerprint=str(content["fingerprint"]),
        sha256=str(content["sha256"]),
        num_bytes=int(content["num_bytes"]),
        sample_ids=tuple(content["sample_ids"]),
        holes=dict(content["holes"]),
        groups=tuple({name: tuple(shape) for name, shape in group.items()} for group in groups),
    )
