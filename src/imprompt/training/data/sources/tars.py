"""Tars as img2dataset writes them: `key.jpg`, `key.txt` and `key.json`, and a parquet file beside each that lists all.

Where that list is, no picture is opened: it tells size and hash. And it tells how many there should be.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from imprompt.core.errors import ImageError
from imprompt.training.data.sources.folder import containers_of, is_picture
from imprompt.training.data.sources.records import (
    KNOWN,
    Format,
    Unit,
    described,
    measured,
    parse_json,
    place_of,
    read_picture,
)
from imprompt.training.data.sources.tarwalk import Damage, Member, is_tar, walk
from imprompt.training.data.table import Loss, Sample, read_table

MAX_TEXT_BYTES, MAX_SIDE = 2**20, 2**20
SUCCESS = "success"
LISTED = ("key", "status", "width", "height", "sha256", "exif")
TURNED = ("Rotated 90", "Mirrored horizontal then rotated", "Mirrored vertical then rotated")


@dataclass
class _Parts:
    """Members of one key."""

    picture: Member | None = None
    texts: dict[str, Member] = field(default_factory=dict)


def recognises(source: Path) -> bool:
    """Whether it is a tar, or a folder with tars in it."""
    return any(True for _ in tars_of(source))


def tars_of(source: Path) -> Iterator[Path]:
    """All tars, in the order of their names."""
    return (path for path in containers_of(source) if path.suffix == ".tar" or is_tar(path))


def units(source: Path, root: Path) -> list[Unit]:
    """One part a tar."""
    return [Unit("tars", root, place_of(path, root)) for path in tars_of(source)]


def read(unit: Unit) -> Iterator[Sample | Loss]:
    """All pictures of a tar, and all that its list or its damages say is missing."""
    path = unit.root / unit.part
    keys, damages = _members(path)
    listed = _listed(path)
    if listed is None:
        yield from (Loss(f"{unit.part}, byte {damage.offset:,}", damage.reason) for damage in damages)
        listed = {}
    yield from _not_there(unit.part, listed, keys, damages)
    for key, parts in keys.items():
        if parts.picture is not None:
            yield _with_names(unit.part, keys, _sample(unit, path, key, parts, listed.get(key)))


def _members(path: Path) -> tuple[dict[str, _Parts], list[Damage]]:
    """Members of a tar by their keys, and what is wrong with it."""
    keys: dict[str, _Parts] = {}
    damages: list[Damage] = []
    try:
        for item in walk(path):
            if isinstance(item, Damage):
                damages.append(item)
            else:
                _sort_in(keys, item)
    except OSError as error:
        damages.append(Damage(0, f"it cannot be read ({error.strerror})"))
    return keys, damages


def _sort_in(keys: dict[str, _Parts], member: Member) -> None:
    """Put a member to its key: its name up to the first point behind the last slash, as webdataset has it."""
    folder, slash, name = member.name.removeprefix("./").rpartition("/")
    stem, point, suffix = name.partition(".")
    parts = keys.setdefault(folder + slash + stem, _Parts())
    if is_picture(point + suffix) and parts.picture is None and "." not in suffix:
        parts.picture = member
    elif suffix in ("txt", "json"):
        parts.texts[suffix] = member


def _not_there(shard: str, listed: dict[str, Any], keys: dict[str, _Parts], damages: list[Damage]) -> Iterator[Loss]:
    """Samples that the list has and the tar has not."""
    reason = f"it is listed beside {shard}, and not in it"
    if damages:
        reason += f" (byte {damages[0].offset:,}: {damages[0].reason})"
    for key in listed:
        if key not in keys or keys[key].picture is None:
            yield Loss(_name(shard, key), reason)


def _sample(unit: Unit, path: Path, key: str, parts: _Parts, row: dict[str, Any] | None) -> Sample | Loss:
    picture = parts.picture or Member(key, 0, 0)
    fields = described(row if row is not None else _record_inside(path, parts))
    fields["captions"] = fields["captions"] or _text_inside(path, parts)
    fields |= {"offset": picture.offset, "length": picture.length}
    if row is not None and picture.length and _tells_size(row):
        fields |= {"width": row["width"], "height": row["height"], "sha256": row["sha256"]}
        return Sample(_name(unit.part, key), unit.part, **fields)
    sample = Sample(_name(unit.part, key), unit.part, **fields)
    try:
        return measured(sample, read_picture(path, picture.offset, picture.length))
    except ImageError as error:
        return Loss(sample.sample_id, str(error))


def _with_names(shard: str, keys: dict[str, _Parts], sample: Sample | Loss) -> Sample | Loss:
    """Let references that are keys of the same tar name its samples; others are names already."""
    if isinstance(sample, Loss) or not (sample.references or sample.face_image):
        return sample
    face, *references = (
        _name(shard, name) if name in keys else name for name in (sample.face_image, *sample.references)
    )
    return replace(sample, references=tuple(references), face_image=face)


def _name(shard: str, key: str) -> str:
    """Name of a sample: its shard and its key."""
    return f"{shard.removesuffix('.tar')}/{key}"


def _tells_size(row: dict[str, Any]) -> bool:
    """Whether a row spares opening its picture: it has size and hash, and no camera was held on its side."""
    sized = all(isinstance(row.get(name), int) and 0 < row[name] <= MAX_SIDE for name in ("width", "height"))
    turned = any(words in str(row.get("exif") or "") for words in TURNED)
    return sized and isinstance(row.get("sha256"), str) and not turned


def _listed(path: Path) -> dict[str, dict[str, Any]] | None:
    """Rows of the list beside a tar by their keys, without those that were never downloaded; None if there is none."""
    beside = path.with_suffix(".parquet")
    try:
        names = pq.read_schema(beside).names
        if "key" not in names:
            return None
        columns = [name for name in names if name in (*LISTED, *KNOWN)]
        rows = read_table(beside, columns).to_pylist()
    except (OSError, pa.ArrowInvalid):
        return None
    return {str(row.pop("key")): row for row in rows if row.get("status", SUCCESS) == SUCCESS}


def _record_inside(path: Path, parts: _Parts) -> dict[str, Any]:
    record = parse_json(_content(path, parts.texts.get("json")))
    return record if isinstance(record, dict) else {}


def _text_inside(path: Path, parts: _Parts) -> tuple[str, ...]:
    text = " ".join(_content(path, parts.texts.get("txt")).decode("utf-8", errors="replace").split())
    return (text,) if text else ()


def _content(path: Path, member: Member | None) -> bytes:
    if member is None or member.length > MAX_TEXT_BYTES:
        return b""
    return read_picture(path, member.offset, member.length)


FORMAT = Format("tars", "tars with key.jpg, key.txt and key.json", recognises, units, read)
