"""Faces turned, scaled and moved to where face networks expect them; numpy and Pillow only.

ArcFace and its kin were trained on crops in which eyes, nose and corners of the mouth lie near five fixed points
(Deng et al., 2019, arXiv 1801.07698). A crop is the similarity (rotation, one scale, shift) that brings the five points
found in a picture closest to these.
"""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from imprompt.core.errors import FaceError, ImageError

# Eye, eye, nose, corner of the mouth, corner of the mouth; each pair from left to right as the viewer sees it.
NUM_KEYPOINTS = 5
_POINTS_112 = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
_MAX_SPAN = 8.0  # times the shorter side of the picture: a crop wider than this shows no face in it
_NO_FACE = "The keypoints found lie as on no face, so it cannot be aligned; use another picture or detector."
_MARGIN_128 = 8.0  # a crop of 128 pixels shows the one of 112 with as many more on each side


def template_points(size: int = 112) -> Float[np.ndarray, "5 2"]:
    """Where the five keypoints of an upright face lie in a square crop.

    Args:
        size: Side of the crop in pixels: a multiple of 112 (112, 224, 336), or of 128 (128, 256) for a wider view.

    Returns:
        x and y in pixels, counted from the centre of the first.

    Raises:
        ImageError: The size is a multiple of neither.
    """
    points = np.array(_POINTS_112)
    if size > 0 and size % 112 == 0:
        return points * (size / 112)
    if size > 0 and size % 128 == 0:
        return (points + (_MARGIN_128, 0.0)) * (size / 128)
    raise ImageError(f"An aligned face has a side of 112, 224, 336 (or 128, 256) pixels; got {size}.")


def fit_similarity(
    source: Float[np.ndarray, "points 2"], target: Float[np.ndarray, "points 2"]
) -> Float[np.ndarray, "2 3"]:
    """Find the similarity that maps points closest to others, in the sense of least squares.

    With points as complex numbers z and w about their means it is w = a z, where a = sum(conj(z) w) / sum(|z|^2): the
    closed form in the plane of what Umeyama (1991) solves by a singular value decomposition.

    Args:
        source: x and y of each point.
        target: Where each should come to lie.

    Returns:
        The matrix to multiply (x, y, 1) by.

    Raises:
        FaceError: The points to be mapped all coincide, are not finite, or resemble the others in no way.
    """
    start, end = (points.astype(np.float64) @ (1.0, 1.0j) for points in (source, target))
    middle, goal = start.mean(), end.mean()
    start, end = start - middle, end - goal
    spread = float(np.vdot(start, start).real)
    if not (np.isfinite(spread) and spread > 1e-12):
        raise FaceError(_NO_FACE)
    turn = np.vdot(start, end) / spread
    if not abs(turn) > 1e-6:
        raise FaceError(_NO_FACE)
    shift = goal - turn * middle
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def align_face(image: Image.Image, keypoints: Float[np.ndarray, "5 2"], size: int = 112) -> Image.Image:
    """Cut a face out, upright, and at the place and scale that face networks were trained on.

    Pixel for pixel what bilinear warping gives elsewhere, but for faces more than twice as large as the crop: these are
    averaged down first, since single pixels picked out of many carry grain instead of features.

    Args:
        image: An RGB picture.
        keypoints: x and y in it of eyes, nose and corners of the mouth.
        size: Side of the crop in pixels, as for `template_points`.

    Returns:
        A square RGB picture, black where it reaches beyond the given one.

    Raises:
        ImageError: The size is not one that a crop has.
        FaceError: The keypoints are not those of a face.
    """
    target = template_points(size)
    matrix = fit_similarity(keypoints, target)
    shrink = 1.0 / np.hypot(matrix[0, 0], matrix[1, 0])
    if shrink * size > _MAX_SPAN * min(image.size):
        raise FaceError(_NO_FACE)
    factor = min(int(shrink), *image.size)
    if factor >= 2:
        image = image.reduce(factor)
        matrix = fit_similarity((keypoints + 0.5) / factor - 0.5, target)
    rows, columns = np.mgrid[:size, :size]
    places = (np.stack([columns, rows], axis=-1) - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    corner = np.floor(places.min(axis=(0, 1))).astype(int)
    end = np.floor(places.max(axis=(0, 1))).astype(int) + 2
    region = image.convert("RGB").crop((*corner.tolist(), *end.tolist()))  # black outside of the picture
    return Image.fromarray(_sample(np.asarray(region), places - corner))


def _sample(
    pixels: UInt8[np.ndarray, "height width 3"], places: Float[np.ndarray, "rows columns 2"]
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Read a picture between its pixels: the mean of the four nearest, weighted by nearness."""
    left, top = places[..., 0].astype(int), places[..., 1].astype(int)
    right, below = places[..., :1] - left[..., None], places[..., 1:] - top[..., None]
    upper = pixels[top, left] * (1.0 - right) + pixels[top, left + 1] * right
    lower = pixels[top + 1, left] * (1.0 - right) + pixels[top + 1, left + 1] * right
    return (upper * (1.0 - below) + lower * below).round().astype(np.uint8)
