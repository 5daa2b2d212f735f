"""Data order and randomness as pure functions of (seed, step): a resumed run repeats nothing and loses nothing."""

import hashlib
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor


def generator_at(seed: int, *place: int | str) -> torch.Generator:
    """Generator whose numbers depend on the seed and the place alone, e.g. `generator_at(0, "noise", step)`."""
    key = "/".join(str(part) for part in (seed, *place))
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]))
    return generator


def batch_indices(step: int, batch_size: int, num_examples: int, seed: int) -> Int[Tensor, " batch"]:
    """Examples of one batch: every epoch is a fresh permutation, and batches run across its border.

    Args:
        step: Number of the batch, from 0.
        batch_size: Examples a batch.
        num_examples: Size of the data set.
        seed: Seed of the permutations.
    """
    positions = range(step * batch_size, (step + 1) * batch_size)
    pairs = (divmod(position, num_examples) for position in positions)
    return torch.stack([_permutation(seed, epoch, num_examples)[offset] for epoch, offset in pairs])


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_examples: int) -> Tensor:
    return torch.randperm(num_examples, generator=generator_at(seed, "epoch", epoch))
