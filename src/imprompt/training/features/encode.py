"""From one shard of a manifest to one shard of features: a pure function, whoever calls it and however often."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice
from typing import Any, TypeAlias

import torch

from imprompt.core.errors import ImageError
from imprompt.training.data.quarantine import Quarantine
from imprompt.training.errors import DataError
from imprompt.training.features.jobs import Encoder, NotWanted, lost
from imprompt.training.features.shards import Columns, write_shard
from imprompt.training.features.store import NULL, write_null
from imprompt.training.features.work import QUARANTINE, Work, bounds

OnSamples: TypeAlias = Callable[[int], None]
"""Told how many more samples are done."""


def encode_shards(work: Work, encoder: Encoder, numbers: Sequence[int], on_samples: OnSamples) -> None:
    """Compute some shards, one after the other, reading pictures ahead.

    Raises:
        DataError: More samples cannot be read than may be.
    """
    if not (work.folder / NULL).is_file() and (null := encoder.null()):
        write_null(work.folder, null)
    per_batch = max(1, work.options.batch_size // work.spec.views)
    stream = _read_ahead(encoder, _in_order(work, encoder, numbers), 2 * per_batch, work.options.num_threads)
    for shard, parts in groupby(stream, key=lambda part: part[0]):
        features = _encode(encoder, ((number, prepared) for _, number, prepared in parts), per_batch, on_samples)
        named = {work.manifest.sample_id(number): features[number] for number in range(*bounds(work.spec, shard))}
        _report(work, named)
        write_shard(work.folder, shard, work.spec.shards[shard], named, work.spec.dtype)


def _report(work: Work, named: dict[str, Columns | str]) -> None:
    """Put samples without features on the list of those that are lost."""
    quarantine = Quarantine(work.folder / QUARANTINE, work.options.bad_samples, len(work.manifest))
    holes = {name: reason for name, reason in named.items() if isinstance(reason, str)}
    for name, reason in lost(holes).items():
        quarantine.report(name, reason)


def _in_order(work: Work, encoder: Encoder, shards: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Shard and number of every sample, those of one shape beside each other."""
    for shard in shards:
        numbers = range(*bounds(work.spec, shard))
        shapes = {number: encoder.shape_of(number) for number in numbers}
        order = list(dict.fromkeys(shapes.values()))
        yield from ((shard, number) for number in sorted(numbers, key=lambda number: order.index(shapes[number])))


def _read_ahead(
    encoder: Encoder, samples: Iterator[tuple[int, int]], ahead: int, num_threads: int
) -> Iterator[tuple[int, int, Any]]:
    """Prepare samples in threads, so many ahead, and give them in order."""
    waiting: deque[tuple[int, int, Future[Any]]] = deque()
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="features")
    try:
        for shard, number in samples:
            waiting.append((shard, number, pool.submit(_prepare, encoder, number)))
            if len(waiting) > ahead:
                yield _next(waiting)
        while waiting:
            yield _next(waiting)
    finally:
        pool.shutdown(cancel_futures=True)


def _next(waiting: deque[tuple[int, int, Future[Any]]]) -> tuple[int, int, Any]:
    shard, number, prepared = waiting.popleft()
    return shard, number, prepared.result()


def _prepare(encoder: Encoder, number: int) -> tuple[Any, Any] | str:
    """Shape and content of a sample, or why it has none."""
    try:
        return encoder.shape_of(number), encoder.prepare(number)
    except (ImageError, DataError, NotWanted) as error:
        return str(error)


@torch.no_grad()
def _encode(
    encoder: Encoder, samples: Iterator[tuple[int, Any]], per_batch: int, on_samples: OnSamples
) -> dict[int, Columns | str]:
    """Features of the samples of a shard, or why one has none."""
    found: dict[int, Columns | str] = {}
    for shape, members in groupby(samples, key=lambda sample: None if isinstance(sample[1], str) else sample[1][0]):
        while batch := list(islice(members, per_batch)):
            if shape is None:
                found |= dict(batch)
            else:
                columns = encoder.encode([prepared for _, (_, prepared) in batch])
                found |= _rows([number for number, _ in batch], {name: value.cpu() for name, value in columns.items()})
            on_samples(len(batch))
    return found


def _rows(numbers: Sequence[int], columns: Columns) -> dict[int, Columns]:
    """Columns as a dictionary a sample."""
    return {number: {name: value[row] for name, value in columns.items()} for row, number in enumerate(numbers)}
