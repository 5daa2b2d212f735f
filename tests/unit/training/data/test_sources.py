"""Every format becomes the same manifest, and says what it could not read."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from imprompt.training.data import build
from imprompt.training.data.manifest import Manifest, write_manifest
from imprompt.training.data.quarantine import read_losses
from imprompt.training.data.sources import recognise
from imprompt.training.errors import DataError
from tests.data_formats import (
    FORMATS,
    SIZES,
    caption,
    encoded,
    metadata_folder,
    overwritten,
    picture,
    row_of,
    tar_of,
    text_folder,
    write_metadata,
)

COUNT = 7


def built(source: Path, tmp_path: Path, **options: object) -> Manifest:
    return write_manifest(source, tmp_path / "out" / "manifest.parquet", **options)


def lost(manifest_path: Path) -> dict[str, str]:
    return {loss.where: loss.reason for loss in read_losses(manifest_path.with_suffix(".losses.jsonl"))}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_the_same(name: str, tmp_path: Path) -> None:
    manifest = built(FORMATS[name](tmp_path / "data", COUNT), tmp_path)
    assert len(manifest) == COUNT
    assert manifest.num_lost == 0
    assert [manifest.captions(number) for number in range(COUNT)] == [[caption(number)] for number in range(COUNT)]
    assert manifest.sizes.tolist() == [[height, width] for width, height in (SIZES * 2)[:COUNT]]
    for number in range(COUNT):
        assert manifest.image(number) == picture(number)
    assert len(set(manifest.table["sha256"].to_pylist())) == COUNT


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_told_by_content(name: str, tmp_path: Path) -> None:
    source = FORMATS[name](tmp_path / "data", 2)
    expected = {"text folder": "folder", "metadata folder": "folder", "official JSON": "official"}
    expected |= {"plain tars": "tars", "listed tars": "tars", "saved dataset": "arrow"}
    assert recognise(source).name == expected.get(name, "parquet")


def test_a_file_is_what_it_holds_whatever_its_name(tmp_path: Path) -> None:
    tar_of(tmp_path / "shard.data", {"a.png": encoded(picture(0)), "a.txt": b"one"})
    assert recognise(tmp_path / "shard.data").name == "tars"
    manifest = built(tmp_path / "shard.data", tmp_path)
    assert (manifest.captions(0), manifest.image(0)) == (["one"], picture(0))


def test_what_is_no_training_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        built(tmp_path / "nothing", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no training data that is known"):
        built(tmp_path / "empty", tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="no training data that is known"):
        built(tmp_path / "notes.txt", tmp_path)


def test_several_processes_make_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = text_folder(tmp_path / "data", COUNT)
    monkeypatch.setattr("imprompt.training.data.sources.folder.FILES_A_UNIT", 2)
    seen: list[tuple[int, int]] = []
    alone = built(source, tmp_path)
    together = write_manifest(
        source, tmp_path / "two.parquet", processes=2, on_progress=lambda done, total: seen.append((done, total))
    )
    assert alone.hash == together.hash
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    source = text_folder(tmp_path / "data", 2)

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_manifest(source, tmp_path / "out" / "m.parquet", on_progress=interrupt)
    assert not (tmp_path / "out").exists()


def test_lines_about_one_picture_are_captions_of_it(tmp_path: Path) -> None:
    folder = metadata_folder(tmp_path / "data", 2)
    lines = [
        {"file_name": "000.png", "text": "one"},
        {"file_name": "001.png", "captions": ["first", "second"]},
        {"file_name": "./000.png", "text": "another"},
    ]
    write_metadata(folder, *lines)
    manifest = built(folder, tmp_path)
    assert [manifest.captions(number) for number in range(2)] == [["one", "another"], ["first", "second"]]


def test_metadata_in_folders_below(tmp_path: Path) -> None:
    metadata_folder(tmp_path / "data" / "train", 2)
    metadata_folder(tmp_path / "data" / "val", 1)
    manifest = built(tmp_path / "data", tmp_path)
    assert manifest.table["split"].to_pylist() == ["train", "train", "validation"]
    assert manifest.sample_id(0) == "train/000.png"


def test_references_faces_and_embeddings(tmp_path: Path) -> None:
    folder = metadata_folder(tmp_path / "data", 3)
    (folder / "faces").mkdir()
    picture(9).save(folder / "faces" / "a.png")
    save_file({"embedding": torch.arange(4.0)[None]}, folder / "a.safetensors")
    np.save(folder / "b.npy", np.arange(4, dtype=np.float16))
    torch.save(np.arange(4, dtype=np.float32), folder / "c.bin")  # as the official scripts have it
    lines = [
        {"file_name": "000.png", "text": "a", "references": ["001.png", "002.png"], "id_embed_file": "a.safetensors"},
        {"file_name": "001.png", "text": "b", "face_image_file": "faces/a.png", "id_embed_file": "b.npy"},
        {"file_name": "002.png", "text": "c", "references": ["faces/a.png"], "id_embed_file": "c.bin", "group": "g"},
    ]
    write_metadata(folder, *lines)
    manifest = built(folder, tmp_path)
    assert manifest.split("reference").tolist() == [3]
    assert manifest.image(3) == picture(9)
    assert [manifest.reference_ids(number, "explicit") for number in range(4)] == [[1, 2], [3], [3], [3]]
    assert [manifest.reference_ids(number, "face") for number in range(3)] == [[0], [3], [2]]
    for number in range(3):
        assert torch.equal(manifest.id_embed(number), torch.arange(4.0))
    assert manifest.id_embed(3) is None


def test_a_reference_that_is_not_there_is_told(tmp_path: Path) -> None:
    folder = metadata_folder(tmp_path / "data", 1)
    (folder / "metadata.jsonl").write_text('{"file_name": "000.png", "text": "a", "references": ["gone.png"]}')
    manifest = built(folder, tmp_path, bad_samples=0.5)
    assert manifest.reference_ids(0, "explicit") == [0]
    assert list(lost(manifest.path)) == ["gone.png"]


def test_the_official_json_with_names_from_the_root_on(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture(0).save(folder / "a.png")
    (tmp_path / "list.json").write_text(json.dumps([{"image_file": str(folder / "a.png"), "text": "one"}]))
    assert built(tmp_path / "list.json", tmp_path).sample_id(0) == "pictures/a.png"
    assert built(tmp_path / "list.json", tmp_path, root=folder).sample_id(0) == "a.png"


@pytest.mark.parametrize("name", ["../outside.png", "/etc/hostname", "a/../../outside.png", "..\\outside.png"])
def test_names_that_lead_out_of_the_data_are_refused(name: str, tmp_path: Path) -> None:
    folder = metadata_folder(tmp_path / "data", 1)
    picture(0).save(tmp_path / "outside.png")
    (folder / "metadata.jsonl").write_text(
        json.dumps({"file_name": name, "text": "a"}) + '\n{"file_name": "000.png", "text": "b"}'
    )
    manifest = built(folder, tmp_path, bad_samples=0.5)
    assert [manifest.sample_id(number) for number in range(len(manifest))] == ["000.png"]
    assert list(lost(manifest.path).values()) == ["the name leads out of the data's folder, or is no text"]


def hostile() -> dict[str, bytes]:
    """Files that call themselves pictures."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    huge = struct.pack(">IIBBBBB", 100_000, 100_000, 1, 0, 0, 0, 0)
    return {
        "empty": b"",
        "text": b"hello",
        "script": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "bomb": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", huge) + chunk(b"IEND", b""),
        "half a header": encoded(picture(0))[:20],
        "tiff": encoded(picture(0), "TIFF"),
    }


