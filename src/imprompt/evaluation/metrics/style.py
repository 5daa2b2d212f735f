"""Content and style apart."""

import torch
from jaxtyping import Float
from torch import Tensor

from imprompt.evaluation.metrics.similarity import cosine


def content_alignment(
    pictures: Float[Tensor, "rows tokens width"], contents: Float[Tensor, "rows tokens width"]
) -> Float[Tensor, " rows"]:
    """CAS, content alignment score: mean squared distance of instance-normalised patch features; lower is better.

    Each channel loses its mean and deviation over positions, which carry style, before features are compared (CSGO,
    arXiv 2408.16766, equations 1 and 2, where the features are DINOv2's).
    """
    return (_instance_normalised(pictures) - _instance_normalised(contents)).square().mean(dim=(1, 2))


def style_statistics(features: Float[Tensor, "rows tokens width"]) -> Float[Tensor, "rows twice_width"]:
    """Mean and deviation of every channel over positions: what `content_alignment` takes away."""
    double = features.double()
    return torch.cat([double.mean(1), double.std(1, correction=0)], dim=1)


def style_similarity(
    pictures: Float[Tensor, "rows tokens width"], styles: Float[Tensor, "rows tokens width"]
) -> Float[Tensor, " rows"]:
    """Cosine of the channel statistics of two pictures' patch features: style without a trained head."""
    return cosine(style_statistics(pictures), style_statistics(styles))


def _instance_normalised(features: Tensor) -> Tensor:
    double = features.double()
    centred = double - double.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
