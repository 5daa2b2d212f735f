"""Distances between two sets of pictures: FID, KID and CMMD, on whichever network's features.

All depend on the number of pictures and on the resize; a value is comparable to another of the same number, network and
preprocessing alone. FID of few pictures is far too high: its bias is of the order of width / pictures.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from imprompt.evaluation.errors import EvaluationError
from imprompt.evaluation.metrics.similarity import normalised

CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
_ROWS = 4096  # of a kernel matrix at a time, so that 30,000 pictures need 1 GB


def frechet_distance(first: Float[Tensor, "rows width"], second: Float[Tensor, "others other_width"]) -> float:
    """FID `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))` of two sets of features, in float64 (arXiv 1706.08500).

    Raises:
        EvaluationError: a set has fewer than two rows, or the widths differ.
    """
    _check(first, second, least=2)
    first, second = first.double(), second.double()
    means = (first.mean(0) - second.mean(0)).square().sum()
    one, other = _scaled(first), _scaled(second)
    distance = means + one.square().sum() + other.square().sum() - 2 * _trace_of_root(one, other)
    return max(distance.item(), 0.0)


def kernel_distance(
    first: Float[Tensor, "rows width"],
    second: Float[Tensor, "others other_width"],
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """KID: the unbiased squared MMD with the kernel `(x.y / width + 1)^3` (arXiv 1801.01401), over random subsets.

    Returns:
        Mean over subsets, and their standard deviation, which tells of the subsets and is no interval.

    Raises:
        EvaluationError: a set is smaller than a subset, or the widths differ.
    """
    _check(first, second, least=subset_size)
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor(
        [
            unbiased_kernel_mmd(_subset(first, subset_size, generator), _subset(second, subset_size, generator))
            for _ in range(num_subsets)
        ],
        dtype=torch.float64,
    )
    return values.mean().item(), values.std(correction=0).item()


def unbiased_kernel_mmd(first: Float[Tensor, "rows width"], second: Float[Tensor, "others width"]) -> float:
    """The squared MMD of KID's kernel without the diagonal terms; may be slightly negative."""
    first, second = first.double(), second.double()

    def kernel(left: Tensor, right: Tensor) -> Tensor:
        return (left @ right.T / left.shape[1] + 1) ** 3

    def within(rows: Tensor) -> Tensor:
        matrix, num = kernel(rows, rows), len(rows)
        return (matrix.sum() - matrix.trace()) / (num * (num - 1))

    return (within(first) + within(second) - 2 * kernel(first, second).mean()).item()


def cmmd(first: Float[Tensor, "rows width"], second: Float[Tensor, "others other_width"]) -> float:
    """CMMD: 1000 times the squared MMD of CLIP image embeddings of length 1 under a Gaussian kernel (arXiv 2401.09603).

    The V-statistic of the authors' code, diagonal terms included. The published values are of CLIP ViT-L/14 at 336 px.

    Raises:
        EvaluationError: a set is empty, or the widths differ.
    """
    _check(first, second, least=1)
    first, second = normalised(first), normalised(second)
    within = _mean_gaussian(first, first) + _mean_gaussian(second, second)
    return CMMD_SCALE * (within - 2 * _mean_gaussian(first, second))


def _mean_gaussian(first: Tensor, second: Tensor) -> float:
    """Mean of `exp(-|x - y|^2 / (2 sigma^2))` over all pairs of rows of length 1, some rows at a time."""
    factor = -1 / (2 * CMMD_SIGMA**2)
    sums = [(factor * (2 - 2 * part @ second.T)).exp().sum().item() for part in first.split(_ROWS)]
    return sum(sums) / (len(first) * len(second))


def _scaled(features: Tensor) -> Tensor:
    """Rows `A` such that their covariance is `A^T A`."""
    return (features - features.mean(0)) / (len(features) - 1) ** 0.5


def _trace_of_root(first: Tensor, second: Tensor) -> Tensor:
    """`tr((A^T A B^T B)^(1/2))`, the sum of the singular values of `A B^T`; by covariances where they are smaller."""
    if min(len(first), len(second)) <= first.shape[1]:
        return torch.linalg.svdvals(first @ second.T).sum()
    # The eigenvalues of S1 S2 are those of the symmetric R S2 R with R R = S1, which cannot come out complex.
    values, vectors = torch.linalg.eigh(first.T @ first)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return torch.linalg.eigvalsh(root @ (second.T @ second) @ root).clamp(min=0).sqrt().sum()


def _subset(rows: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator)[:size]]


def _check(first: Tensor, second: Tensor, *, least: int) -> None:
    if first.shape[1] != second.shape[1]:
        raise EvaluationError(
            f"features of width {first.shape[1]} and {second.shape[1]} cannot be compared; encode both sets with one "
            "network"
        )
    if min(len(first), len(second)) < least:
        raise EvaluationError(
            f"sets of {len(first)} and {len(second)} pictures are compared; this distance wants {least} or more in each"
        )
