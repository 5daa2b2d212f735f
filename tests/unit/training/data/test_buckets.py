"""Buckets, crops and views."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from imprompt.training.config import DataConfig
from imprompt.training.data.buckets import (
    crop_box,
    plan_buckets,
    shapes_of,
    upscaling,
    view_of,
    view_position,
)
from imprompt.training.errors import DataError
from imprompt.training.loop.order import BatchOrder
from tests.data_formats import picture

SIDE = st.integers(1, 5000)
SIZES = st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=40)
STEPS = st.sampled_from([8, 16, 64])
few = settings(max_examples=60, deadline=None)


def config(resolution: int = 512, **options: object) -> DataConfig:
    return DataConfig(resolution=resolution, **options)


def test_the_shapes_of_stable_diffusion_xl() -> None:
    """The part of its table (arXiv 2307.01952, appendix I) that these proportions leave."""
    shapes = shapes_of(config(1024))
    assert {(1024, 1024), (896, 1152), (832, 1216), (768, 1344)} <= set(shapes)
    assert shapes == sorted(shapes, key=lambda shape: shape[1] / shape[0])


@few
@given(resolution=st.integers(64, 1100), step=STEPS, aspect=st.floats(1, 4))
def test_shapes_are_multiples_of_the_step_and_not_too_large(resolution: int, step: int, aspect: float) -> None:
    shapes = shapes_of(config(resolution, bucket_step=step, max_aspect=aspect))
    for height, width in shapes:
        assert height % step == width % step == 0
        assert height * width <= resolution**2
        assert max(height, width) <= aspect * min(height, width)
        assert (width, height) in shapes
    assert len(set(shapes)) == len({width / height for height, width in shapes}) == len(shapes)


@few
@given(sizes=SIZES, step=STEPS)
def test_every_picture_has_the_nearest_bucket(sizes: list[tuple[int, int]], step: int) -> None:
    options = config(512, bucket_step=step)
    buckets = plan_buckets(torch.tensor(sizes), options)
    logs = np.log([width / height for height, width in shapes_of(options)])
    for number, (height, width) in enumerate(sizes):
        bucket = buckets.shape_of(number)
        distance = abs(np.log(bucket[1] / bucket[0]) - np.log(width / height))
        assert distance <= np.abs(logs - np.log(width / height)).min() + 1e-9
    assert sum(buckets.counts()) == len(sizes)
    assert min(buckets.counts()) > 0


@few
@given(sizes=SIZES, batch_size=st.integers(1, 7))
def test_every_sample_comes_as_often_as_any_other_of_its_bucket(sizes: list[tuple[int, int]], batch_size: int) -> None:
    """After as many epochs as a batch has samples, every bucket has filled whole batches: each sample came as often."""
    buckets = plan_buckets(torch.tensor(sizes), config())
    order = BatchOrder(buckets.bucket_of, batch_size, seed=0)
    seen = torch.zeros(len(sizes), dtype=torch.long)
    for step in range(len(sizes)):
        bucket, samples = order.at(step)
        assert (buckets.bucket_of[samples] == bucket).all()
        seen += torch.bincount(samples, minlength=len(sizes))
    assert (seen == batch_size).all()


@few
@given(size=st.tuples(SIDE, SIDE), number=st.integers(0, 20), position=st.floats(0, 1))
def test_boxes_lie_in_the_picture_and_have_the_proportions(size: tuple[int, int], number: int, position: float) -> None:
    shapes = shapes_of(config())
    bucket = shapes[number % len(shapes)]
    left, top, right, bottom = crop_box(size, bucket, position)
    assert 0 <= left < right <= size[1]
    assert 0 <= top < bottom <= size[0]
    assert (right - left) / (bottom - top) == pytest.approx(bucket[1] / bucket[0], rel=1e-6)
    assert right - left == pytest.approx(size[1]) or bottom - top == pytest.approx(size[0])


def test_one_square_without_buckets() -> None:
    buckets = plan_buckets(torch.tensor([[10, 99], [99, 10]]), config(60, buckets=False))
    assert buckets.shapes == ((60, 60),)
    assert buckets.bucket_of.tolist() == [0, 0]


def test_a_step_above_the_resolution() -> None:
    with pytest.raises(DataError, match="multiples of 64 at the resolution 32"):
        plan_buckets(torch.tensor([[32, 32]]), config(32))


def test_views_begin_in_the_middle_and_do_not_repeat() -> None:
    assert [view_position(view, mirror=False) for view in range(4)] == [
        (0.5, False),
        (0, False),
        (1, False),
        (0.25, False),
    ]
    assert [view_position(view, mirror=True) for view in range(3)] == [(0.5, False), (0.5, True), (0, False)]
    assert len({view_position(view, mirror=True) for view in range(64)}) == 64


def test_a_view_is_the_crop_scaled() -> None:
    image = picture(0, (96, 32))
    pixels, sizes = view_of(image, (32, 48), 0)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 32, 48))
    assert torch.equal(pixels.permute(1, 2, 0), torch.from_numpy(np.array(image.crop((24, 0, 72, 32)))))
    assert sizes.tolist() == [32, 96, 0, 24, 32, 48]


def test_a_mirrored_view_tells_the_corner_of_the_mirrored_picture() -> None:
    image = picture(0, (96, 32))
    pixels, sizes = view_of(image, (32, 48), 3, mirror=True)
    mirrored = ImageOps.mirror(image).crop((0, 0, 48, 32))
    assert torch.equal(pixels.permute(1, 2, 0), torch.from_numpy(np.array(mirrored)))
    assert sizes.tolist() == [32, 96, 0, 0, 32, 48]


def test_the_corner_is_that_of_the_scaled_picture() -> None:
    _, sizes = view_of(Image.new("RGB", (192, 64)), (32, 48), 2)
    assert sizes.tolist() == [64, 192, 0, 48, 32, 48]


def test_pictures_that_are_too_small() -> None:
    sizes = torch.tensor([[256, 256], [512, 512], [1024, 1024], [512, 400]])
    scales = upscaling(sizes, plan_buckets(sizes, config()))
    assert scales.tolist() == pytest.approx([2, 1, 0.5, 576 / 512])
