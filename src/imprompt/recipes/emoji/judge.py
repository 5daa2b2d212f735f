"""What the judge of quality sees in pictures of the embedded model: subject and style, apart."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from imprompt.evaluation.mobilenet import feature_maps

_PENALTY = 1e-3
"""Of the style probe's squared weights."""

_FLAT = 1e-9
"""Slope at which the fit of the probe ends; steps near the end square it, so this is as good as none."""


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in pictures.

    Attributes:
        subject: its last feature map, averaged over positions.
        style: mean and deviation over positions of every block's feature map: texture, line and palette.
    """

    subject: Float[Tensor, "pictures 1280"]
    style: Float[Tensor, "pictures width"]


@torch.no_grad()
def judge(images: UInt8[Tensor, "pictures 3 height width"]) -> Verdict:
    """Look at pictures."""
    parts = [_look(part) for part in images.split(32)]
    return Verdict(torch.cat([part.subject for part in parts]), torch.cat([part.style for part in parts]))


def _look(images: UInt8[Tensor, "batch 3 height width"]) -> Verdict:
    maps = list(feature_maps(images))
    style = [part for features in maps[:-1] for part in (features.mean(dim=(2, 3)), features.std(dim=(2, 3)))]
    return Verdict(maps[-1].mean(dim=(2, 3)), torch.cat(style, dim=1))


class StyleProbe(nn.Module):
    """A linear classifier of styles on the judge's features; it computes in float64, whatever these come in."""

    def __init__(self, width: int, num_styles: int) -> None:
        """Prepare one that is to be fitted.

        Args:
            width: Of the features.
            num_styles: Between which it decides.
        """
        super().__init__()
        self.standardise = nn.BatchNorm1d(width, affine=False, momentum=None, dtype=torch.float64)
        self.linear = nn.Linear(width, num_styles, dtype=torch.float64)

    def forward(self, features: Float[Tensor, "pictures width"]) -> Float[Tensor, "pictures styles"]:
        """One number a style; the highest is that of the style."""
        return self.linear(self.standardise(features.double()))


def style_probe(
    features: Float[Tensor, "pictures width"], styles: Int[Tensor, " pictures"], num_styles: int
) -> StyleProbe:
    """Fit a classifier of styles, with a small penalty on weights, to its one minimum, which no order of rows changes.

    Args:
        features: Of pictures.
        styles: Theirs.
        num_styles: Between which it decides.
    """
    probe = StyleProbe(features.shape[1], num_styles).requires_grad_(False)
    probe.standardise(features.double())  # one look at all of them, for their means and deviations
    probe.eval()
    with_one = functional.pad(probe.standardise(features.double()), (0, 1), value=1.0)  # whose weights are the biases
    penalties = functional.pad(with_one.new_full((features.shape[1], 1), _PENALTY), (0, 0, 0, 1))
    weights = _fitted(with_one, functional.one_hot(styles, num_styles).double(), penalties)
    probe.linear.weight.copy_(weights[:-1].T)
    probe.linear.bias.copy_(weights[-1])
    return probe


def _fitted(
    inputs: Float[Tensor, "pictures width"],
    wanted: Float[Tensor, "pictures styles"],
    penalties: Float[Tensor, "width 1"],
) -> Float[Tensor, "width styles"]:
    """Weights at which mean cross-entropy and penalties are least together, by Newton's steps."""

    def error(weights: Tensor) -> Tensor:
        return functional.cross_entropy(inputs @ weights, wanted) + (penalties * weights.square()).sum()

    weights = inputs.new_zeros(inputs.shape[1], wanted.shape[1])
    for _ in range(100):
        shares = torch.softmax(inputs @ weights, dim=1)
        slope = inputs.T @ (shares - wanted) / len(inputs) + 2 * penalties * weights
        if slope.abs().max() < _FLAT:
            break
        step = _newton_step(partial(_bend, inputs, shares, penalties), slope)
        while error(weights + step) > error(weights) * (1 + 1e-12):
            step = step / 2
        weights = weights + step
    return weights


def _bend(
    inputs: Float[Tensor, "pictures width"],
    shares: Float[Tensor, "pictures styles"],
    penalties: Float[Tensor, "width 1"],
    step: Float[Tensor, "width styles"],
) -> Float[Tensor, "width styles"]:
    """How the slope changes along a step."""
    changes = shares * (inputs @ step)
    return inputs.T @ (changes - shares * changes.sum(dim=1, keepdim=True)) / len(inputs) + 2 * penalties * step


def _newton_step(bend: Callable[[Tensor], Tensor], slope: Float[Tensor, "width styles"]) -> Tensor:
    """The step along which the slope would vanish, by conjugate gradients: the closer, the smaller the slope is."""
    step, rest = torch.zeros_like(slope), -slope
    direction, size = rest, rest.square().sum()
    small = size * min(0.01, size.sqrt().item())
    for _ in range(1000):
        bent = bend(direction)
        length = size / (direction * bent).sum()
        step, rest = step + length * direction, rest - length * bent
        before, size = size, rest.square().sum()
        if size < small:
            break
        direction = rest + size / before * direction
    return step


def ten_way(
    pictures: Float[Tensor, "pictures width"], candidates: Float[Tensor, "pictures width"], *, seed: int
) -> Float[Tensor, " pictures"]:
    """Whether each picture is nearer (in cosine) to its own candidate than to nine others drawn at random: 0 or 1.

    Args:
        pictures: features of what is judged, centred.
        candidates: features of what each should resemble, centred, in the same order.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    similarity = functional.normalize(pictures, dim=1) @ functional.normalize(candidates, dim=1).T
    hits = []
    for row, values in enumerate(similarity):
        others = torch.randperm(len(values) - 1, generator=generator)[:9]
        others = others + (others >= row)
        hits.append(values[row] > values[others].max())
    return torch.stack(hits).float()
