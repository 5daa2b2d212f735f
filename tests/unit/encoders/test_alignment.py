"""Faces come to lie where face networks expect them."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from imprompt.core.errors import FaceError, ImageError
from imprompt.encoders.alignment import align_face, fit_similarity, template_points

COLOURS = ("red", "lime", "blue", "yellow", "magenta")


def similarity(angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([turn, shift])


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def umeyama(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares by singular values, as Umeyama (1991) has it."""
    start, end = source - source.mean(axis=0), target - target.mean(axis=0)
    left, values, right = np.linalg.svd(end.T @ start / len(source))
    signs = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    turn = (values * signs).sum() / start.var(axis=0).sum() * (left * signs) @ right
    return np.column_stack([turn, target.mean(axis=0) - turn @ source.mean(axis=0)])


def test_the_template_at_every_size() -> None:
    small = template_points(112)
    assert small.shape == (5, 2)
    assert np.allclose(template_points(224), 2 * small)
    assert np.allclose(template_points(336), 3 * small)
    assert np.allclose(template_points(128), small + (8.0, 0.0))
    assert np.allclose(template_points(256), 2 * template_points(128))


@pytest.mark.parametrize("size", [0, -112, 100, 200])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(ImageError, match=f"got {size}"):
        template_points(size)


@pytest.mark.parametrize("angle", [0.0, 0.5, -2.0, 3.1])
def test_a_similarity_is_found_again(angle: float) -> None:
    matrix = similarity(angle, 0.7, (12.0, -30.0))
    points = template_points(224)
    assert np.allclose(fit_similarity(points, moved(points, matrix)), matrix)


def test_noisy_points_give_what_umeyama_gives() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        source, target = random.normal(size=(5, 2)) * 40, random.normal(size=(5, 2)) * 10 + 50
        assert np.allclose(fit_similarity(source, target), umeyama(source, target))


def test_an_aligned_face_stays_as_it_is() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8))
    assert np.array_equal(np.asarray(align_face(picture, template_points(112))), np.asarray(picture))


@pytest.mark.parametrize("size", [112, 224, 256, 336])
@pytest.mark.parametrize(("angle", "scale"), [(0.0, 1.0), (0.4, 1.5), (-1.2, 3.0), (2.5, 0.6)])
def test_keypoints_come_to_lie_on_the_template(size: int, angle: float, scale: float) -> None:
    keypoints = moved(template_points(112), similarity(angle, scale, (400.0, 350.0)))
    picture = Image.new("RGB", (800, 800))
    draw = ImageDraw.Draw(picture)
    for (x, y), colour in zip(keypoints, COLOURS, strict=True):
        draw.ellipse((x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale), fill=colour)
    crop = align_face(picture, keypoints, size)
    assert crop.size == (size, size)
    for (x, y), colour in zip(template_points(size), COLOURS, strict=True):
        assert crop.getpixel((round(x), round(y))) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))


def test_between_pixels_colours_are_mixed() -> None:
    picture = Image.fromarray(np.tile(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], (120, 1, 3)))
    crop = np.asarray(align_face(picture, template_points(112) + (0.5, 0.0)))
    assert (crop[:, :, 0] == np.arange(1, 225, 2)).all()


def test_what_lies_outside_of_the_picture_is_black() -> None:
    crop = np.asarray(align_face(Image.new("RGB", (112, 112), "white"), template_points(112) - (20.0, 0.0)))
    assert (crop[:, :20] == 0).all()
    assert (crop[:, 21:] == 255).all()


def test_grain_of_a_large_face_is_averaged_away() -> None:
    random = np.random.default_rng(0)
    grain = Image.fromarray(random.integers(78, 178, (900, 900, 3)).astype(np.uint8))
    single = np.asarray(align_face(grain, template_points(112))).std()
    large = np.asarray(align_face(grain, template_points(112) * 8.0)).std()
    assert single > 25
    assert large < single / 3


def test_a_large_face_is_not_shifted() -> None:
    """A ramp is its own mean, so averaging must give what picking gives."""
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 896)[None, :, None], (896, 1, 3)).round().astype(np.uint8))
    crop = np.asarray(align_face(ramp, template_points(112) * 8.0 + 3.5)).astype(float)
    expected = np.interp(np.arange(112) * 8.0 + 3.5, np.arange(896), np.linspace(0, 255, 896))
    assert np.abs(crop - expected[None, :, None]).max() <= 1.0


@pytest.mark.parametrize(
    "keypoints",
    [
        np.zeros((5, 2)),
        np.full((5, 2), np.nan),
        template_points(112) * 1e5,
        template_points(112) * np.inf,
        np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [0.0, 0.0]]) * 1e-9,
    ],
)
def test_what_is_no_face_is_refused(keypoints: np.ndarray) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(FaceError, match="lie as on no face"):
        align_face(Image.new("RGB", (64, 64)), keypoints)


def test_pictures_of_any_mode() -> None:
    assert align_face(Image.new("L", (112, 112), 100), template_points(112)).getpixel((50, 50)) == (100, 100, 100)
