"""Which shards are to be computed: the plan of a store, on disk before its first shard, and what of it is missing."""

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imprompt.core.files import atomic_write
from imprompt.training.data.manifest import Manifest
from imprompt.training.features.jobs import SHARD_SIZE, FeatureJob, lost, plan_store
from imprompt.training.features.shards import ShardRecord, is_done, read_record, record_file, shard_file
from imprompt.training.features.store import NULL, STORE, FeatureSpec, feature_folder, read_spec, write_spec

logger = logging.getLogger(__name__)

QUARANTINE = "quarantine"


@dataclass(frozen=True)
class ComputeOptions:
    """How features are computed; nothing here is part of their fingerprint.

    Attributes:
        batch_size: Pictures that the encoder takes at a time.
        num_threads: That read and prepare pictures meanwhile.
        device: Where to encode; "auto" is the accelerator if there is one.
        bad_samples: Fraction of samples that may be unreadable.
        verify: Hash shards that are there, and compute those again that are not what they were.
        retry: Compute shards with holes again, as after their pictures have been mended.
        shard_size: Samples a shard; a store that has been begun keeps its own.
    """

    batch_size: int = 32
    num_threads: int = 4
    device: str = "auto"
    bad_samples: float = 0.01
    verify: bool = False
    retry: bool = False
    shard_size: int = SHARD_SIZE


@dataclass(frozen=True)
class Work:
    """All that a process needs to compute shards; it can be sent to any that sees the same files."""

    manifest: Manifest
    job: FeatureJob
    folder: Path
    spec: FeatureSpec
    options: ComputeOptions


def begin(manifest: Manifest, job: FeatureJob, root: Path, options: ComputeOptions) -> Work:
    """Plan a store, and describe it in its folder unless somebody has before.

    Returns:
        The whole work, whether or not some of it is done already.
    """
    spec = plan_store(manifest, job, options.shard_size)
    folder = feature_folder(root, job.kind, spec.fingerprint)
    begun = read_spec(folder) if (folder / STORE).is_file() else None
    if begun is not None and begun.shard_size != spec.shard_size:
        spec = plan_store(manifest, job, begun.shard_size)
    if begun != spec:
        write_spec(folder, spec)
    return Work(manifest, job, folder, spec, options)


def bounds(spec: FeatureSpec, shard: int) -> tuple[int, int]:
    """Number of a shard's first sample, and of the first behind it."""
    return shard * spec.shard_size, min((shard + 1) * spec.shard_size, spec.num_samples)


def missing_shards(work: Work, numbers: Sequence[int]) -> list[int]:
    """Which of some shards are not there, not whole, or made of something else."""
    missing = [number for number in numbers if not _is_done(work, number)]
    logger.info("%d of %d shards of %s are to be computed", len(missing), len(numbers), work.spec.kind)
    return missing


def valid_record(work: Work, number: int) -> ShardRecord | None:
    """The record of a shard that is done; None if it is not."""
    record = read_record(work.folder, number)
    return record if record is not None and record.fingerprint == work.spec.shards[number] else None


def adopt_shards(work: Work, numbers: Sequence[int]) -> int:
    """Take shards from other stores of the kind that were made of the same rows in the same way.

    A manifest that has grown gives a store of its own, and most of its shards are those of the one before.

    Returns:
        How many there were.
    """
    known = _shards_beside(work.folder)
    found = [(number, known[name]) for number in numbers if (name := work.spec.shards[number]) in known]
    for number, (folder, other) in found:
        if (folder / NULL).is_file() and not (work.folder / NULL).is_file():
            _copy(folder / NULL, work.folder / NULL)
        _copy(shard_file(folder, other), shard_file(work.folder, number))
        _copy(record_file(folder, other), record_file(work.folder, number))
    return len(found)


def _shards_beside(folder: Path) -> dict[str, tuple[Path, int]]:
    """Every shard of the stores beside one that is done, by its fingerprint."""
    known: dict[str, tuple[Path, int]] = {}
    for path in sorted(folder.parent.glob(f"*/{STORE}")):
        if path.parent == folder:
            continue
        for number, name in enumerate(read_spec(path.parent).shards):
            if is_done(path.parent, number, name):
                known[name] = (path.parent, number)
    return known


def _copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the disk knows only one."""
    with atomic_write(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def _is_done(work: Work, number: int) -> bool:
    if not is_done(work.folder, number, work.spec.shards[number], rehash=work.options.verify):
        return False
    record = valid_record(work, number)
    return record is not None and not (work.options.retry and lost(record.holes))
