"""A curve from point to point of a plane."""

import numpy as np
import pytest

from imprompt.core.chart import path_chart


@pytest.mark.parametrize("falls", [False, True])
def test_a_path_goes_where_its_points_are_with_a_label_at_each(falls: bool) -> None:
    points = [(0.0, 0.0), (1.0, 1.0)] if not falls else [(0.0, 1.0), (1.0, 0.0)]
    bare, labelled = (
        np.asarray(path_chart(points, labels, x_label="text", y_label="image", width=300)).astype(int)
        for labels in (["", ""], ["0", "0.5"])
    )
    rows, columns = np.nonzero((bare == (31, 95, 191)).all(axis=2))
    assert np.corrcoef(columns, rows)[0, 1] * (1 if falls else -1) > 0.99
    assert columns.min() > 56 and columns.max() < 300 - 24 and rows.min() > 56 and rows.max() < 200 - 56
    changed = np.nonzero(np.abs(bare - labelled).sum((0, 2)))[0]  # columns in which the labels are
    assert min(changed) < columns.min() + 20 and max(changed) > columns.max()


def test_one_point_is_a_path() -> None:
    assert path_chart([(0.2, 0.8)], ["1"], x_label="text", y_label="image").size == (640, 426)
