"""Distances between two sets of pictures, without each of some groups: what the jackknife wants, at the cost of a few.

A kernel is computed once for each pair of pictures and summed by pairs of groups; what is left without a group are sums
of these.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprompt.evaluation.metrics.distances import CMMD_SCALE, CMMD_SIGMA, frechet_distance
from imprompt.evaluation.metrics.similarity import normalised

Groups: TypeAlias = Int[Tensor, " rows"]
OtherGroups: TypeAlias = Int[Tensor, " others"]
Kernel: TypeAlias = Callable[[Tensor], Tensor]  # of the scalar products of rows
_ROWS = 4096  # of a kernel matrix at a time


def frechet_left_out(
    first: Float[Tensor, "rows width"], second: Float[Tensor, "others width"], groups: Groups, other_groups: OtherGroups
) -> list[float]:
    """`frechet_distance` without each group.

    Args:
        first: Features of pictures.
        second: Features of references.
        groups: Number of the group of each picture, from 0; none is empty.
        other_groups: Of each reference.
    """
    return [
        frechet_distance(first[groups != number], second[other_groups != number]) for number in range(_count(groups))
    ]


def kernel_left_out(
    first: Float[Tensor, "rows width"], second: Float[Tensor, "others width"], groups: Groups, other_groups: OtherGroups
) -> list[float]:
    """`unbiased_kernel_mmd` of all, then without each group; the arguments are those of `frechet_left_out`."""
    width = first.shape[1]
    return _mmd(first, second, groups, other_groups, lambda products: (products / width + 1) ** 3, unbiased=True)


def cmmd_left_out(
    first: Float[Tensor, "rows width"], second: Float[Tensor, "others width"], groups: Groups, other_groups: OtherGroups
) -> list[float]:
    """`cmmd` of all, then without each group; the arguments are those of `frechet_left_out`."""
    first, second = normalised(first), normalised(second)
    values = _mmd(first, second, groups, other_groups, _gaussian, unbiased=False)
    return [CMMD_SCALE * value for value in values]


def _mmd(
    first: Tensor, second: Tensor, groups: Tensor, other_groups: Tensor, kernel: Kernel, *, unbiased: bool
) -> list[float]:
    """The squared MMD of all, then without each group; unbiased without the pairs of a picture with itself."""
    one, other = (first.double(), groups), (second.double(), other_groups)
    num_groups = _count(groups)
    between = _left(_sums(one, other, kernel, num_groups)) / (
        _num_left(one[1], num_groups) * _num_left(other[1], num_groups)
    )
    within = sum(_within(side, kernel, num_groups, unbiased) for side in (one, other))
    return (within - 2 * between).tolist()


def _within(side: tuple[Tensor, Tensor], kernel: Kernel, num_groups: int, unbiased: bool) -> Tensor:
    rows, groups = side
    total, num = _left(_sums(side, side, kernel, num_groups)), _num_left(groups, num_groups)
    if not unbiased:
        return total / num**2
    own = rows.new_zeros(num_groups).index_add(0, groups, kernel(rows.square().sum(1)))
    return (total - _without_each(own)) / (num * (num - 1))


def _sums(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], kernel: Kernel, num_groups: int) -> Tensor:
    """Sums of the kernel over the pairs of two groups: `[num_groups, num_groups]`."""
    (rows, groups), (columns, column_groups) = one, other
    members = torch.nn.functional.one_hot(column_groups, num_groups).double()
    sums = rows.new_zeros(num_groups, num_groups)
    for part, part_groups in zip(rows.split(_ROWS), groups.split(_ROWS), strict=True):
        sums.index_add_(0, part_groups, kernel(part @ columns.T) @ members)
    return sums


def _left(sums: Tensor) -> Tensor:
    """Sum over all pairs of groups, then over those without each."""
    without = sums.sum() - sums.sum(0) - sums.sum(1) + sums.diagonal()
    return torch.cat([sums.sum()[None], without])


def _without_each(values: Tensor) -> Tensor:
    return torch.cat([values.sum()[None], values.sum() - values])


def _num_left(groups: Tensor, num_groups: int) -> Tensor:
    return _without_each(groups.bincount(minlength=num_groups).double())


def _count(groups: Tensor) -> int:
    return int(groups.max()) + 1


def _gaussian(products: Tensor) -> Tensor:
    """Of rows of length 1."""
    return ((products - 1) / CMMD_SIGMA**2).exp()
