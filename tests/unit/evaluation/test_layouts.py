"""How pictures lie on disk, which cases they make, and what is drawn of them."""

import json
from pathlib import Path

import pytest
from PIL import Image

from imprompt.evaluation.errors import EvaluationError
from imprompt.evaluation.items import items_of, share_of
from imprompt.evaluation.layouts import (
    read_coco,
    read_dreambench_plus,
    read_folder,
    read_style_content,
    read_subjects,
)
from imprompt.evaluation.metrics.table import metrics_named
from imprompt.evaluation.protocols import PROTOCOLS, protocol_named


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)
    return path


def test_a_folder_is_followed_alone_and_compared_with_its_captions(tmp_path: Path) -> None:
    picture(tmp_path / "b.png"), picture(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("a red square\n")
    first, second = read_folder(tmp_path, ())
    assert (first.subject, first.prompt, first.caption) == ("a", "", "a red square")
    assert (second.subject, second.caption) == ("b", "")
    with_prompts = read_folder(tmp_path, ("on the moon", "in snow"))
    assert [(case.subject, case.prompt, case.caption) for case in with_prompts[:2]] == [
        ("a", "on the moon", "on the moon"),
        ("a", "in snow", "in snow"),
    ]


def test_subjects_name_themselves_in_prompts(tmp_path: Path) -> None:
    picture(tmp_path / "grey_sloth" / "1.png"), picture(tmp_path / "grey_sloth" / "0.png")
    (case,) = read_subjects(tmp_path, ("a {subject} in snow",))
    assert (case.prompt, case.references[0].name) == ("a grey sloth in snow", "0.png")


def test_dreambench_plus_pairs_texts_with_pictures_of_their_name(tmp_path: Path) -> None:
    for name, words in {"0_0": "a cat in snow", "0_1": "a cat in snow", "1_0": "a cat as a statue"}.items():
        picture(tmp_path / "src_image" / "live_00" / f"{name}.jpg")
        text = tmp_path / "text" / "live_00" / f"{name}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(words + "\n")
    cases = read_dreambench_plus(tmp_path, ())
    assert [(case.prompt_name, case.references[0].name, case.prompt) for case in cases] == [
        ("p0", "0_0.jpg", "a cat in snow"), ("p1", "1_0.jpg", "a cat as a statue"),
    ]  # fmt: skip
    (tmp_path / "src_image" / "live_00" / "1_0.jpg").unlink()
    with pytest.raises(EvaluationError, match="no picture of its name"):
        read_dreambench_plus(tmp_path, ())


def test_every_style_meets_every_content(tmp_path: Path) -> None:
    picture(tmp_path / "style" / "ink.png"), picture(tmp_path / "style" / "oil.png")
    (tmp_path / "content.txt").write_text("a cat\n\na dog\n")
    cases = read_style_content(tmp_path, ())
    assert [(case.subject, case.caption) for case in cases] == [
        ("ink", "a cat"), ("ink", "a dog"), ("oil", "a cat"), ("oil", "a dog"),
    ]  # fmt: skip
    assert all(case.style == case.references[0] for case in cases)


def test_coco_takes_the_caption_with_the_lowest_number(tmp_path: Path) -> None:
    picture(tmp_path / "val2017" / "0007.jpg")
    said = {
        "images": [{"id": 7, "file_name": "0007.jpg"}],
        "annotations": [
            {"id": 9, "image_id": 7, "caption": "second"},
            {"id": 3, "image_id": 7, "caption": " first "},
        ],
    }
    file = tmp_path / "annotations" / "captions_val2017.json"
    file.parent.mkdir()
    file.write_text(json.dumps(said))
    (case,) = read_coco(tmp_path, ())
    assert (case.subject, case.prompt, case.caption) == ("7", "", "first")
    said["annotations"][0]["caption"] = None
    for damaged in ({}, said):
        file.write_text(json.dumps(damaged))
        with pytest.raises(EvaluationError, match="not COCO's"):
            read_coco(tmp_path, ())
    file.write_text(json.dumps({"images": [], "annotations": []}))
    with pytest.raises(EvaluationError, match="lists no images"):
        read_coco(tmp_path, ())


def test_what_begins_with_a_dot_is_no_picture_no_text_and_no_subject(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "0.png"), picture(tmp_path / ".thumbnails" / "0.png")
    (tmp_path / "cat" / "._0.png").write_bytes(b"a Mac's own")
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"a Mac's own")
    assert [case.subject for case in read_folder(tmp_path / "cat", ())] == ["0"]
    assert [case.references[0].name for case in read_subjects(tmp_path, ("a {subject}",))] == ["0.png"]
    picture(tmp_path / "src_image" / "live" / "0_0.jpg")
    for name in ("live/0_0.txt", "live/._0_0.txt", ".hidden/0_0.txt"):
        text = tmp_path / "text" / name
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text("a cat")
    assert [(case.subject, case.prompt_name) for case in read_dreambench_plus(tmp_path, ())] == [("live", "p0")]
    (tmp_path / "cat" / "0.png").unlink()
    with pytest.raises(EvaluationError, match="holds no pictures"):
        read_folder(tmp_path / "cat", ())


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda folder: read_folder(folder, ()), "holds no pictures"),
        (lambda folder: read_folder(folder / "none", ()), "there is no"),
        (lambda folder: read_subjects(folder, ()), "has no prompts"),
        (lambda folder: read_subjects(folder, ("a {subject}",)), "holds no folders"),
        (lambda folder: read_subjects(picture(folder / "cat" / "0.png").parents[1], ("a {}",)), "has the place '{}'"),
        (lambda folder: read_folder(picture(folder / "0.png").parent, ("a {subject}",)), "has the place '{subject}'"),
        (lambda folder: read_style_content(folder, ()), "content.txt"),
        (lambda folder: read_style_content(folder, ("a {subject}",)), "has the place '{subject}'"),
        (lambda folder: read_dreambench_plus(folder, ()), "there is no"),
        (lambda folder: read_coco(folder, ()), "captions_val2017.json"),
    ],
)
def test_wrong_folders_are_told_in_a_sentence(read, words: str, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=words):
        read(tmp_path)


