"""Tars that are damaged: what can be read is read, what cannot is counted, and nothing ends in silence."""

import io
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imprompt.training.data.build import read_unit
from imprompt.training.data.manifest import write_manifest
from imprompt.training.data.sources import recognise
from imprompt.training.data.sources.tarwalk import BLOCK, Damage, Member, walk
from imprompt.training.data.table import Loss
from tests.data_formats import header_places, listed_tars, overwritten, plain_tars, tar_of

COUNT = 24
SHARD = COUNT // 2


def results(source: Path) -> tuple[list[str], list[Loss]]:
    parts = [read_unit(unit) for unit in recognise(source).units(source, source)]
    samples = [name for table, _ in parts for name in table["sample_id"].to_pylist()]
    return samples, [loss for _, losses in parts for loss in losses]


def flip_sum(path: Path) -> None:
    overwritten(path, list(header_places(path))[12] + 148, b"9999999\0")


def scribble(path: Path) -> None:
    overwritten(path, list(header_places(path))[12], random.Random(0).randbytes(BLOCK))


def zero_one(path: Path) -> None:
    overwritten(path, list(header_places(path))[12], bytes(BLOCK))


def zero_many(path: Path) -> None:
    places = list(header_places(path))
    overwritten(path, places[12], bytes(places[18] - places[12]))


def claim_more(path: Path) -> None:
    """A length that reaches beyond the next header, with the sum left as it was."""
    overwritten(path, list(header_places(path))[12] + 124, b"00000777000\0")


