"""Each metric against torchmetrics, or against its written formula on numbers that can be checked by hand."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor, nn
from torch.nn import functional

from imprompt.evaluation.errors import EvaluationError
from imprompt.evaluation.metrics.copies import differing_bits, is_near_copy
from imprompt.evaluation.metrics.distances import cmmd, frechet_distance, kernel_distance, unbiased_kernel_mmd
from imprompt.evaluation.metrics.similarity import cosine, diversity
from imprompt.evaluation.metrics.style import content_alignment, style_similarity

WIDTH = 12


class Pixels(nn.Module):
    """Features that are the pixels, so that torchmetrics computes its distances on numbers we choose."""

    num_features = WIDTH

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).double()


def sets(rows: int = 60, others: int = 50) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(WIDTH, WIDTH, generator=generator)
    first = torch.randn(rows, WIDTH, generator=generator) @ mix
    return first, torch.randn(others, WIDTH, generator=generator) @ mix.T + 0.5


def as_images(features: Tensor) -> Tensor:
    return features.reshape(-1, 3, 2, 2)


@pytest.mark.parametrize("sizes", [(60, 50), (60, 7), (5, 6)])  # fewer pictures than features as well
def test_frechet_distance_is_that_of_torchmetrics(sizes: tuple[int, int]) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    oracle = FrechetInceptionDistance(feature=Pixels(), input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    first, second = (features.double() for features in sets(*sizes))
    oracle.update(as_images(first), real=True)
    oracle.update(as_images(second), real=False)
    expected = float(oracle.compute())
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_gaussians_on_a_line() -> None:
    """In one dimension it is `(m1 - m2)^2 + (s1 - s2)^2`."""
    first, second = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [9.0]])
    expected = (1 - 6) ** 2 + (math.sqrt(2) - math.sqrt(18)) ** 2
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_is_that_of_torchmetrics_where_a_subset_is_the_whole_set() -> None:
    from torchmetrics.image.kid import poly_mmd

    first, second = sets(50, 50)
    expected = float(poly_mmd(first.double(), second.double()))
    assert unbiased_kernel_mmd(first, second) == pytest.approx(expected, rel=1e-9)
    mean, deviation = kernel_distance(first, second, num_subsets=3, subset_size=50)
    assert mean == pytest.approx(expected, rel=1e-9)
    assert deviation == pytest.approx(0, abs=1e-9 * abs(expected))


def test_kernel_distance_is_drawn_from_its_seed_alone() -> None:
    first, second = sets()
    draws = [kernel_distance(first, second, num_subsets=4, subset_size=20, seed=seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_cmmd_is_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = sets()
    x, y = functional.normalize(first.double(), dim=1), functional.normalize(second.double(), dim=1)

    def kernel(left: Tensor, right: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(left, right).square() / (2 * 10**2)).mean()

    expected = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)).item()
    assert cmmd(first, second) == pytest.approx(expected, rel=1e-5)
    for rows in (1, 7, 64):  # however many rows are computed at a time
        monkeypatch.setattr("imprompt.evaluation.metrics.distances._ROWS", rows)
        assert cmmd(first, second) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_cosines_of_known_angles() -> None:
    first = torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    second = torch.tensor([[0.0, 3.0], [1.0, 0.0], [-1.0, 0.0]])
    assert cosine(first, second).tolist() == pytest.approx([0.0, math.sqrt(0.5), -1.0])


def test_diversity_of_copies_is_zero_and_of_right_angles_one() -> None:
    assert diversity(torch.ones(3, 4)) == pytest.approx(0, abs=1e-12)
    assert diversity(torch.eye(3)) == pytest.approx(1)


def test_content_is_blind_to_style_and_style_to_content() -> None:
    generator = torch.Generator().manual_seed(1)
    content = torch.randn(1, 20, 6, generator=generator)
    restyled = content * (0.5 + torch.rand(6, generator=generator)) + torch.randn(6, generator=generator)
    shuffled = restyled[:, torch.randperm(20, generator=generator)]
    assert content_alignment(restyled, content).item() < 1e-4 < content_alignment(shuffled, content).item()
    assert style_similarity(shuffled, restyled).item() == pytest.approx(1)
    assert style_similarity(content, restyled).item() < 0.95


def picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)


def test_near_copies_are_found_and_others_are_not() -> None:
    original = picture(0)
    copy = ImageEnhance.Brightness(original.resize((70, 70)).resize((96, 96))).enhance(1.1)
    assert is_near_copy(differing_bits(original, copy))
    for other in (picture(1), ImageOps.invert(original), ImageOps.mirror(original)):
        assert not is_near_copy(differing_bits(original, other))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: cosine(torch.ones(2, 3), torch.ones(2, 4)), "one network"),
        (lambda: cosine(torch.zeros(1, 3), torch.ones(1, 3)), "no direction"),
        (lambda: cosine(torch.full((1, 3), math.nan), torch.ones(1, 3)), "no direction"),
        (lambda: diversity(torch.ones(1, 3)), "got 1"),
        (lambda: frechet_distance(torch.ones(1, 3), torch.ones(5, 3)), "2 or more"),
        (lambda: frechet_distance(torch.ones(5, 2), torch.ones(5, 3)), "width 2 and 3"),
        (lambda: kernel_distance(torch.ones(5, 3), torch.ones(5, 3)), "1000 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(call: object, words: str) -> None:
    with pytest.raises(EvaluationError, match=words):
        call()  # type: ignore[operator]
