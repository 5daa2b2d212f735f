"""Who computes shards: this process, several of this machine, or a Ray cluster. The result is the same bytes."""

from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from imprompt.core.devices import chosen_device
from imprompt.core.processes import place_in_pool, process_pool
from imprompt.core.ray import join_cluster, run_tasks
from imprompt.training.data.manifest import Manifest
from imprompt.training.features.encode import OnSamples, encode_shards
from imprompt.training.features.jobs import Encoder, FeatureJob
from imprompt.training.features.work import Work, bounds

EngineName: TypeAlias = Literal["local", "ray"]
Engine: TypeAlias = Callable[[Work, Sequence[int], OnSamples], None]

_JOBS = tuple(f"imprompt.training.features.{name}" for name in ("latents", "pictures"))


def in_this_process(work: Work, numbers: Sequence[int], on_samples: OnSamples) -> None:
    """Compute shards here."""
    if numbers:
        encode_shards(work, _encoder(work), numbers, on_samples)


def in_processes(num_processes: int) -> Engine:
    """Compute shards in several processes of this machine, which take turns at its accelerators."""

    def engine(work: Work, numbers: Sequence[int], on_samples: OnSamples) -> None:
        num_threads = max(1, torch.get_num_threads() // num_processes)
        with process_pool(num_processes, num_threads=num_threads, preload=_JOBS) as pool:
            for future in as_completed([pool.submit(compute_shard, work, number) for number in numbers]):
                on_samples(future.result())

    return engine


def on_ray(work: Work, numbers: Sequence[int], on_samples: OnSamples) -> None:
    """Compute shards as tasks of a Ray cluster: the one that is running or that RAY_ADDRESS names, else one made here.

    All machines must see the manifest, its pictures, the encoders and the store under the same paths. A shard whose
    machine is lost is computed again elsewhere.

    Raises:
        ImpromptError: Ray is not installed.
    """
    if numbers:
        accelerated = work.options.device != "cpu"
        run_tasks(join_cluster(), compute_shard, work, numbers, on_samples, accelerated=accelerated)


def compute_shard(work: Work, number: int) -> int:
    """Compute one shard, with an encoder that this process keeps for the next.

    Returns:
        How many samples it has.
    """
    encode_shards(work, _encoder(work), [number], lambda _: None)
    start, stop = bounds(work.spec, number)
    return stop - start


def _encoder(work: Work) -> Encoder:
    """The encoder of a job, loaded once in a process."""
    return _load(work.job, work.manifest.path, work.manifest.root, work.options.device)


@lru_cache(maxsize=1)
def _load(job: FeatureJob, manifest: Path, root: Path, device: str) -> Encoder:
    return job.load(Manifest.read(manifest, root), chosen_device(device, place=place_in_pool()))
