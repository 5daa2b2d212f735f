"""Cosine similarities: CLIP-I, CLIP-T, DINO and face similarity are this number, of different networks' features."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from imprompt.evaluation.errors import EvaluationError


def cosine(first: Float[Tensor, "rows width"], second: Float[Tensor, "others other_width"]) -> Float[Tensor, " rows"]:
    """Cosine of each pair of rows, in float64.

    Raises:
        EvaluationError: the features differ in width or number, or a row is zero or not finite.
    """
    if first.shape != second.shape:
        raise EvaluationError(
            f"features of shapes {tuple(first.shape)} and {tuple(second.shape)} are compared row by row; they must be "
            "alike, so encode both with one network"
        )
    return (normalised(first) * normalised(second)).sum(-1)


def diversity(pictures: Float[Tensor, "rows width"]) -> float:
    """One less the mean cosine of all pairs of pictures of one prompt and reference: 0 where all are the same.

    Raises:
        EvaluationError: there are fewer than two.
    """
    num = len(pictures)
    if num < 2:
        raise EvaluationError(f"diversity wants two pictures of a prompt or more; got {num}: draw more seeds")
    unit = normalised(pictures)
    total = (unit @ unit.T).sum() - num
    return 1.0 - (total / (num * (num - 1))).item()


def normalised(features: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    """Rows of length 1, in float64.

    Raises:
        EvaluationError: a row is zero or not finite, so that it has no direction.
    """
    double = features.double()
    lengths = double.norm(dim=-1)
    bad = (~torch.isfinite(lengths) | (lengths == 0)).nonzero().flatten().tolist()
    if bad:
        raise EvaluationError(f"features of rows {bad[:8]} are zero or not finite, so they have no direction")
    return functional.normalize(double, dim=-1)
