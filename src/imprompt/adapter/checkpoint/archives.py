"""Archives as torch writes them, held to one reading: what is looked at must be what torch will open.

torch goes by a file's first four bytes, Python's zipfile by its end, so that one file can be two. An archive is taken
here only if it fills its file: entries from the first byte on, one after another, then the directory, then its end.
"""

import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

MAGIC = b"PK\x03\x04"  # torch 2.13, `serialization.py`, `_is_zipfile`

_LOCAL, _END, _END64, _LOCATOR = struct.Struct("<4s5H3I2H"), struct.Struct("<4s4H2IH"), 56, 20
_UTF8, _SUMS_FOLLOW = 0x800, 0x8
_SUMS = (16, 24)  # bytes of an entry's sums behind it, for small and for large ones


def is_archive(path: Path) -> bool:
    """Whether torch takes a file for an archive, and not for a pickle of the older format."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def foreign_bytes(path: Path, archive: zipfile.ZipFile) -> str | None:
    """What in an archive two programs may read in two ways, in words; None if there is nothing."""
    entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    names = [entry.orig_filename.lower() for entry in entries]  # torch finds names in capitals too
    if len(set(names)) != len(names):
        return "parts of one name"
    with path.open("rb") as file:
        place = 0
        for entry in entries:
            end = _end_of(file, entry) if entry.header_offset == place else None
            if end is None:
                return f"bytes before or inside its part {entry.orig_filename[:80]!r} that belong to none"
            place = end
        return None if _directory_starts(file, path.stat().st_size, archive) == place else "bytes outside its parts"


def _end_of(file: BinaryIO, entry: zipfile.ZipInfo) -> int | None:
    """Where an entry ends, its sums included; None if it is not what the directory says."""
    file.seek(entry.header_offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or not header.startswith(MAGIC):
        return None
    *_, name_length, extra_length = _LOCAL.unpack(header)
    name = file.read(name_length)
    if name != entry.orig_filename.encode("utf-8" if entry.flag_bits & _UTF8 else "cp437"):
        return None
    if b"\0" in name or entry.compress_size != entry.file_size:
        return None
    end = entry.header_offset + _LOCAL.size + name_length + extra_length + entry.compress_size
    if not entry.flag_bits & _SUMS_FOLLOW:
        return end
    file.seek(end)
    behind = file.read(_SUMS[1] + 4)
    if not behind.startswith(b"PK\x07\x08"):
        return None
    # The next entry or the directory follows at once.
    return next((end + length for length in _SUMS if behind[length : length + 2] == b"PK"), None)


def _directory_starts(file: BinaryIO, size: int, archive: zipfile.ZipFile) -> int | None:
    """Where the directory starts, if it and its end are the last of the file; None otherwise."""
    file.seek(max(size - _END.size - _LOCATOR - _END64, 0))
    tail = file.read()
    mark, *_, length, start, comment = _END.unpack(tail[-_END.size :])
    if mark != b"PK\x05\x06" or comment:
        return None
    end = size - _END.size
    if tail[_END64 : _END64 + 4] == b"PK\x06\x07":  # for large ones, which torch writes always
        (at,) = struct.unpack("<Q", tail[_END64 + 8 : _END64 + 16])
        length, start = struct.unpack("<2Q", tail[40:56])
        end -= _LOCATOR + _END64
        if at != end or not tail.startswith(b"PK\x06\x06"):
            return None
    return start if start + length == end and start == archive.start_dir else None
