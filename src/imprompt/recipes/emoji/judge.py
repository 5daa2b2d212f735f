"""What the judge of quality sees in pictures of the embedded model: subject and style, apart."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from imprompt.evaluation.mobilenet import feature_maps

_PENALTY = 0.3
"""Of the style probe's squared weights, as a share of what features are worth; of eight tried, it recognised most
styles of training pictures that the probe had not been fitted on."""


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
    """Fit a classifier of styles by ridge regression on their indicators: one solution, whatever the order of rows.

    Args:
        features: Of pictures.
        styles: Theirs.
        num_styles: Between which it decides.
    """
    probe = StyleProbe(features.shape[1], num_styles).requires_grad_(False)
    probe.standardise(features.double())  # one look at all of them, for their means and deviations
    inputs = probe.eval().standardise(features.double())
    wanted = functional.one_hot(styles, num_styles).double()
    products = inputs @ inputs.T / inputs.shape[1]
    shares = torch.linalg.solve(products + _PENALTY * torch.eye(len(products)).double(), wanted - wanted.mean(dim=0))
    probe.linear.weight.copy_(shares.T @ inputs / inputs.shape[1])
    probe.linear.bias.copy_(wanted.mean(dim=0))
    return probe


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
