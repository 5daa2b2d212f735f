"""Features of a data set, computed once: what is done is kept, what is missing is computed, whoever was killed when."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from imprompt.core.errors import ImpromptError
from imprompt.training.data.manifest import Manifest
from imprompt.training.features.engines import EngineName, in_processes, in_this_process, on_ray
from imprompt.training.features.jobs import FeatureJob, lost
from imprompt.training.features.work import (
    QUARANTINE,
    ComputeOptions,
    Work,
    adopt_shards,
    begin,
    bounds,
    missing_shards,
    valid_record,
)

OnProgress = Callable[[int, int], None]
"""Told how many samples are done, and of how many."""


@dataclass(frozen=True)
class Computed:
    """What a call of `compute_features` has done.

    Attributes:
        folder: Of the store.
        num_computed: Shards that were computed now.
        num_adopted: Shards that another store had.
        num_shards: Shards of the store.
        num_missing: Those that others have still to compute.
        holes: Samples without features, of the shards that are done, and why.
    """

    folder: Path
    num_computed: int
    num_adopted: int
    num_shards: int
    num_missing: int
    holes: dict[str, str]


def compute_features(
    manifest: Manifest,
    job: FeatureJob,
    root: Path,
    *,
    split: tuple[int, int] = (0, 1),
    engine: EngineName = "local",
    processes: int = 1,
    options: ComputeOptions | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> Computed:
    """Compute what is missing of a store.

    Args:
        manifest: The samples.
        job: What is computed of them.
        root: Folder of all features.
        split: Number of this process or machine, from 0, and how many there are; each takes every n-th shard.
        engine: "local", or "ray": shards as tasks of a Ray cluster.
        processes: Of this machine, with "local".
        options: How.
        on_progress: Told how far it is.

    Raises:
        DataError: More samples cannot be read than may be.
        ImpromptError: The split is none, or Ray is not installed.
    """
    if not 0 <= split[0] < split[1]:
        raise ImpromptError(f"a split is a number from 0 and how many there are; got {split[0]} of {split[1]}")
    work = begin(manifest, job, root, options or ComputeOptions())
    if work.options.retry:
        shutil.rmtree(work.folder / QUARANTINE, ignore_errors=True)
    own = range(split[0], len(work.spec.shards), split[1])
    wanted = missing_shards(work, own)
    adopted = adopt_shards(work, wanted)
    missing = missing_shards(work, wanted) if adopted else wanted
    compute = on_ray if engine == "ray" else in_this_process if processes == 1 else in_processes(processes)
    compute(work, missing, _counter(work, own, missing, on_progress))
    return _told(work, len(missing), adopted)


def _counter(work: Work, own: range, missing: list[int], on_progress: OnProgress) -> Callable[[int], None]:
    """Count samples from those that are done already."""
    sizes = {number: stop - start for number in own for start, stop in [bounds(work.spec, number)]}
    total = sum(sizes.values())
    done = total - sum(sizes[number] for number in missing)
    on_progress(done, total)

    def count(more: int) -> None:
        nonlocal done
        done += more
        on_progress(done, total)

    return count


def _told(work: Work, num_computed: int, num_adopted: int) -> Computed:
    records = [valid_record(work, number) for number in range(len(work.spec.shards))]
    return Computed(
        folder=work.folder,
        num_computed=num_computed,
        num_adopted=num_adopted,
        num_shards=len(records),
        num_missing=sum(record is None for record in records),
        holes={name: why for record in records if record is not None for name, why in lost(record.holes).items()},
    )
