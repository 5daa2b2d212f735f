"""The manifest as a file: whole, hashed by content, found again, sent to other processes."""

import json
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from imprompt.training.data.embeds import read_embed
from imprompt.training.data.manifest import Manifest, is_manifest, open_manifest, write_manifest
from imprompt.training.data.table import SCHEMA, Sample, content_hash, table_of, with_schema
from imprompt.training.errors import DataError
from tests.data_formats import metadata_folder, picture, text_folder


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_manifest(text_folder(tmp_path / "data", 6), tmp_path / "manifest.parquet")


def rows(count: int) -> list[Sample]:
    return [
        Sample(f"s{number}", "a", captions=("x",) * (number % 3), references=("é",), width=number)
        for number in range(count)
    ]


def test_the_hash_is_of_the_content_alone(tmp_path: Path) -> None:
    table = table_of(rows(10))
    known = content_hash(table)
    assert content_hash(pa.concat_tables([table.slice(0, 3), table.slice(3, 0), table.slice(3)])) == known
    pq.write_table(table, tmp_path / "a.parquet", compression="gzip", row_group_size=3)
    assert Manifest.read(tmp_path / "a.parquet").hash == known
    assert content_hash(table.take(pa.array([1, 0, *range(2, 10)]))) != known
    for field in ("width", "captions", "sample_id"):
        changed = [
            vars(row) | ({field: {"width": 99, "captions": ("xx",)}.get(field, "new")} if not row.width else {})
            for row in rows(10)
        ]
        assert content_hash(table_of(Sample(**row) for row in changed)) != known


def test_captions_that_are_cut_elsewhere_are_others() -> None:
    one, other = (table_of([Sample("a", "b", captions=captions)]) for captions in (("ab", "c"), ("a", "bc")))
    assert content_hash(one) != content_hash(other)


def test_it_moves_with_its_pictures(manifest: Manifest, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "data", tmp_path / "elsewhere" / "data")
    shutil.copyfile(manifest.path, tmp_path / "elsewhere" / "manifest.parquet")
    shutil.rmtree(tmp_path / "data")
    moved = Manifest.read(tmp_path / "elsewhere" / "manifest.parquet")
    assert (moved.hash, moved.image(2)) == (manifest.hash, picture(2))


