"""What a check finds, and what it leaves alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from imprompt.training.config import DataConfig
from imprompt.training.data.check import Finding, Report, check, describe, estimated_tokens, worst_sheet
from imprompt.training.data.gallery import gallery
from imprompt.training.data.looks import Look, fingerprint, look_at_all, near_duplicates
from imprompt.training.data.manifest import Manifest, write_manifest
from tests.data_formats import FORMATS, overwritten, picture, text_folder, write_metadata

CONFIG = DataConfig(resolution=32, bucket_step=8)


def checked(folder: Path, config: DataConfig = CONFIG, batch_size: int = 1) -> tuple[Manifest, Report]:
    manifest = write_manifest(folder, folder.parent / "m.parquet", bad_samples=1.0)
    return manifest, check(manifest, look_at_all(manifest), config, batch_size)


def found(report: Report) -> dict[str, Finding]:
    return {finding.name: finding for finding in report.findings}


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_wrong_with_what_is_right(name: str, tmp_path: Path) -> None:
    source = FORMATS[name](tmp_path / "data", 8)
    manifest = write_manifest(source, tmp_path / "m.parquet")
    report = check(manifest, look_at_all(manifest), CONFIG, 1)
    wrong = {"smaller than its bucket", "more than a third is cut away"}
    assert set(found(report)) <= wrong
    assert report.passed
    assert sum(fill.samples for fill in report.fills) == 8


def test_unreadable_pictures_count_against_the_budget(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "data", 8)
    manifest = write_manifest(folder, tmp_path / "m.parquet")
    overwritten(folder / "003.png", 45, bytes(20))
    report = check(manifest, look_at_all(manifest), CONFIG, 1)
    assert found(report)["unreadable"].samples == (3,)
    assert (report.num_bad, report.passed) == (1, False)
    assert check(manifest, look_at_all(manifest), CONFIG.model_copy(update={"bad_samples": 0.125}), 1).passed
    assert "1 of 8 samples are bad (12.50%), ABOVE the budget of 1.00%." in describe(report)


def test_what_was_lost_before_counts_too(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "data", 4)
    (folder / "bad.jpg").write_bytes(b"no picture")
    _, report = checked(folder)
    assert (report.num_bad, report.num_lost, report.passed) == (1, 1, False)
    assert "lost when the manifest was made" in describe(report)
    assert "bad.jpg" in report.lost


def test_captions(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "data", 4)
    (folder / "001.txt").unlink()
    (folder / "002.txt").write_text("word " * 80)
    _, report = checked(folder)
    assert found(report)["no caption"].samples == (1,)
    assert found(report)["caption longer than 77 tokens"].samples == (2,)


def test_tokens_of_known_captions() -> None:
    """What CLIP's tokenizer makes of them, its two marks included."""
    assert estimated_tokens("a photo of a cat") == 7
    assert estimated_tokens("a dog, running.") == 7
    assert estimated_tokens("2024") == 6
    assert estimated_tokens("") == 2


