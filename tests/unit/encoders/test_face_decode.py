"""Numbers of detectors become faces."""

import numpy as np
import pytest

from imprompt.core.errors import CheckpointError
from imprompt.encoders.face_base import Face
from imprompt.encoders.face_decode import scrfd_faces, suppress, yunet_faces


def face(left: float, top: float, right: float, bottom: float, score: float) -> Face:
    return Face(np.array([left, top, right, bottom], float), np.zeros((5, 2)), score)


def scrfd_outputs(strides: tuple[int, ...], anchors: int, side: int) -> list[np.ndarray]:
    places = [anchors * (side // stride) ** 2 for stride in strides]
    return [np.zeros((count, width), np.float32) for width in (1, 4, 10) for count in places]


@pytest.mark.parametrize(("strides", "anchors"), [((8, 16, 32), 2), ((8, 16, 32, 64, 128), 1)])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_scrfd_by_hand(strides: tuple[int, ...], anchors: int, level: int) -> None:
    outputs = scrfd_outputs(strides, anchors, 128)
    stride, row, column = strides[level], 2, 1
    place = (row * (128 // stride) + column) * anchors + anchors - 1
    outputs[level][place] = 0.75
    outputs[level + len(strides)][place] = (0.5, 0.25, 1.0, 2.0)
    outputs[level + 2 * len(strides)][place] = np.arange(10)
    (found,) = scrfd_faces(outputs, 128, 128, 0.5)
    x, y = column * stride, row * stride
    assert found.score == 0.75
    assert found.box.tolist() == [x - 0.5 * stride, y - 0.25 * stride, x + stride, y + 2 * stride]
    assert found.keypoints[3].tolist() == [x + 6 * stride, y + 7 * stride]
    assert found.area == 1.5 * stride * 2.25 * stride


def test_scrfd_with_a_batch_of_one_and_a_view_that_is_not_square() -> None:
    outputs = [
        np.zeros((1, 2 * (64 // stride) * (96 // stride), width), np.float32)
        for width in (1, 4, 10)
        for stride in (8, 16, 32)
    ]
    outputs[1][0, 2 * (6 * 3 + 5)] = 1.0  # row 3, column 5 of 6 columns
    (found,) = scrfd_faces(outputs, 64, 96, 0.5)
    assert found.box.tolist() == [80.0, 48.0, 80.0, 48.0]


def test_yunet_by_hand() -> None:
    outputs = [
        np.zeros((1, (64 // stride) ** 2, width), np.float32) for width in (1, 1, 4, 10) for stride in (8, 16, 32)
    ]
    place = 2 * 4 + 1  # of the grid of stride 16
    outputs[1][0, place], outputs[4][0, place] = 0.5, 2.0  # clipped to 1
    outputs[7][0, place] = (0.5, 0.25, np.log(2.0), np.log(3.0))
    outputs[10][0, place] = np.arange(10) / 10
    (found,) = yunet_faces(outputs, 64, 64, 0.6)
    assert found.score == pytest.approx(0.5**0.5)
    assert found.box == pytest.approx([24 - 16, 36 - 24, 24 + 16, 36 + 24])
    assert found.keypoints[1] == pytest.approx([(0.2 + 1) * 16, (0.3 + 2) * 16])


def test_outputs_of_another_shape_are_refused() -> None:
    outputs = scrfd_outputs((8, 16, 32), 2, 128)
    outputs[4] = outputs[4][:-1]
    with pytest.raises(CheckpointError, match=r"shape \[127, 4\] where \[128, 4\]"):
        scrfd_faces(outputs, 128, 128, 0.5)


def test_numbers_gone_wrong_are_no_faces() -> None:
    outputs = scrfd_outputs((8, 16, 32), 2, 32)
    outputs[0][:] = 1.0
    outputs[3][:] = np.nan
    outputs[1][0], outputs[7][0, 3] = np.nan, np.inf
    outputs[2][:] = 1.0
    outputs[8][:] = np.inf
    assert scrfd_faces(outputs, 32, 32, 0.5) == []


def test_of_overlapping_faces_the_surest_is_kept() -> None:
    found = suppress(
        [face(0, 0, 10, 10, 0.6), face(1, 0, 11, 10, 0.9), face(30, 0, 40, 10, 0.7), face(8, 0, 18, 10, 0.5)], 0.3
    )
    assert [each.score for each in found] == [0.9, 0.7, 0.5]
    assert suppress([], 0.3) == []


def test_the_overlap_is_intersection_over_union() -> None:
    pair = [face(0, 0, 10, 10, 0.9), face(5, 0, 15, 10, 0.8)]  # 50 of 150
    assert len(suppress(pair, 0.34)) == 2
    assert len(suppress(pair, 0.33)) == 1


def test_a_network_gone_wrong_does_not_take_for_ever() -> None:
    many = [face(20 * number, 0, 20 * number + 10, 10, 0.9) for number in range(5000)]
    assert len(suppress(many, 0.3)) == 1000
