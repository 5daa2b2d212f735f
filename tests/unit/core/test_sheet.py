"""Contact sheets."""

import numpy as np
from PIL import Image, ImageFont

from imprompt.core.sheet import _wrap, contact_sheet


def test_cells_lie_where_they_should() -> None:
    red, blue = Image.new("RGB", (10, 10), "red"), Image.new("RGB", (20, 10), "blue")
    sheet = contact_sheet([[red, None], [blue]], cell=20, gap=2)
    assert sheet.size == (2 + 2 * 22, 2 + 2 * 22)
    assert sheet.getpixel((12, 12)) == (255, 0, 0)
    assert sheet.getpixel((34, 12)) == (244, 244, 244)
    assert sheet.getpixel((12, 34)) == (0, 0, 255)
    assert sheet.getpixel((12, 25)) == (255, 255, 255)  # a wide picture keeps its proportions


def test_labels_are_drawn_outside_the_pictures() -> None:
    black = Image.new("RGB", (60, 60), "black")
    plain = contact_sheet([[black, black]], cell=60)
    labelled = contact_sheet([[black, black]], ["reference", "text and image together"], ["cat"], cell=60)
    assert labelled.width == plain.width + 60 + 8
    corner = (labelled.width - plain.width, labelled.height - plain.height)
    assert labelled.crop((corner[0], corner[1], *labelled.size)) == plain.crop((0, 0, *plain.size)) or (
        np.asarray(labelled)[corner[1] + 10 :, corner[0] + 10 : -10].max(axis=(0, 2)).min() == 0
    )
    for area in ((0, corner[1], corner[0], labelled.height), (corner[0], 0, labelled.width, corner[1])):
        assert np.asarray(labelled.crop(area)).min() < 128  # ink


def test_long_labels_are_wrapped_and_long_words_cut() -> None:
    font = ImageFont.load_default(16)
    lines = _wrap("one two three " + "x" * 40, 80, font).split("\n")
    assert "".join("".join(lines).split()) == "onetwothree" + "x" * 40
    assert all(font.getlength(line) <= 80 for line in lines)


def test_an_empty_sheet_and_an_empty_label() -> None:
    assert contact_sheet([]).size == (8 + 168, 8 + 168)
    assert contact_sheet([[None]], [""], [""]).width == 8 + 168 + 168
