import io
import json
import tarfile

import numpy as np
import pytest
import torch

from imprompt.emoji.styles import STYLES
from imprompt.recipes.emoji import dataset
from imprompt.recipes.emoji.augment import (
    draw_colour_orders,
    draw_mirrored,
    may_mirror,
    mirror,
    normalise,
    reorder_colours,
    shift,
    to_tensor,
)
from imprompt.recipes.emoji.captions import caption_table, full_caption, names_of
from imprompt.recipes.emoji.sources import IconSet, Names, Subject, find_drawing, normal_hexcode, slug
from imprompt.recipes.emoji.split import split_of

CAT = Subject("1F408", "cat", ("animal", "pet", "cat", "kitty", "feline"), ("cat2",), "animals-nature")
CLOCK = Subject("1F570", "mantelpiece clock", (), ("mantelpiece_clock",), "travel-places")


@pytest.fixture
def pictures():
    """Two subjects in all styles, drawn as noise."""
    num_styles = len(STYLES)
    images = np.random.default_rng(0).integers(0, 255, (2 * num_styles, 8, 8, 3), dtype=np.uint8)
    return dataset.EmojiPictures(
        images=images,
        styles=np.repeat(np.arange(num_styles), 2),
        subject_indices=np.tile(np.arange(2), num_styles),
        subjects=(CAT, CLOCK),
    )


def test_the_split_is_a_function_of_seed_subject_and_style():
    codes = [f"{number:X}" for number in range(0x1F300, 0x1F300 + 2000)]
    splits = {(code, style.name): split_of(code, style.name) for code in codes for style in STYLES}
    assert splits == {key: split_of(*key) for key in splits}
    held_out = {code for (code, _), split in splits.items() if split == "held_out_subject"}
    assert all(splits[code, style.name] == "held_out_subject" for code in held_out for style in STYLES)
    assert len(held_out) / len(codes) == pytest.approx(0.05, abs=0.015)
    rest = [split for (code, _), split in splits.items() if code not in held_out]
    assert rest.count("held_out_pair") / len(rest) == pytest.approx(0.10, abs=0.01)


@pytest.mark.parametrize(
    ("hexcode", "style", "split"),
    [
        ("1F34E", "noto", "train"),
        ("1F418", "noto", "held_out_subject"),
        ("1F418", "blob", "held_out_subject"),
        ("1F680", "twemoji", "held_out_pair"),
        ("1F680", "noto", "train"),
    ],
)
def test_the_split_is_the_one_that_shipped_weights_were_trained_on(hexcode, style, split):
    assert split_of(hexcode, style) == split


def test_another_seed_holds_out_others():
    codes = [f"{number:X}" for number in range(0x1F300, 0x1F300 + 500)]
    first, second = ([split_of(code, "noto", seed=seed) for code in codes] for seed in (1, 2))
    assert first != second


def test_a_data_set_is_read_as_it_was_written(pictures, tmp_path):
    for number, style in enumerate(STYLES):
        chosen = pictures.styles == number
        np.savez(
            tmp_path / f"{style.name}.npz",
            images=pictures.images[chosen],
            subject_indices=pictures.subject_indices[chosen],
        )
    entries = [vars(subject) for subject in pictures.subjects]
    (tmp_path / "subjects.json").write_text(json.dumps(entries))
    read = dataset.read(tmp_path)
    assert read.subjects == pictures.subjects
    for name in ("images", "styles", "subject_indices"):
        assert np.array_equal(getattr(read, name), getattr(pictures, name))


def test_every_picture_is_in_one_split(pictures):
    parts = [pictures.split(name) for name in ("train", "held_out_subject", "held_out_pair")]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(pictures.images)))
    assert sum(held_out for _, _, held_out in dataset.counts(pictures)) == len(parts[1]) + len(parts[2])


