"""Who computes shards: this process, several of this machine, or a Ray cluster. The result is the same bytes."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from imprompt.core.devices import chosen_device
from imprompt.core.processes import leave_with_maker
from imprompt.core.ray import join_cluster, run_tasks
from imprompt.training.data.manifest import Manifest
from imprompt.training.features.encode import OnSamples, encode_shards
from imprompt.training.features.jobs import Encoder, FeatureJob
from imprompt.training.features.work import Work, bounds

EngineName: TypeAlias = Literal["local", "ray"]
Engine: TypeAlias = Callable[[Work, Sequence[int], OnSamples], None]

_JOBS = tuple(f"imprompt.training.features.{name}" for name in ("latents", "pictures"))
_place: int | None = None  # of this process among those of its pool, which take turns at accelerators


def in_this_process(work: Work, numbers: Sequence[int], on_samples: OnSamples) -> None:
    """Compute shards here."""
    if numbers:
        encode_shards(work, _encoder(work), numbers, on_samples)


def in_processes(num_processes: int) -> Engine:
    """Compute shards in several processes of this machine, which take them as they get free."""

    def engine(work: Work, numbers: Sequence[int], on_samples: OnSamples) -> None:
        context = _context()
        places, stop = context.Queue(), context.Event()
        for place in range(num_processes):
            places.put(place)
        initial = (places, stop, max(1, torch.get_num_threads() // num_processes))
        with ProcessPoolExecutor(num_processes, context, initializer=_enter, initargs=initial) as pool:
            pending = {pool.submit(compute_shard, work, number) for number in numbers}
            try:
                while pending:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    on_samples(sum(future.result() for future in done))
            except BaseException:
                stop.set()  # a shard at hand is dropped: a file is whole or not there
                pool.shutdown(cancel_futures=True)
                raise

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
    return job.load(Manifest.read(manifest, root), chosen_device(device, place=_place))


def _context() -> Any:
    """Processes that begin without an accelerator in use, and where the system can, with modules loaded."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *_JOBS])
    return context


def _enter(places: Any, stop: Any, num_threads: int) -> None:
    """Prepare a process of a pool."""
    global _place
    _place = places.get()
    torch.set_num_threads(num_threads)
    leave_with_maker(stop)