def test_duplicates_and_near_duplicates(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(12):
        picture(number, (64, 64)).save(folder / f"{number:02}.png")
    picture(3, (64, 64)).save(folder / "copy.png")
    picture(5, (96, 96)).save(folder / "larger.jpg", quality=70)
    manifest, report = checked(folder)
    numbers = {manifest.sample_id(number): number for number in range(len(manifest))}
    assert found(report)["same bytes as another"].samples == (numbers["copy.png"],)
    assert set(found(report)["looks like another"].samples) == {numbers["05.png"], numbers["larger.jpg"]}


def smooth(number: int) -> Image.Image:
    values = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((128, 96), Image.Resampling.BICUBIC)


def looks_of(*images: Image.Image) -> list[Look]:
    return [Look("", (image.height, image.width), *fingerprint(image)) for image in images]


def test_copies_are_told_from_others_among_many() -> None:
    originals = [smooth(number) for number in range(300)]
    copies = [
        originals[7].resize((64, 48)),
        originals[100].crop((1, 1, 127, 95)),
        ImageEnhance.Brightness(originals[250]).enhance(1.02),
    ]
    pairs = near_duplicates(looks_of(*originals, *copies))
    assert pairs == [(7, 300), (100, 301), (250, 302)]


def test_plain_pictures_are_alike_only_in_their_colour() -> None:
    red, also_red, blue = (Image.new("RGB", (40, 40), colour) for colour in ("red", "#fd0100", "blue"))
    assert near_duplicates(looks_of(red, blue, also_red)) == [(0, 2)]


def test_a_thousand_plain_pictures_are_no_matter_of_a_million_pairs() -> None:
    pairs = near_duplicates([Look("", (8, 8))] * 1000)
    assert {number for pair in pairs for number in pair} == set(range(1000))
    assert len(pairs) < 20_000


def test_unreadable_pictures_are_like_none() -> None:
    assert near_duplicates([Look("broken")] * 3) == near_duplicates([]) == []


def test_small_and_cut_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, size in {"a": (16, 16), "b": (64, 64), "c": (200, 40)}.items():
        picture(ord(name), size).save(folder / f"{name}.png")
    _, report = checked(folder)
    assert found(report)["smaller than its bucket"].samples == (0,)
    assert "a.png is scaled up 2 times" in found(report)["smaller than its bucket"].example
    assert found(report)["more than a third is cut away"].samples == (2,)
    assert report.passed


def test_face_embeddings(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(5):
        picture(number).save(folder / f"{number}.png")
        torch.save(torch.ones(1, 512 if number != 2 else 256), folder / f"{number}.bin")
    (folder / "3.bin").write_bytes(b"no tensor")
    lines = [{"file_name": f"{number}.png", "text": "x", "id_embed_file": f"{number}.bin"} for number in range(5)]
    del lines[4]["id_embed_file"]
    write_metadata(folder, *lines)
    _, report = checked(folder)
    assert found(report)["face embedding unreadable"].samples == (3,)
    assert found(report)["face embedding of another length"].samples == (2,)
    assert found(report)["no face embedding"].samples == (4,)
    assert report.num_bad == 2


def test_references_that_are_missing(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(4):
        picture(number).save(folder / f"{number}.png")
    lines = [{"file_name": f"{number}.png", "text": "x", "group": "ab"[number == 3]} for number in range(4)]
    lines[1]["references"] = ["0.png"]
    write_metadata(folder, *lines)
    of_groups, of_names = (
        found(checked(folder, CONFIG.model_copy(update={"references": mode}))[1]) for mode in ("group", "explicit")
    )
    assert of_groups["alone in its group, so its own reference"].samples == (3,)
    assert of_names["names no reference, so its own reference"].samples == (0, 2, 3)
    assert dict(checked(folder)[1].facts)["groups"] == "2 of 1 to 3 samples, 1 of them of one"


def test_buckets_that_fill_no_batch(tmp_path: Path) -> None:
    _, report = checked(text_folder(tmp_path / "data", 9), batch_size=3)
    assert [(fill.width, fill.height, fill.samples, fill.batches) for fill in report.fills] == [
        (24, 40, 2, 2 / 3),
        (32, 32, 2, 2 / 3),
        (40, 24, 5, 5 / 3),
    ]
    assert len(found(report)["in a bucket smaller than a batch"].samples) == 4


def test_pictures_of_another_size_than_their_list_says(tmp_path: Path) -> None:
    source = FORMATS["listed tars"](tmp_path / "data", 4)
    import pyarrow.parquet as pq

    table = pq.read_table(source / "00000.parquet")
    index = table.schema.get_field_index("width")
    pq.write_table(table.set_column(index, "width", table["height"]), source / "00000.parquet")
    manifest = write_manifest(source, tmp_path / "m.parquet")
    report = check(manifest, look_at_all(manifest), CONFIG, 1)
    assert found(report)["size not as the list tells"].samples == (0, 1)
    assert "is 40 x 30, not 30 x 30" in found(report)["size not as the list tells"].example


def test_sheets(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "data", 4)
    (folder / "001.txt").unlink()
    manifest, report = checked(folder)
    overwritten(folder / "003.png", 45, bytes(20))
    report = check(manifest, look_at_all(manifest), CONFIG, 1)
    assert worst_sheet(manifest, report).height > worst_sheet(manifest, checked(folder)[1]).height / 2
    sheet = gallery(manifest, CONFIG.model_copy(update={"num_references": 2}), num=3, split="train", seed=0)
    assert sheet.size == (8 + 4 * 168, sheet.height)
    assert sheet == gallery(manifest, CONFIG.model_copy(update={"num_references": 2}), num=3, split="train", seed=0)
    assert gallery(manifest, CONFIG, num=3, split="none", seed=0).width > 0
