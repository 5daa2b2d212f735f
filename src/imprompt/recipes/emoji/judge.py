"""What the judge of quality sees in pictures of the embedded model: subject and style, apart."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from imprompt.evaluation.mobilenet import feature_maps


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


def style_probe(
    features: Float[Tensor, "pictures width"], styles: Int[Tensor, " pictures"], num_styles: int
) -> nn.Module:
    """A linear classifier of styles on the judge's features, fitted with L-BFGS and a small weight penalty."""
    linear = nn.Linear(features.shape[1], num_styles)
    nn.init.zeros_(linear.weight)
    probe = nn.Sequential(nn.BatchNorm1d(features.shape[1], affine=False, momentum=None), linear)
    probe(features)  # one look at all of them, for their means and deviations
    probe.eval()
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        penalty = linear.weight.square().sum()
        value = functional.cross_entropy(probe(features), styles) + 1e-3 * penalty
        value.backward()
        return value

    optimizer.step(loss)
    return probe.requires_grad_(False)


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
