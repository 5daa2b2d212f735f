"""What all sources of training data share: the names by which records call things, and how a picture is measured."""

import hashlib
import json
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imprompt.core.errors import ImageError
from imprompt.core.images import upright_size
from imprompt.training.data.table import Loss, Sample
from imprompt.training.errors import DataError

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
MAX_PICTURE_BYTES = 256 * 2**20
SPLITS = {"val": "validation", "valid": "validation", "dev": "validation", "training": "train"}

CAPTIONS = ("captions", "caption", "text", "txt", "prompt")
REFERENCES = ("references", "reference")
FACE_IMAGE = ("face_image_file", "face_image")
ID_EMBED = ("id_embed_file", "id_embed")
SAMPLE_ID = ("sample_id", "id", "key", "__key__")
KNOWN = (*CAPTIONS, *REFERENCES, *FACE_IMAGE, *ID_EMBED, *SAMPLE_ID, "group", "split")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Unit:
    """A part of a source that one process reads.

    Attributes:
        format: Row of the table of formats.
        root: Folder that all file names are relative to.
        part: Which part, as the format understands it; it is sent between processes.
    """

    format: str
    root: Path
    part: Any


@dataclass(frozen=True)
class Format:
    """A kind of source. A new one is a module with one of these and a row of `sources.FORMATS`.

    Attributes:
        name: Its name.
        description: What it looks like, for errors.
        recognises: Whether a file or folder is one, told by its content.
        units: The parts of a source: `units(source, root)`.
        read: All samples of a part, and what cannot be had of it.
        named: Parts that hold pictures which only other samples name: `named(root, names)`; none by default.
    """

    name: str
    description: str
    recognises: Callable[[Path], bool]
    units: Callable[[Path, Path], list[Unit]]
    read: Callable[[Unit], Iterator[Sample | Loss]]
    named: Callable[[Path, Iterable[str]], list[Unit]] = lambda _root, _names: []


def described(record: Record) -> dict[str, Any]:
    """The fields of a `Sample` that a record tells by any of the names in use; its own name is not among them."""
    split = _text(record, ("split",)).lower()
    return {
        "captions": _texts(record, CAPTIONS),
        "references": _texts(record, REFERENCES),
        "group": _text(record, ("group",)),
        "face_image": _text(record, FACE_IMAGE),
        "id_embed": _text(record, ID_EMBED),
        "split": SPLITS.get(split, split),
    }


def name_of(record: Record) -> str:
    """What a record calls its sample; "" if it does not."""
    return _text(record, SAMPLE_ID)


def measured(sample: Sample, content: bytes) -> Sample | Loss:
    """Add size and hash to a sample whose bytes are at hand; only the header is decoded."""
    try:
        width, height = upright_size(content, sample.sample_id)
    except ImageError as error:
        return Loss(sample.sample_id, str(error))
    return replace(sample, width=width, height=height, sha256=hashlib.sha256(content).hexdigest())


def read_picture(path: Path, offset: int = 0, length: int | None = None) -> bytes:
    """Bytes of a picture's file, or of a range of it.

    Raises:
        ImageError: There is no such file, it is too large for a picture, or it ends before the range does.
    """
    try:
        wanted = path.stat().st_size if length is None else length
        if wanted > MAX_PICTURE_BYTES:
            raise ImageError(f"'{path}' has {wanted:,} bytes; a picture may have {MAX_PICTURE_BYTES:,}. Scale it down.")
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(wanted)
    except OSError as error:
        raise ImageError(
            f"'{path}' cannot be read ({error.strerror}); put it back, or build the manifest anew."
        ) from error
    if len(content) < wanted:
        raise ImageError(
            f"'{path}' has {len(content):,} of {wanted:,} bytes at {offset:,}; it changed since the manifest was built."
        )
    return content


def head(path: Path, num_bytes: int) -> bytes:
    """The first bytes of a file."""
    with path.open("rb") as file:
        return file.read(num_bytes)


def inside(name: str) -> str | None:
    """A file name relative to the root, tidied; None if it leads out of it, or is no text."""
    tidy = posixpath.normpath(name.replace("\\", "/"))
    leads_out = tidy.startswith(("/", "../")) or tidy in ("..", ".") or ":" in tidy.partition("/")[0]
    return None if leads_out or "\0" in tidy or not _is_text(tidy) else tidy


def _is_text(name: str) -> bool:
    """Whether a file's name is UTF-8, as the columns of a table must be."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def place_of(path: Path, root: Path) -> str:
    """Where a file lies, relative to the root.

    Raises:
        DataError: It does not lie in it.
    """
    try:
        return path.relative_to(root).as_posix()
    except ValueError as error:
        raise DataError(
            f"'{path}' does not lie in the root '{root}'; give a root that all of the data lies in."
        ) from error


def relative_name(name: str, root: Path, prefix: str) -> str:
    """A file name as records of the root call it; one that leads out of the root stays as it is.

    Args:
        name: As metadata have it: relative to their folder, or from the root of the file system on.
        root: The data's folder.
        prefix: Folder of the metadata, relative to the root: "" or "a/b/".
    """
    joined = posixpath.join(prefix, name)
    if joined.startswith(f"{root.as_posix()}/"):
        joined = joined.removeprefix(f"{root.as_posix()}/")
    return inside(joined) or joined


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _text(record: Record, names: Iterable[str]) -> str:
    value = _value(record, names)
    return _whole(value) if isinstance(value, str) else str(value) if isinstance(value, int) else ""


def _texts(record: Record, names: Iterable[str]) -> tuple[str, ...]:
    value = _value(record, names)
    items = value if isinstance(value, list | tuple) else (value,)
    return tuple(_whole(item.strip()) for item in items if isinstance(item, str) and item.strip())


def _whole(text: str) -> str:
    """A text with question marks for what is no letter: JSON may hold half of a pair of them, which no file can."""
    return text.encode("utf-8", errors="replace").decode()


def _value(record: Record, names: Iterable[str]) -> Any:
    """What the first of several names that says something says."""
    for name in names:
        value = record.get(name)
        if value is not None and value != "" and value != []:
            return value
    return None
