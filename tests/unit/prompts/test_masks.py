"""Regions by shape, softened."""

import numpy as np
import pytest
import torch

from imprompt.core.errors import PromptError
from imprompt.prompts.masks import Box, Polygon, paint, read_mask, soften


@pytest.mark.parametrize("size", [(16, 16), (10, 30), (7, 5)])
def test_a_box_covers_its_share_and_no_more(size):
    half = paint(Box(0.0, 0.0, 0.5, 1.0), size)
    assert half.shape == size
    assert half.mean() == pytest.approx(0.5, abs=0.5 / (4 * size[1]) + 1e-6)
    assert half[:, : size[1] // 2].min() == 1 and half[:, -(-size[1] // 2) :].max() == 0
    other = paint(Box(0.5, 0.0, 1.0, 1.0), size)
    assert torch.equal(half + other, torch.ones(size))


def test_a_tiny_box_is_still_there():
    assert paint(Box(0.5, 0.5, 0.5001, 0.5001), (16, 16)).max() > 0


def test_a_polygon_is_filled_and_its_edge_is_smooth():
    triangle = paint(Polygon([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]), (64, 64))
    assert triangle[0, 0] == 1 and triangle[-1, -1] == 0
    assert triangle.mean() == pytest.approx(0.5, abs=0.02)
    assert ((triangle > 0) & (triangle < 1)).any()


def test_feathering_keeps_the_mean_and_softens_the_edge():
    half = paint(Box(0.0, 0.0, 0.5, 1.0), (32, 32))
    soft = soften(half, 0.1)
    assert torch.equal(soften(half, 0.0), half)
    assert soft.mean() == pytest.approx(0.5, abs=1e-3)
    row = soft[16]
    assert row[0] == pytest.approx(1, abs=1e-3) and row[-1] == pytest.approx(0, abs=1e-3)
    assert (row.diff() <= 1e-6).all() and 0.4 < row[15:17].mean() < 0.6
    assert soften(torch.ones(1, 1), 0.5).shape == (1, 1)


def test_every_kind_of_mask_is_read():
    array = np.ones((4, 6), dtype=np.float32)
    assert read_mask(array, None).shape == (4, 6)
    assert read_mask(Box(0.0, 0.0, 1.0, 1.0), None).shape == (512, 512)
    assert read_mask(Polygon([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]), (24, 40)).shape == (24, 40)


@pytest.mark.parametrize("edges", [(0.5, 0, 0.5, 1), (0.6, 0, 0.5, 1), (0, 0, 1.5, 1), (-0.1, 0, 1, 1), (0, 0, 1, "1")])
@pytest.mark.usefixtures("unchecked")
def test_boxes_that_are_none(edges):
    with pytest.raises(PromptError, match="a box needs 0 <= left < right <= 1"):
        Box(*edges)


@pytest.mark.parametrize("points", [[(0.0, 0.0), (1.0, 1.0)], [(0.0, 0.0), (1.0, 1.0), (2.0, 0.0)], [(0, 0, 0)] * 3])
@pytest.mark.usefixtures("unchecked")
def test_polygons_that_are_none(points):
    with pytest.raises(PromptError, match="three corners"):
        Polygon(points)
