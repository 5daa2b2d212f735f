"""Where the members of a tar lie, read off its headers; a damaged header is told and passed, never taken for the end.

Python's own reader takes a header that it cannot read, in the middle of a file, for the end of the archive, and so does
all that stands on it: three quarters of a shard may go without a word.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK = 512

_NAME, _PREFIX, _SIZE, _SUM, _KIND, _MAGIC = (
    slice(0, 100),
    slice(345, 500),
    slice(124, 136),
    slice(148, 156),
    slice(156, 157),
    slice(257, 262),
)
_SPACES = 8 * ord(" ")
_FILES, _LONG_NAME, _EXTENDED = (b"0", b"\0"), b"L", b"x"
_SEARCH_BYTES = 2**20


@dataclass(frozen=True)
class Member:
    """A file in a tar.

    Attributes:
        name: Its name.
        offset: Where its bytes begin.
        length: How many they are.
    """

    name: str
    offset: int
    length: int


@dataclass(frozen=True)
class Damage:
    """A place in a tar where no header is and one should be.

    Attributes:
        offset: Where.
        reason: What is there.
    """

    offset: int
    reason: str


@dataclass(frozen=True)
class _Header:
    name: str
    length: int
    kind: bytes


def is_tar(path: Path) -> bool:
    """Whether a file begins with the header of a tar's member."""
    with path.open("rb") as file:
        return _parse(file.read(BLOCK)) is not None


def walk(path: Path) -> Iterator[Member | Damage]:
    """All files in a tar, and all places where it is damaged; reading goes on behind each at the next header."""
    if not path.stat().st_size:
        yield Damage(0, "the file is empty")
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield from _walk(content)


def _walk(content: mmap.mmap) -> Iterator[Member | Damage]:
    place, long_name, size = 0, "", len(content)
    while place + BLOCK <= size:
        block = content[place : place + BLOCK]
        header = _parse(block)
        if header is None:
            behind = _next_header(content, place + BLOCK)
            if behind is None and not any(block) and _only_zeros(content, place):
                return
            yield _damage(block, place, behind)
            place, long_name = size if behind is None else behind, ""
            continue
        begin, length = place + BLOCK, header.length
        if begin + length > size:
            yield Damage(place, f"{header.name!r} is cut short: {size - begin:,} of {length:,} bytes are there")
            return
        if header.kind in (_LONG_NAME, _EXTENDED):
            long_name = _long_name(header.kind, content[begin : begin + min(length, 2**16)]) or long_name
        elif header.kind in _FILES:
            yield Member(long_name or header.name, begin, length)
            long_name = ""
        place = begin + -(-length // BLOCK) * BLOCK
    yield Damage(place, "it ends without the mark of its end, so that more may be missing")


def _damage(block: bytes, place: int, behind: int | None) -> Damage:
    found = "a header is damaged" if any(block) else "there are zeros in place of a header"
    gone = "nothing behind it can be read" if behind is None else f"{behind - place:,} bytes are passed over"
    return Damage(place, f"{found}; {gone}")


def _parse(block: bytes) -> _Header | None:
    """Read a header; None if it is none, or damaged."""
    if len(block) < BLOCK:
        return None
    stored = _number(block[_SUM])
    if stored is None or stored != sum(block) - sum(block[_SUM]) + _SPACES:
        return None
    length = _number(block[_SIZE])
    if length is None:
        return None
    name, prefix = _text(block[_NAME]), _text(block[_PREFIX]) if block[_MAGIC] == b"ustar" else ""
    # GNU's tar has the same magic with a space behind it, and other things than a prefix there.
    joined = f"{prefix}/{name}" if prefix and block[262:263] != b" " else name
    return _Header(joined, length, block[_KIND])


def _number(field: bytes) -> int | None:
    """An octal number, or, for more than eight gibibytes, one of bytes."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:])
    digits = field.strip(b" \0")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else None


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", errors="replace")


def _long_name(kind: bytes, content: bytes) -> str:
    """A name that does not fit its header: GNU's is a member of its own, POSIX's a record `LENGTH path=NAME`."""
    if kind == _LONG_NAME:
        return _text(content)
    record = next((line for line in content.split(b"\n") if line.partition(b" ")[2].startswith(b"path=")), b"")
    return record.partition(b"path=")[2].decode("utf-8", errors="replace")


def _next_header(content: mmap.mmap, place: int) -> int | None:
    """The next place where a whole header stands; headers begin at multiples of a block."""
    while (found := content.find(b"ustar", place + _MAGIC.start)) >= 0:
        place = found - _MAGIC.start
        if place % BLOCK == 0 and _parse(content[place : place + BLOCK]) is not None:
            return place
        place += 1
    return None


def _only_zeros(content: mmap.mmap, place: int) -> bool:
    return not any(
        content[start : start + _SEARCH_BYTES].strip(b"\0") for start in range(place, len(content), _SEARCH_BYTES)
    )