def test_two_pictures_of_one_name_are_no_subject(tmp_path: Path) -> None:
    picture(tmp_path / "style" / "a.png"), picture(tmp_path / "style" / "a.jpg")
    (tmp_path / "content.txt").write_text("a cat")
    with pytest.raises(EvaluationError, match=r"'a\.jpg' and 'a\.png' in .* rename one"):
        read_folder(tmp_path / "style", ())
    with pytest.raises(EvaluationError, match="rename one"):
        read_style_content(tmp_path, ())


def test_texts_that_cannot_be_read_and_files_in_place_of_folders_are_told(tmp_path: Path) -> None:
    image = picture(tmp_path / "style" / "a.png")
    (tmp_path / "content.txt").write_text("\n \n")
    with pytest.raises(EvaluationError, match=r"content\.txt' is empty"):
        read_style_content(tmp_path, ())
    image.with_suffix(".txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(EvaluationError, match=r"a\.txt' is no text in UTF-8"):
        read_folder(tmp_path / "style", ())
    for read in (read_folder, read_subjects):
        with pytest.raises(EvaluationError, match="is a file"):
            read(image, ("a cat",))


def test_shares_are_the_whole_and_names_are_unique(tmp_path: Path) -> None:
    picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    items = items_of(read_folder(tmp_path, ("x", "y")), scales=(0.5, 1.0), num_seeds=2, seed=3, controls=True)
    assert len(items) == 4 * (2 * 2 + 2 + 1)
    shares = [item for index in range(3) for item in share_of(items, index, 3)]
    assert {item.key for item in shares} == {item.key for item in items} and len(shares) == len(items)
    assert len({item.key for item in items}) == len(items)
    assert {item.seed for item in items if item.arm == "adapter"} == {3, 4}


def test_the_text_alone_stands_for_an_adapter_at_weight_0_where_both_are_told_the_same(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")

    def series(prompts: tuple[str, ...], scales: tuple[float, ...], controls: bool = True) -> set[tuple[str, float]]:
        items = items_of(read_folder(tmp_path, prompts), scales=scales, num_seeds=1, seed=0, controls=controls)
        return {(item.arm, item.scale) for item in items if item.arm != "copy"}

    assert series(("in snow",), (0.0, 1.0)) == {("text", 0.0), ("adapter", 1.0)} == series((), (0.0, 1.0))
    assert series(("in snow",), (0.0, 1.0), controls=False) == {("adapter", 0.0), ("adapter", 1.0)}
    assert series(("in snow",), (0.0,)) == {("text", 0.0), ("adapter", 0.0)}  # else there is no adapter to judge
    (tmp_path / "a.txt").write_text("a caption, which only the text alone is told")
    assert series((), (0.0, 1.0)) == {("text", 0.0), ("adapter", 0.0), ("adapter", 1.0)}


def test_every_protocol_measures_what_there_is() -> None:
    for protocol in PROTOCOLS.values():
        assert metrics_named(protocol.metrics)
    with pytest.raises(EvaluationError, match="did you mean 'dreambench'"):
        protocol_named("dreambensch")
    with pytest.raises(EvaluationError, match="did you mean 'clip_i'"):
        metrics_named(["clipi"])
