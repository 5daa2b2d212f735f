"""Texts of regions are checked when they are written down, and read from mappings like image prompts."""

import math

import pytest
import torch

from imprompt.core.errors import PromptError
from imprompt.prompts import Box, Polygon, TextRegion
from imprompt.prompts.parse import parse_region, parse_regions

LEFT = Box(0.0, 0.0, 0.5, 1.0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mask": LEFT}, "either text or embeds; got neither"),
        ({"text": "a", "embeds": torch.ones(3, 4), "mask": LEFT}, "either text or embeds; got both"),
        ({"text": 3, "mask": LEFT}, "the text of a region must be a text; got 3"),
        ({"text": "a"}, "the mask of a region must be"),
        ({"text": "a", "mask": [LEFT, LEFT]}, "the mask of a region must be"),
        ({"text": "a", "mask": LEFT, "weight": 1.5}, "the weight of a region must lie from 0 to 1; got 1.5"),
        ({"text": "a", "mask": LEFT, "weight": math.nan}, "must be a finite number"),
        ({"text": "a", "mask": LEFT, "feather": -0.1}, "feather must lie from 0 to 1"),
        ({"text": "a", "mask": LEFT, "start": 0.5, "end": 0.5}, "0 <= start < end <= 1"),
        ({"text": "a", "mask": LEFT, "unit": "hours"}, "unit must be one of"),
        ({"text": "a", "mask": LEFT, "curve": [0.5, 2.0]}, "a factor in the curve of a region must lie from 0 to 1"),
        ({"embeds": torch.ones(4), "mask": LEFT}, r"a tensor \[tokens, width\]; got \[4\]"),
        ({"embeds": torch.full((2, 4), math.inf), "mask": LEFT}, "NaN or infinite"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, words):
    with pytest.raises(PromptError, match=words):
        TextRegion(**fields)


def test_a_mapping_says_all_of_it(tmp_path):
    region = parse_region({"text": "a fox", "mask": {"box": [0, 0, 0.5, 1]}, "weight": 1, "end": 0.5, "feather": 0.1})
    assert (region.text, region.mask, region.weight, region.end, region.feather) == ("a fox", LEFT, 1.0, 0.5, 0.1)
    drawn = parse_region({"text": "", "mask": {"polygon": [[0, 0], [1, 0], [1, 1]]}})
    assert isinstance(drawn.mask, Polygon) and drawn.text == ""
    assert parse_region({"text": "a", "mask": "left.png"}, tmp_path).mask == tmp_path / "left.png"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"text": "a"}, r"regions must be a list"),
        (["a"], r"regions\[0\]: a region must be names and values"),
        ([{"text": "a", "mask": {"box": [0, 0, 1, 1]}, "wieght": 1}], r"regions\[0\]: .*'wieght'.*'weight'"),
        ([{"text": "a", "mask": {"box": [0, 0, 1, 1]}, "embeds": 1}], r"regions\[0\]: .*embeds"),
        ([{"text": "a", "mask": ["a.png", "b.png"]}], r"regions\[0\]: a region has one mask"),
        ([{"text": "a", "mask": {"box": [1, 0, 0, 1]}}], r"regions\[0\]: a box needs"),
    ],
)
def test_mappings_that_make_no_sense_are_refused(given, words):
    with pytest.raises(PromptError, match=words):
        parse_regions(given)
