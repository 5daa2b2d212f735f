"""From the numbers that detectors give to faces: SCRFD's heads, YuNet's heads, which of several boxes to keep."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from imprompt.core.errors import CheckpointError
from imprompt.encoders.alignment import NUM_KEYPOINTS
from imprompt.encoders.face_base import Face

# Number of outputs to the strides of the grids that SCRFD predicts on, and how many predictions a place has.
SCRFD_LAYOUTS: dict[int, tuple[tuple[int, ...], int]] = {9: ((8, 16, 32), 2), 15: ((8, 16, 32, 64, 128), 1)}
YUNET_STRIDES = (8, 16, 32)
YUNET_HEADS = ("cls", "obj", "bbox", "kps")

_MAX_CANDIDATES = 1000  # a picture of nothing but faces has fewer; a network gone wrong has all its places
_KEYPOINT_WIDTH = 2 * NUM_KEYPOINTS


def scrfd_faces(outputs: Sequence[np.ndarray], height: int, width: int, min_score: float) -> list[Face]:
    """Decode SCRFD (Guo et al., 2021, arXiv 2105.04714).

    Every place of a grid tells, in units of its stride, how far the box reaches to the left, up, right and down of it,
    and where the keypoints lie from it.

    Args:
        outputs: Scores `[places, 1]` of all strides, then boxes `[places, 4]`, then keypoints `[places, 10]`; a leading
            batch of one is accepted.
        height: Height of what the network saw, in pixels.
        width: Its width.
        min_score: Which faces to keep.

    Raises:
        CheckpointError: The outputs have other shapes.
    """
    strides, repeats = SCRFD_LAYOUTS[len(outputs)]
    scores, boxes, keypoints = (outputs[start : start + len(strides)] for start in range(0, len(outputs), len(strides)))
    faces = []
    for level, stride in enumerate(strides):
        places = np.repeat(_grid(height, width, stride), repeats, axis=0) * stride
        score = _head(scores[level], len(places), 1)[:, 0]
        reach = _head(boxes[level], len(places), 4) * stride
        points = _head(keypoints[level], len(places), _KEYPOINT_WIDTH) * stride
        edges = np.concatenate([places - reach[:, :2], places + reach[:, 2:]], axis=1)
        faces += _faces(edges, points.reshape(-1, NUM_KEYPOINTS, 2) + places[:, None], score, min_score)
    return faces


def yunet_faces(outputs: Sequence[np.ndarray], height: int, width: int, min_score: float) -> list[Face]:
    """Decode YuNet (Wu et al., 2023, Machine Intelligence Research).

    Every place of a grid tells, in units of its stride, where the middle of the box and the keypoints lie from it, and
    the logarithm of the box's width and height. Its score is the geometric mean of "a face" and "an object".

    Args:
        outputs: "a face" `[1, places, 1]` of all strides, then "an object", then boxes `[1, places, 4]`, then keypoints
            `[1, places, 10]`: the order of `YUNET_HEADS`.
        height: Height of what the network saw, in pixels.
        width: Its width.
        min_score: Which faces to keep.

    Raises:
        CheckpointError: The outputs have other shapes.
    """
    count = len(YUNET_STRIDES)
    kinds, objects, boxes, keypoints = (outputs[start : start + count] for start in range(0, 4 * count, count))
    faces = []
    for level, stride in enumerate(YUNET_STRIDES):
        places = _grid(height, width, stride)
        sureness = _head(kinds[level], len(places), 1).clip(0, 1) * _head(objects[level], len(places), 1).clip(0, 1)
        box = _head(boxes[level], len(places), 4)
        middle, half = (places + box[:, :2]) * stride, np.exp(box[:, 2:].clip(max=20.0)) * stride / 2
        points = _head(keypoints[level], len(places), _KEYPOINT_WIDTH).reshape(-1, NUM_KEYPOINTS, 2)
        edges = np.concatenate([middle - half, middle + half], axis=1)
        faces += _faces(edges, (points + places[:, None]) * stride, np.sqrt(sureness[:, 0]), min_score)
    return faces


def suppress(faces: Sequence[Face], max_overlap: float) -> list[Face]:
    """Keep the surest of faces that overlap.

    Args:
        faces: All that were found.
        max_overlap: Intersection over union above which two boxes are of the same face.

    Returns:
        The faces that are left, the surest first.
    """
    left = sorted(faces, key=lambda face: -face.score)[:_MAX_CANDIDATES]
    kept = []
    while left:
        best, *left = left
        kept.append(best)
        if left:
            overlaps = _overlaps(best.box, np.stack([face.box for face in left]))
            left = [face for face, overlap in zip(left, overlaps, strict=True) if overlap <= max_overlap]
    return kept


def _grid(height: int, width: int, stride: int) -> Int[np.ndarray, "places 2"]:
    """Column and row of every place, row by row."""
    rows, columns = np.mgrid[: height // stride, : width // stride]
    return np.stack([columns, rows], axis=-1).reshape(-1, 2)


def _head(output: np.ndarray, places: int, width: int) -> Float[np.ndarray, "places width"]:
    """Take one output without its batch, or say that the file is no detector of the kind it looks like."""
    values = output[0] if output.ndim == 3 and output.shape[0] == 1 else output
    if values.shape != (places, width):
        raise CheckpointError(
            f"A face detector's output has the shape {list(output.shape)} where [{places}, {width}] was expected; its "
            "file is no SCRFD or YuNet network of a known layout."
        )
    return values.astype(np.float64)


def _faces(
    boxes: Float[np.ndarray, "places 4"],
    keypoints: Float[np.ndarray, "places 5 2"],
    scores: Float[np.ndarray, " places"],
    min_score: float,
) -> list[Face]:
    finite = np.isfinite(boxes).all(axis=1) & np.isfinite(keypoints).all(axis=(1, 2))
    return [
        Face(boxes[place], keypoints[place], float(scores[place]))
        for place in np.flatnonzero((scores >= min_score) & finite)
    ]


def _overlaps(box: Float[np.ndarray, " 4"], boxes: Float[np.ndarray, "boxes 4"]) -> Float[np.ndarray, " boxes"]:
    """Intersection over union of one box with others."""
    inner = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = inner.clip(min=0.0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return shared / np.maximum(areas - shared, 1e-9)
