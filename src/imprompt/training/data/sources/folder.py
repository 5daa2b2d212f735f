"""Folders of pictures: captions in `metadata.jsonl`, as Hugging Face's image folders have it, or in .txt files."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from imprompt.core.errors import ImageError
from imprompt.training.data.sources.records import (
    PICTURE_SUFFIXES,
    SPLITS,
    Format,
    Unit,
    described,
    head,
    inside,
    measured,
    parse_json,
    read_picture,
    relative_name,
)
from imprompt.training.data.table import REFERENCE, Loss, Sample
from imprompt.training.errors import DataError

TEXT_SUFFIXES = (".txt", ".json", ".jsonl", ".csv", ".md", ".npy", ".pt", ".bin", ".safetensors")
METADATA = "metadata.jsonl"
FILES_A_UNIT = 512
FILE_NAME = ("file_name", "image_file", "image")


def recognises(source: Path) -> bool:
    """Whether it is a folder with pictures or their metadata somewhere in it, or such metadata."""
    if source.is_file():
        first = head(source, 2**16).split(b"\n", 1)[0].strip()
        record = parse_json(first) if first.startswith(b"{") else None
        return isinstance(record, dict) and any(name in record for name in FILE_NAME)
    return any(name == METADATA or is_picture(name) for _, name in files_of(source))


def files_of(folder: Path) -> Iterator[tuple[str, str]]:
    """All files below a folder in the order of their names: folder relative to it ("" or "a/b/"), and name.

    Raises:
        DataError: A folder cannot be read; what is in it would be lost without a word.
    """
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        state = os.stat(place)
        if (state.st_dev, state.st_ino) in seen:  # a link to a folder that it lies in, or to one that was read
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = Path(place).relative_to(folder).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        yield from ((prefix, name) for name in sorted(names) if not name.startswith("."))


def _refuse(error: OSError) -> None:
    raise DataError(
        f"the folder '{error.filename}' cannot be read ({error.strerror}); let it be read, or take it away"
    ) from error


def containers_of(source: Path) -> Iterator[Path]:
    """Files that may hold many samples: the source, or all below it that are not plainly pictures or their texts."""
    if source.is_file():
        yield source
        return
    for prefix, name in files_of(source):
        if not name.lower().endswith((*PICTURE_SUFFIXES, *TEXT_SUFFIXES)):
            yield source / prefix / name


def is_picture(name: str) -> bool:
    """Whether a file's name ends as a picture's."""
    return name.lower().endswith(PICTURE_SUFFIXES)


def units(source: Path, root: Path) -> list[Unit]:
    """Records of all pictures, some hundreds a part."""
    if source.is_file():
        records = _records_of(source, root)
    else:
        records = _folder_records(source)
    return in_parts("folder", root, merged(records))


def in_parts(format_name: str, root: Path, records: list[dict[str, Any]]) -> list[Unit]:
    """Cut records into parts that one process reads at a time."""
    starts = range(0, len(records), FILES_A_UNIT)
    return [Unit(format_name, root, records[start : start + FILES_A_UNIT]) for start in starts]


def named(root: Path, names: Iterable[str]) -> list[Unit]:
    """Parts for pictures that only other samples name."""
    return in_parts("folder", root, [{"file_name": name, "split": REFERENCE} for name in names])


def read(unit: Unit) -> Iterator[Sample | Loss]:
    """Open every picture's header; the file itself is hashed."""
    for record in unit.part:
        yield _read_record(unit.root, record)


def _read_record(root: Path, record: dict[str, Any]) -> Sample | Loss:
    if "unreadable" in record:
        return Loss(record["unreadable"], "the line is no JSON object with a file_name")
    name = inside(str(record["file_name"]))
    if name is None:
        return Loss(str(record["file_name"]), "the name leads out of the data's folder, or is no text")
    try:
        content = read_picture(root / name)
    except ImageError as error:
        return Loss(name, str(error))
    fields = described(record)
    if not fields["captions"]:
        fields["captions"] = _caption_beside(root / name)
    fields["split"] = fields["split"] or _split_of_path(name)
    return measured(Sample(name, name, length=len(content), **fields), content)


def _folder_records(folder: Path) -> Iterator[dict[str, Any]]:
    """Records of all metadata; pictures below no metadata are records of their own, in the order of their names."""
    files = list(files_of(folder))
    described_folders = tuple(prefix for prefix, name in files if name == METADATA)
    for prefix, name in files:
        if name == METADATA:
            yield from _records_of(folder / prefix / name, folder, prefix)
        elif is_picture(name) and not (described_folders and prefix.startswith(described_folders)):
            yield {"file_name": prefix + name}


def _records_of(metadata: Path, root: Path, prefix: str = "") -> Iterator[dict[str, Any]]:
    """Records of one file of metadata, with all names relative to the root."""
    with metadata.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            record = parse_json(line)
            name = picture_name(record)
            if name is None:
                yield {"unreadable": f"{prefix}{metadata.name}, line {number}"}
                continue
            yield relative_names(record, name, root, prefix)


def picture_name(record: Any) -> str | None:
    """The file that a record names; None if it names none, or is no record."""
    name = next((record[key] for key in FILE_NAME if key in record), None) if isinstance(record, dict) else None
    return name if isinstance(name, str) else None


def relative_names(record: dict[str, Any], name: str, root: Path, prefix: str = "") -> dict[str, Any]:
    """A record whose files, its picture's and those it names, are relative to the root.

    Args:
        record: As a file of metadata has it.
        name: Of its picture.
        root: Names from the root of the file system on may lie in it.
        prefix: Folder of the metadata, relative to the root: "" or "a/b/".
    """
    fields = described(record)
    return {
        **fields,
        "file_name": relative_name(name, root, prefix),
        "references": [relative_name(reference, root, prefix) for reference in fields["references"]],
        "face_image": fields["face_image"] and relative_name(fields["face_image"], root, prefix),
        "id_embed": fields["id_embed"] and relative_name(fields["id_embed"], root, prefix),
    }


def merged(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record a picture: several lines about one picture are several captions of it."""
    merged: dict[str, dict[str, Any]] = {}
    for record in records:
        key = str(record.get("file_name", record.get("unreadable")))
        if key in merged:
            known = merged[key]
            known["captions"] = [*dict.fromkeys((*known.get("captions", ()), *record.get("captions", ())))]
        else:
            merged[key] = dict(record)
    return list(merged.values())


def _caption_beside(picture: Path) -> tuple[str, ...]:
    """What the .txt file of the same name says, as one caption."""
    try:
        text = picture.with_suffix(".txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    caption = " ".join(text.split())
    return (caption,) if caption else ()


def _split_of_path(name: str) -> str:
    """The split that the first folder's name tells, as Hugging Face's image folders have it."""
    first = name.partition("/")[0].lower() if "/" in name else ""
    split = SPLITS.get(first, first)
    return split if split in ("train", "validation", "test") else ""


FORMAT = Format("folder", "a folder of pictures with metadata.jsonl or .txt files", recognises, units, read, named)
