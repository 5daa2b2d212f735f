"""Arithmetic with features, before the projector: pure functions of tensors.

Weights of single pictures are no part of it: a projector begins or ends with a layer norm, which takes a factor on its
input away again (`ImagePrompt.image_weights` acts on the tokens instead).
"""

import difflib
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from imprompt.core.errors import PromptError

Combine: TypeAlias = Literal["concat", "average", "normalised average", "add", "subtract"]
COMBINES: tuple[Combine, ...] = get_args(Combine)


def combine(
    features: Float[Tensor, "images *length width"], how: Combine, weights: Sequence[float] | None = None
) -> Float[Tensor, "made *length width"]:
    """Make one picture's features of those of several.

    Args:
        features: of every picture.
        how: `"concat"` keeps them all; `"average"`; `"normalised average"` brings each picture's vectors to one length
            first, so that none counts more by being long, and the mean back to the usual length; `"add"`; `"subtract"`
            takes the mean of the others from the first.
        weights: how much each picture counts beside the others.

    Raises:
        PromptError: an unknown way, or weights that come to nothing.
    """
    check_combine(how)
    if how == "concat":
        return features
    share = torch.ones(len(features)) if weights is None else torch.tensor(list(weights))
    share = share.to(features).view(-1, *[1] * (features.ndim - 1))
    if how == "add":
        return (features * share).sum(0, keepdim=True)
    if how == "subtract":
        if len(features) < 2:
            return features * share
        return (features * share)[:1] - (features * share)[1:].mean(0, keepdim=True)
    if abs(float(share.sum())) < 1e-6:
        raise PromptError("the image_weights of an average add up to nothing; give some that do not.")
    share = share / share.sum()
    if how == "average":
        return (features * share).sum(0, keepdim=True)
    lengths = _lengths(features)
    mean = (features / lengths.clamp(min=1e-12) * share).sum(0, keepdim=True)
    return mean * lengths.mean(0, keepdim=True)


def subtract(
    features: Float[Tensor, "*any width"], other: Float[Tensor, "*others width"], amount: float = 1.0
) -> Float[Tensor, "*any width"]:
    """Take a text's or another picture's features away: InstantStyle's way to have a style without its content.

    Text and pictures must share a space: pooled features of an encoder that was trained with that text encoder.

    Args:
        features: of the reference.
        other: what to take away; the mean of several.
        amount: how much of it.
    """
    return features - amount * _mean(other).to(features)


def concept_basis(concept: Float[Tensor, "examples width"], rank: int) -> Float[Tensor, "rank width"]:
    """The directions in which examples of a concept differ most (IP-Composer, arXiv 2502.13951).

    Args:
        concept: features of many texts or pictures that vary the concept, and nothing else.
        rank: how many directions.

    Raises:
        PromptError: fewer examples than directions.
    """
    if not 1 <= rank <= min(concept.shape):
        raise PromptError(f"rank is {rank}; with {len(concept)} examples it can be 1 to {min(concept.shape)}.")
    directions: Tensor = cast(Any, torch.linalg).svd(concept.float(), full_matrices=False)[2]
    return directions[:rank]


def project_out(
    features: Float[Tensor, "*any width"], basis: Float[Tensor, "rank width"]
) -> Float[Tensor, "*any width"]:
    """Remove what features say about a concept: `e - e P`."""
    return features - project_in(features, basis)


def project_in(
    features: Float[Tensor, "*any width"], basis: Float[Tensor, "rank width"]
) -> Float[Tensor, "*any width"]:
    """Keep only what features say about a concept: `e P`, with `P = V^T V`."""
    basis = basis.to(features)
    return (features @ basis.T) @ basis


def replace_concept(
    features: Float[Tensor, "*any width"], basis: Float[Tensor, "rank width"], other: Float[Tensor, "*any width"]
) -> Float[Tensor, "*any width"]:
    """Take one concept from another reference: `e - e P + other P`, IP-Composer's step for each concept."""
    return project_out(features, basis) + project_in(other.to(features), basis)


def interpolate(
    first: Float[Tensor, "*any width"], second: Float[Tensor, "*any width"], amount: float
) -> Float[Tensor, "*any width"]:
    """Go from one reference to another, along the arc between them: the length of the vectors goes evenly.

    Args:
        first: where 0 is.
        second: where 1 is; of the same shape.
        amount: how far.
    """
    second = second.to(first)
    lengths = [_lengths(each).clamp(min=1e-12) for each in (first, second)]
    one, other = first / lengths[0], second / lengths[1]
    angle = torch.acos((one * other).sum(-1, keepdim=True).clamp(-1.0, 1.0))
    sine = torch.sin(angle)
    straight = sine < 1e-4  # (nearly) the same direction, or the opposite one, between which there is no one arc
    sine = torch.where(straight, torch.ones_like(sine), sine)
    arc = torch.sin((1 - amount) * angle) / sine * one + torch.sin(amount * angle) / sine * other
    length = lengths[0] * (1 - amount) + lengths[1] * amount
    return torch.where(straight, first * (1 - amount) + second * amount, arc * length)


def check_combine(how: str) -> None:
    """Refuse an unknown way to combine.

    Raises:
        PromptError: it is none of `COMBINES`.
    """
    if how not in COMBINES:
        nearest = difflib.get_close_matches(str(how), COMBINES, n=1, cutoff=0.0)[0]
        raise PromptError(
            f"combine must be one of {', '.join(map(repr, COMBINES))}; got {how!r}, did you mean {nearest!r}?"
        )


def _lengths(features: Tensor) -> Tensor:
    return features.square().sum(dim=-1, keepdim=True).sqrt()


def _mean(features: Tensor) -> Tensor:
    return features if features.ndim == 1 else features.flatten(0, -2).mean(0)
