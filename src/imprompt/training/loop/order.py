"""Data order and randomness as pure functions of (seed, step): a resumed run repeats nothing and loses nothing."""

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from imprompt.core.errors import ImpromptError

NUM_ROUNDS = 10
"""Rounds of the keyed permutation; fewer than eight can be told from chance where there are only a few samples."""

Numbers = NDArray[Any]


def generator_at(seed: int, *place: int | str) -> torch.Generator:
    """Generator whose numbers depend on the seed and the place alone, e.g. `generator_at(0, "noise", step)`."""
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(_digest(seed, *place)[:8]))
    return generator


class BatchOrder:
    """Which samples each step takes: pure, and without a state that grows or has to be saved.

    Every bucket is an endless row of permutations of its samples, each sample once in every one, cut into batches that
    run across their borders. An epoch holds as many batches of a bucket as its samples fill, in a shuffled order of
    buckets.
    """

    def __init__(self, bucket_of: Int[Tensor, " samples"] | int, batch_size: int, seed: int) -> None:
        """Sort the samples by bucket.

        Args:
            bucket_of: Bucket of each sample, or the number of samples where all are alike.
            batch_size: Samples a step, over all processes.
            seed: Decides the order.

        Raises:
            ImpromptError: There are no samples.
        """
        buckets = torch.zeros(bucket_of, dtype=torch.long) if isinstance(bucket_of, int) else bucket_of
        if not len(buckets):
            raise ImpromptError("there are no samples to train on; expected at least one")
        self.batch_size = batch_size
        self.seed = seed
        self._members: Numbers = torch.argsort(buckets, stable=True).numpy()
        self._sizes: Numbers = torch.bincount(buckets).numpy()
        self._starts: Numbers = np.cumsum(self._sizes) - self._sizes

    def at(self, step: int) -> tuple[int, Int[Tensor, " batch"]]:
        """Bucket of a step, from 0, and the numbers of its samples."""
        epoch = self._epoch_of(step)
        before, until = self._batches_before(epoch), self._batches_before(epoch + 1)
        buckets = _buckets_of_epoch(self.seed, epoch, tuple((until - before).tolist()))
        place = step - int(before.sum())
        bucket = int(buckets[place])
        batch = int(before[bucket]) + int((buckets[:place] == bucket).sum())
        return bucket, torch.from_numpy(self._batch(bucket, batch))

    def _batches_before(self, epoch: int) -> Numbers:
        """Whole batches that each bucket's first `epoch` permutations fill."""
        return epoch * self._sizes // self.batch_size

    def _epoch_of(self, step: int) -> int:
        epoch = step * self.batch_size // len(self._members)  # no later than the epoch sought
        while self._batches_before(epoch + 1).sum() <= step:
            epoch += 1
        return epoch

    def _batch(self, bucket: int, batch: int) -> Numbers:
        size = int(self._sizes[bucket])
        positions = np.arange(batch * self.batch_size, (batch + 1) * self.batch_size)
        epochs, offsets = np.divmod(positions, size)
        places = [
            _permute(offsets[epochs == epoch], size, _keys(self.seed, bucket, int(epoch)))
            for epoch in np.unique(epochs)
        ]
        return self._members[self._starts[bucket] + np.concatenate(places)]


def _digest(*place: int | str) -> bytes:
    return hashlib.sha256("/".join(str(part) for part in place).encode()).digest()


@lru_cache(maxsize=2)
def _buckets_of_epoch(seed: int, epoch: int, num_batches: tuple[int, ...]) -> Numbers:
    """Bucket of every batch of an epoch."""
    buckets = torch.arange(len(num_batches)).repeat_interleave(torch.tensor(num_batches))
    return buckets[torch.randperm(len(buckets), generator=generator_at(seed, "buckets", epoch))].numpy()


def _keys(seed: int, bucket: int, epoch: int) -> Numbers:
    digests = b"".join(_digest(seed, "epoch", bucket, epoch, number) for number in range(NUM_ROUNDS))
    return np.frombuffer(digests, np.uint64).reshape(NUM_ROUNDS, -1)[:, 0]


def _permute(positions: Numbers, size: int, keys: Numbers) -> Numbers:
    """Places in a random order of `size` things, computed each for itself: a Feistel network whose cycles are walked.

    Args:
        positions: Numbers below `size`.
        size: Length of the order.
        keys: uint64 [rounds].
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    values = positions.astype(np.uint64)
    walking = np.ones(len(values), dtype=bool)
    while walking.any():
        values[walking] = _feistel(values[walking], half_bits, keys)
        walking = values >= size
    return values.astype(np.int64)


def _feistel(values: Numbers, half_bits: int, keys: Numbers) -> Numbers:
    """A one-to-one map of the numbers below `4 ** half_bits`."""
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
    return left << shift | right