def test_it_moves_without_its_pictures(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    moved = Manifest.read(shutil.move(manifest.path, tmp_path / "a" / "b" / "m.parquet"))
    assert moved.image(1) == picture(1)
    shutil.move(tmp_path / "data", tmp_path / "pictures")
    again = Manifest.read(tmp_path / "a" / "b" / "m.parquet", root=tmp_path / "pictures")
    assert (again.image(1), again.hash) == (picture(1), moved.hash)


def test_it_is_sent_by_its_path(manifest: Manifest) -> None:
    sent = pickle.dumps(manifest)
    assert len(sent) < 1000
    assert pickle.loads(sent).hash == manifest.hash


def test_worker_processes_read_pictures(manifest: Manifest) -> None:
    import multiprocessing

    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        assert list(pool.map(manifest.image, range(6))) == [picture(number) for number in range(6)]


def test_what_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no manifest \(.*nothing.*make one with imprompt data build"):
        Manifest.read(tmp_path / "nothing.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(DataError, match="is no manifest"):
        Manifest.read(tmp_path / "text.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has no column 'sample_id'"):
        Manifest.read(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="of the wrong kind.*sample_id: string"):
        with_schema(pa.table({"sample_id": ["a"], "source": ["b"], "width": ["wide"]}), "a")


def test_a_table_of_ones_own_is_a_manifest(tmp_path: Path) -> None:
    picture(3).save(tmp_path / "x.png")
    table = pa.table({"sample_id": ["a"], "source": ["x.png"], "captions": [["one"]], "more": [3]})
    pq.write_table(table, tmp_path / "own.parquet")
    manifest = Manifest.read(tmp_path / "own.parquet")
    assert is_manifest(tmp_path / "own.parquet")
    assert (manifest.image(0), manifest.captions(0)) == (picture(3), ["one"])
    assert manifest.table.schema.names == SCHEMA.names


def test_a_table_without_sizes_has_no_buckets(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sample_id": ["a"], "source": ["x.png"]}), tmp_path / "own.parquet")
    with pytest.raises(DataError, match="has no size of 'a'"):
        _ = Manifest.read(tmp_path / "own.parquet").sizes


def test_a_folder_s_name_is_no_column(tmp_path: Path) -> None:
    manifest = write_manifest(text_folder(tmp_path / "data", 2), tmp_path / "split=7" / "m.parquet")
    assert len(manifest.split("train")) == 1


def test_a_source_or_a_manifest_will_do(manifest: Manifest, tmp_path: Path) -> None:
    assert open_manifest(manifest.path, tmp_path / "new.parquet").path == manifest.path
    assert not (tmp_path / "new.parquet").exists()
    assert open_manifest(tmp_path / "data", tmp_path / "new.parquet").hash == manifest.hash
    assert not is_manifest(tmp_path / "data" / "000.png")


def test_the_split_is_drawn_by_hash(tmp_path: Path) -> None:
    """A sample stays on its side when others come; the same bytes under two names are on one side."""
    folder = text_folder(tmp_path / "data", 60)
    shutil.copyfile(folder / "000.png", folder / "copy.png")
    before = write_manifest(folder, tmp_path / "a.parquet", validation=0.2)
    for number in range(100, 140):
        picture(number).save(folder / f"{number}.png")
    after = write_manifest(folder, tmp_path / "b.parquet", validation=0.2)
    held_out = [{one.sample_id(number) for number in one.split("validation").tolist()} for one in (before, after)]
    assert held_out[0] == held_out[1] & {before.sample_id(number) for number in range(len(before))}
    assert 5 < len(held_out[0]) < 20
    assert ("000.png" in held_out[0]) == ("copy.png" in held_out[0])
    assert len(after.split("train")) + len(after.split("validation")) == len(after)


def test_small_and_given_splits(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "data", 3)
    assert len(write_manifest(folder, tmp_path / "a.parquet").split("validation")) == 1
    assert len(write_manifest(folder, tmp_path / "a.parquet", validation=0.0).split("validation")) == 0
    one = text_folder(tmp_path / "one", 1)
    assert len(write_manifest(one, tmp_path / "a.parquet").split("train")) == 1
    given = metadata_folder(tmp_path / "given", 3)
    lines = [json.loads(line) for line in (given / "metadata.jsonl").read_text().splitlines()]
    lines[1]["split"] = "val"
    (given / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    manifest = write_manifest(given, tmp_path / "a.parquet", validation=0.9)
    assert manifest.split("validation").tolist() == [1]
    assert manifest.split("train").tolist() == [0, 2]


def test_folders_may_be_groups(tmp_path: Path) -> None:
    for name in ("a", "b"):
        text_folder(tmp_path / "data" / name, 2)
    manifest = write_manifest(tmp_path / "data", tmp_path / "m.parquet", group_by_folder=True)
    assert manifest.table["group"].to_pylist() == ["a", "a", "b", "b"]
    assert [manifest.reference_ids(number, "group") for number in range(4)] == [[1], [0], [3], [2]]
    assert [manifest.reference_ids(number, "self") for number in range(4)] == [[0], [1], [2], [3]]


def test_nothing_is_written_when_too_much_is_lost(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "data", 9)
    (folder / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"has lost 1 of 10 samples.*'bad.png'.*m.losses.jsonl"):
        write_manifest(folder, tmp_path / "m.parquet")
    assert not (tmp_path / "m.parquet").exists()
    assert (tmp_path / "m.losses.jsonl").is_file()
    manifest = write_manifest(folder, tmp_path / "m.parquet", bad_samples=0.1)
    assert (len(manifest), manifest.num_lost) == (9, 1)


@pytest.mark.parametrize("kind", ["missing", "pickle", "two axes", "integers", "nan", "large", "objects", "text"])
def test_what_is_no_face_embedding(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> object:
            return canary.touch, ()

    match kind:
        case "pickle":
            path.write_bytes(pickle.dumps(Evil()))
        case "two axes":
            torch.save(torch.ones(2, 3), path)
        case "integers":
            torch.save(torch.ones(4, dtype=torch.long), path)
        case "nan":
            torch.save(torch.tensor([1.0, float("nan")]), path)
        case "large":
            torch.save(torch.ones(2**19), path)
        case "objects":
            with path.open("wb") as file:
                np.save(file, np.array([Evil()], dtype=object), allow_pickle=True)
        case "text":
            path.write_text("hello")
    with pytest.raises(DataError, match="a.bin"):
        read_embed(path)
    assert not canary.exists()