def cut_in_a_picture(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(list(header_places(path))[12] + BLOCK + 20)


def cut_between_members(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(list(header_places(path))[12])


def cut_in_a_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(list(header_places(path))[12] + 100)


def first_header(path: Path) -> None:
    overwritten(path, 0, random.Random(1).randbytes(BLOCK))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def only_zeros(path: Path) -> None:
    path.write_bytes(bytes(10_240))


def junk(path: Path) -> None:
    path.write_bytes(random.Random(2).randbytes(9000))


DAMAGES: dict[Callable[[Path], None], int] = {
    flip_sum: SHARD - 1,
    scribble: SHARD - 1,
    zero_one: SHARD - 1,
    zero_many: SHARD - 2,
    claim_more: SHARD - 1,
    cut_in_a_picture: 4,
    cut_between_members: 4,
    cut_in_a_header: 4,
    first_header: SHARD - 1,
    emptied: 0,
    only_zeros: 0,
    junk: 0,
}
"""Kinds of damage to the first shard, and how many of its samples are left."""


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_is_read_and_what_is_lost_is_all_there_was(damage: Callable[[Path], None], tmp_path: Path) -> None:
    source = listed_tars(tmp_path / "data", COUNT)
    damage(source / "00000.tar")
    samples, losses = results(source)
    assert len(samples) == SHARD + DAMAGES[damage]
    assert len(samples) + len(losses) == COUNT
    assert not {loss.where for loss in losses} & set(samples)
    assert all("listed beside 00000.tar" in loss.reason for loss in losses)


@pytest.mark.parametrize("damage", [kind for kind in DAMAGES if kind is not only_zeros], ids=lambda kind: kind.__name__)
def test_without_a_list_damage_is_told_all_the_same(damage: Callable[[Path], None], tmp_path: Path) -> None:
    source = plain_tars(tmp_path / "data", COUNT)
    damage(source / "00000.tar")
    samples, losses = results(source)
    assert len(samples) == SHARD + DAMAGES[damage]
    assert losses
    assert all(loss.where.startswith("00000.tar, byte ") for loss in losses)


def test_python_takes_a_damaged_header_for_the_end(tmp_path: Path) -> None:
    """What this module is for: the same tar, read by tarfile."""
    source = plain_tars(tmp_path / "data", COUNT)
    before = sum(isinstance(item, Member) for item in walk(source / "00000.tar"))
    zero_one(source / "00000.tar")
    with tarfile.open(source / "00000.tar") as archive:
        assert len(archive.getmembers()) == 12
    assert before == 36
    assert sum(isinstance(item, Member) for item in walk(source / "00000.tar")) == 35


def test_failed_downloads_are_no_losses(tmp_path: Path) -> None:
    source = listed_tars(tmp_path / "data", COUNT)
    assert len(pq.read_table(source / "00000.parquet")) == SHARD + 1
    samples, losses = results(source)
    assert (len(samples), losses) == (COUNT, [])


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_every_kind_of_tar_is_read_as_python_reads_it(kind: int, tmp_path: Path) -> None:
    names = ["a.png", "folder/b.png", "x" * 60 + "/" + "y" * 60 + "/c.png", "é/ü.png", "d.png"]
    names += [] if kind == tarfile.USTAR_FORMAT else ["z" * 300 + ".png"]
    with tarfile.open(tmp_path / "a.tar", "w", format=kind) as archive:
        archive.addfile(tarfile.TarInfo("folder"))
        for number, name in enumerate(names):
            entry = tarfile.TarInfo(name)
            entry.size = number * 300
            archive.addfile(entry, io.BytesIO(bytes([number]) * entry.size))
    with tarfile.open(tmp_path / "a.tar") as archive:
        expected = [Member(item.name, item.offset_data, item.size) for item in archive.getmembers() if item.isreg()]
    assert list(walk(tmp_path / "a.tar")) == expected


def test_keys_end_at_the_first_point(tmp_path: Path) -> None:
    from tests.data_formats import encoded, picture

    members = {"a.b/1.seg.png": encoded(picture(1)), "a.b/1.png": encoded(picture(0)), "a.b/1.txt": b"one\n two"}
    tar_of(tmp_path / "0.tar", members)
    table, losses = read_unit(recognise(tmp_path).units(tmp_path, tmp_path)[0])
    assert table["sample_id"].to_pylist() == ["0/a.b/1"]
    assert table["captions"].to_pylist() == [["one two"]]
    assert losses == []


@pytest.mark.parametrize("length", [b"-0000001000\0", b"\xff" * 12, b"\x80" + b"\xff" * 11, b" " * 12])
def test_lengths_that_make_no_sense(length: bytes, tmp_path: Path) -> None:
    path = plain_tars(tmp_path / "data", 4) / "00000.tar"
    place = list(header_places(path))[3]
    overwritten(path, place + 124, length)
    block = path.read_bytes()[place : place + BLOCK]
    overwritten(path, place + 148, b"%06o\0 " % (sum(block) - sum(block[148:156]) + 8 * 32))  # a sum that is right
    found = list(walk(path))
    assert sum(isinstance(item, Damage) for item in found) == 1
    assert sum(isinstance(item, Member) for item in found) in (3, 5)


def test_a_tar_that_was_made_with_a_point_before_every_name(tmp_path: Path) -> None:
    source = listed_tars(tmp_path / "data", 4)
    with tarfile.open(source / "00000.tar") as archive:
        members = {f"./{item.name}": archive.extractfile(item).read() for item in archive.getmembers()}
    tar_of(source / "00000.tar", members)
    samples, losses = results(source)
    assert (len(samples), losses) == (4, [])


def test_a_tar_that_cannot_be_opened_loses_what_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = listed_tars(tmp_path / "data", COUNT)

    def refuse(path: Path) -> Iterator[Member]:
        if path.name == "00000.tar":
            raise PermissionError(13, "Permission denied")
        yield from walk(path)

    monkeypatch.setattr("imprompt.training.data.sources.tars.walk", refuse)
    samples, losses = results(source)
    assert (len(samples), len(losses)) == (SHARD, SHARD)
    assert "Permission denied" in losses[0].reason


def test_any_bytes_are_walked_to_the_end(tmp_path: Path) -> None:
    """Random changes: no error, no endless search, and every member lies in the file."""
    path = plain_tars(tmp_path / "data", 6) / "00000.tar"
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(content)) // BLOCK * BLOCK + chance.choice((0, 124, 148, 156, 257, 400))
            content[place : place + chance.randint(1, 16)] = chance.randbytes(chance.randint(0, 16))
        path.write_bytes(bytes(content[: chance.choice((len(content), chance.randrange(len(content))))]))
        for item in walk(path):
            assert isinstance(item, Damage) or item.offset + item.length <= len(content)


def test_a_list_that_tells_sizes_no_picture_has_is_not_believed(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (8, 6)).save(content, "PNG")
    tar_of(tmp_path / "00000.tar", {"a.png": content.getvalue()})
    row = {"key": "a", "status": "success", "width": 2**40, "height": 6, "sha256": "0"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "00000.parquet")
    assert write_manifest(tmp_path, tmp_path / "manifest.parquet").sizes.tolist() == [[6, 8]]