@pytest.mark.parametrize("kind", hostile())
@pytest.mark.parametrize("name", ["folder", "tar", "parquet"])
def test_hostile_pictures_are_told_and_counted(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    good, bad = encoded(picture(0)), hostile()[kind]
    if name == "folder":
        (tmp_path / "data" / "good.png").write_bytes(good)
        (tmp_path / "data" / "bad.png").write_bytes(bad)
    elif name == "tar":
        tar_of(tmp_path / "data" / "0.tar", {"good.png": good, "bad.png": bad})
    else:
        pq.write_table(pa.table({"image": [good, bad], "id": ["good", "bad"]}), tmp_path / "data" / "0.parquet")
    manifest = built(tmp_path / "data", tmp_path, bad_samples=0.5)
    assert len(manifest) == manifest.num_lost == 1
    assert manifest.image(0) == picture(0)
    with pytest.raises(DataError, match="has lost 1 of 2 samples, and 1.0% may be lost"):
        built(tmp_path / "data", tmp_path)


def test_the_upright_size_counts(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "data").mkdir()
    for suffix in ("jpg", "png", "webp"):
        picture(0).save(tmp_path / "data" / f"a.{suffix}", exif=exif)
    manifest = built(tmp_path / "data", tmp_path)
    for number in range(3):
        assert manifest.sizes[number].tolist() == [40, 30]
        assert manifest.image(number).size == (30, 40)


def test_a_list_beside_a_tar_spares_opening_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FORMATS["listed tars"](tmp_path / "data", COUNT)

    def opened(*_arguments: object) -> None:
        raise AssertionError("a picture was opened")

    monkeypatch.setattr("imprompt.training.data.sources.tars.read_picture", opened)
    assert len(built(source, tmp_path)) == COUNT


def test_a_camera_on_its_side_is_looked_at_all_the_same(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(picture(0), exif=exif)
    (tmp_path / "data").mkdir()
    tar_of(tmp_path / "data" / "0.tar", {"000000000.png": content})
    row = {**row_of(0, content), "exif": '{"Image Orientation": "Rotated 90 CW"}'}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "data" / "0.parquet")
    assert built(tmp_path / "data", tmp_path).sizes.tolist() == [[40, 30]]


def test_an_edited_file_is_no_silent_surprise(tmp_path: Path) -> None:
    source = text_folder(tmp_path / "data", 2)
    manifest = built(source, tmp_path)
    (source / "000.png").write_bytes(b"short")
    with pytest.raises(Exception, match="changed since the manifest was built"):
        manifest.image(0)
    (source / "000.png").unlink()
    with pytest.raises(Exception, match="cannot be read"):
        manifest.image(0)


def test_damaged_pixels_are_told_when_they_are_read(tmp_path: Path) -> None:
    source = FORMATS["plain tars"](tmp_path / "data", 2)
    manifest = built(source, tmp_path)
    place = manifest.table["offset"][0].as_py() + 40
    overwritten(source / manifest.table["source"][0].as_py(), place, bytes(30))
    with pytest.raises(Exception, match="00000/000000000 of manifest.parquet"):
        manifest.image(0)
    assert manifest.image(1) == picture(1)


def test_records_with_anything_in_them(tmp_path: Path) -> None:
    folder = metadata_folder(tmp_path / "data", 1)
    strange = ["\ud800", "", 7, -1.5, 10**40, None, True, [], {}, [None, 3, "x"], {"a": 1}, "x" * 10_000, "\0"]
    names = ("text", "captions", "references", "group", "face_image_file", "id_embed_file", "split", "sample_id")
    lines = [{"file_name": "000.png", "text": "a", name: value} for name in names for value in strange]
    for line in lines:
        write_metadata(folder, line)
        manifest = built(folder, tmp_path, bad_samples=1.0)
        assert (len(manifest), manifest.image(0)) == (1, picture(0))
    write_metadata(folder, *lines)
    assert len(built(folder, tmp_path, bad_samples=1.0)) == 1


def test_a_file_s_name_that_is_no_text(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "data", 1)
    (folder / os.fsdecode(b"\xff.png")).write_bytes(encoded(picture(0)))
    manifest = built(folder, tmp_path, bad_samples=0.5)
    assert (len(manifest), manifest.num_lost) == (1, 1)
    assert list(lost(manifest.path)) == ["\udcff.png"]


def test_folders_that_link_in_a_circle(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "data", 2)
    (folder / "again").symlink_to(folder)
    elsewhere = text_folder(tmp_path / "elsewhere", 1)
    (folder / "linked").symlink_to(elsewhere)
    manifest = built(folder, tmp_path)
    assert [manifest.sample_id(number) for number in range(3)] == ["000.png", "001.png", "linked/000.png"]


def test_loose_pictures_beside_tars_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = FORMATS["plain tars"](tmp_path / "data", 2)
    assert len(built(source, tmp_path)) == 2
    assert not caplog.records
    picture(0).save(source / "loose.png")
    assert len(built(source, tmp_path)) == 2
    assert "singly are passed over" in caplog.text


def test_two_samples_of_one_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [encoded(picture(0))] * 2, "id": ["a", "a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="Two samples are called 'a'"):
        built(tmp_path / "a.parquet", tmp_path)


def test_all_that_is_lost_has_a_place(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\nno json\n[1]\n{"file_name": 3}\n\n')
    parts = [build.read_unit(unit) for unit in recognise(tmp_path).units(tmp_path, tmp_path)]
    losses = {loss.where for _, losses in parts for loss in losses}
    assert losses == {"a.png", *(f"metadata.jsonl, line {number}" for number in (2, 3, 4))}


@pytest.mark.parametrize("files", [3, [], [1], [{"name": "a"}], [{"filename": 4}]])
def test_a_saved_data_set_whose_list_is_damaged(files: object, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": files}))
    with pytest.raises(DataError, match=r"state.json' does not list the data set's files"):
        recognise(tmp_path).units(tmp_path, tmp_path)


def test_a_root_that_the_data_does_not_lie_in(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    tar_of(tmp_path / "data" / "0.tar", {"a.png": encoded(picture(0), "PNG")})
    with pytest.raises(DataError, match="does not lie in the root"):
        built(tmp_path / "data", tmp_path, root=tmp_path / "elsewhere")


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open", "shut"):
        (tmp_path / name).mkdir()
        picture(0).save(tmp_path / name / "a.png")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"shut' cannot be read \(Permission denied\)"):
        built(tmp_path, tmp_path)
