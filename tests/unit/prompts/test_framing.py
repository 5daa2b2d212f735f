"""What an encoder gets to see."""

import numpy as np
import pytest
import torch
from PIL import Image

from imprompt.core.errors import PromptError
from imprompt.prompts.expand import expand
from imprompt.prompts.framing import crop_at, grid_of, merge_details, tiles_of
from imprompt.prompts.image_prompt import ImagePrompt
from imprompt.prompts.masks import Box
from tests import tiny

WIDE = Image.fromarray(np.tile(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], (40, 1, 3)))  # 120 x 40


def left_of(image):
    return int(np.asarray(image)[0, 0, 0]) // 2


@pytest.mark.parametrize(("x", "left"), [(0.0, 0), (0.25, 10), (0.5, 40), (1.0, 80)])
def test_a_crop_has_its_focus_in_the_middle_as_far_as_it_can(x, left):
    crop = crop_at(WIDE, (x, 0.5))
    assert crop.size == (40, 40) and left_of(crop) == left


@pytest.mark.parametrize(
    ("size", "count", "starts"),
    [
        ((120, 40), 3, [0, 40, 80]),
        ((100, 40), 3, [0, 30, 60]),
        ((60, 40), 2, [0, 20]),
        ((400, 40), 4, [0, 120, 240, 360]),
    ],
)
def test_tiles_of_a_long_picture_share_its_longer_side(size, count, starts):
    wide = Image.fromarray(np.tile((np.arange(size[0]) // 4).astype(np.uint8)[None, :, None], (size[1], 1, 3)))
    tiles = tiles_of(wide)
    assert [tile.image.size for tile in tiles] == [(40, 40)] * count
    assert [int(np.asarray(tile.image)[0, 0, 0]) for tile in tiles] == [start // 4 for start in starts]
    assert [tile.place for tile in tiles] == [Box(k / count, 0.0, (k + 1) / count, 1.0) for k in range(count)]
    turned = tiles_of(wide.transpose(Image.Transpose.TRANSPOSE))
    assert [tile.place for tile in turned] == [Box(0.0, k / count, 1.0, (k + 1) / count) for k in range(count)]


def test_a_nearly_square_picture_has_four_tiles():
    tiles = tiles_of(tiny.picture(size=(40, 32)))
    assert [tile.image.size for tile in tiles] == [(16, 16)] * 4
    assert tiles[1].place == Box(0.5, 0.0, 1.0, 0.5)


def test_a_grid_covers_a_square_of_any_size():
    parts = grid_of(tiny.picture(size=(10, 10)), 3)
    assert len(parts) == 9 and sum(part.width for part in parts[:3]) == 10
    assert len(grid_of(tiny.picture(size=(1, 1)), 2)) == 4


@pytest.mark.parametrize("first", [0, 1, 5], ids=["siglip", "clip", "registers"])
def test_details_are_merged_where_they_are(first):
    """Constant parts: their means stand in their quarters, and what is before the patches is averaged."""
    parts = torch.arange(4.0)[:, None, None].expand(4, first + 16, 3).clone()
    merged = merge_details(torch.full((first + 16, 3), 9.0), parts, 1.0)
    assert torch.equal(merged[:first], torch.full((first, 3), 1.5))
    grid = merged[first:].view(4, 4, 3)[..., 0]
    assert torch.equal(grid[:2, :2], torch.zeros(2, 2)) and torch.equal(grid[2:, :2], torch.full((2, 2), 2.0))
    whole = torch.full((first + 16, 3), 9.0)
    assert torch.equal(merge_details(whole, parts, 0.0), whole)
    assert torch.allclose(merge_details(whole, parts, 0.5), (whole + merged) / 2)


@pytest.mark.parametrize("width", [12, 1280])
def test_details_of_pooled_features_need_no_square(width):
    whole, parts = tiny.rand(width), tiny.rand(9, width, seed=1)
    assert torch.allclose(merge_details(whole, parts, 1.0), parts.mean(0), atol=1e-6)


def test_details_of_a_picture_that_is_the_same_all_over_change_nothing():
    whole = tiny.rand(1, 3).expand(17, 3)
    assert torch.allclose(merge_details(whole, whole.expand(4, 17, 3), 0.7), whole, atol=1e-6)


def test_masks_for_each_picture_make_prompts_of_their_own():
    left, right = Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 1.0, 1.0)
    prompt = ImagePrompt(["a.png", "b.png"], mask=[left, right], weight=0.5, image_weights=[1.0, 0.4], end=0.5)
    one, other = expand(prompt)
    assert (one.image, one.mask, one.weight, one.end) == ("a.png", left, 0.5, 0.5)
    assert (other.image, other.mask, other.weight, other.image_weights) == ("b.png", right, 0.2, None)
    features = tiny.rand(2, 8)
    one, other = expand(ImagePrompt(features=features, mask=[left, right]))
    assert torch.equal(other.features[0], features[1])
    with pytest.raises(PromptError, match="2 masks for 3 pictures"):
        expand(ImagePrompt(features=tiny.rand(3, 8), mask=[left, right]))


def test_tiles_act_inside_the_mask():
    parts = expand(ImagePrompt(WIDE, fit="tile", mask=Box(0.0, 0.0, 1.0, 0.5)), (24, 24))
    assert len(parts) == 3 and all(part.fit == "crop" for part in parts)
    assert torch.equal(parts[0].mask, torch.tensor([[1.0] * 8 + [0.0] * 16] * 12 + [[0.0] * 24] * 12))
    assert expand(ImagePrompt(WIDE, fit="tile"))[1].mask == Box(1 / 3, 0.0, 2 / 3, 1.0)


def test_a_usual_prompt_stays_as_it_is():
    prompt = ImagePrompt(["a.png", "b.png"], mask="m.png")
    assert expand(prompt) == [prompt]