def test_captions_name_the_subject_and_sometimes_the_style(pictures):
    table = caption_table(pictures)
    members = torch.arange(len(pictures.images)).repeat(200)
    texts, names_style = table.sample(members, torch.rand(len(members), 4, generator=torch.Generator().manual_seed(0)))
    assert float(names_style.float().mean()) == pytest.approx(0.7, abs=0.03)
    for number, text, styled in zip(members.tolist(), texts.tolist(), names_style.tolist(), strict=True):
        caption = table.texts[text]
        assert any(name in caption for name in names_of(pictures.subject_of(number)))
        assert (f"{STYLES[pictures.styles[number]].word} style" in caption) == styled
    assert table.texts[0] == ""
    assert full_caption(CAT, STYLES[0]) == "cat, noto style emoji"


def test_names_leave_out_search_words_that_the_label_holds():
    assert names_of(CAT) == ("cat", "animal", "pet", "kitty")
    assert names_of(CLOCK) == ("mantelpiece clock",)


def test_pictures_with_writing_are_never_mirrored(pictures):
    allowed = may_mirror(pictures)
    assert allowed.tolist() == [True, False] * len(STYLES)
    assert torch.equal(draw_mirrored(allowed, torch.zeros(len(allowed))), allowed)
    assert not draw_mirrored(allowed, torch.full((len(allowed),), 0.6)).any()


def test_shifted_pictures_keep_their_pixels_and_let_white_in(pictures):
    images = to_tensor(pictures)[:2]
    moved = shift(images, torch.tensor([[2, -1], [0, 0]]))
    assert torch.equal(moved[0, :, 2:, :-1], images[0, :, :-2, 1:])
    assert (moved[0, :, :2] == 255).all()
    assert (moved[0, :, :, -1] == 255).all()
    assert torch.equal(moved[1], images[1])


def test_mirror_and_colour_orders_touch_chosen_pictures_only(pictures):
    images = to_tensor(pictures)
    turned = mirror(images, torch.arange(len(images)) == 1)
    assert torch.equal(turned[1], images[1].flip(-1))
    assert torch.equal(turned[0], images[0])
    assert torch.equal(reorder_colours(images, draw_colour_orders(len(images), 0.0, torch.Generator())), images)
    orders = draw_colour_orders(len(images), 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(reorder_colours(images, orders)[3], images[3, orders[3]])


def test_bytes_become_values_between_minus_one_and_one():
    assert normalise(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def icon_tarball(folder, **files):
    path = folder / "icons.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, value in files.items():
            content = json.dumps(value).encode()
            member = tarfile.TarInfo(f"package/{name}.json")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_drawings_are_found_by_code_points_and_through_plain_aliases(tmp_path):
    icons = {
        "icons": {"cat": {"body": '<path fill="currentColor"/>'}},
        "aliases": {"kitty": {"parent": "cat"}, "flipped": {"parent": "cat", "hFlip": True}},
        "width": 32,
        "height": 32,
    }
    found = IconSet(icon_tarball(tmp_path, icons=icons, chars={"1f408-fe0f": "kitty"}))
    assert find_drawing(STYLES[0], found, CAT, names=Names(())) == "cat"
    assert find_drawing(STYLES[0], found, CLOCK, names=Names(())) is None
    assert found.resolve("flipped") is None
    assert 'fill="#000000"' in found.svg("cat") and 'viewBox="0 0 32 32"' in found.svg("cat")


def test_a_set_without_code_points_is_searched_by_names(tmp_path):
    fxemoji = next(style for style in STYLES if style.name == "fxemoji")
    drawings = {"icons": {"mantelpiececlock": {"body": ""}, "kitten": {"body": ""}}}
    found = IconSet(icon_tarball(tmp_path, icons=drawings))
    assert find_drawing(fxemoji, found, CLOCK, Names(())) == "mantelpiececlock"
    assert find_drawing(fxemoji, found, CAT, Names(())) is None
    assert find_drawing(fxemoji, found, CAT, Names([{"1F408": "kitten"}])) == "kitten"


def test_names_are_normalised():
    assert normal_hexcode("0023-fe0f-20e3") == "23-20E3"
    assert slug("Piñata & T-Rex's #1") == "pinata-and-t-rexs-hash1"
