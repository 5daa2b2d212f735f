"""One look at every picture: whether it can be read, how large it is, and a few bytes that tell it from others."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from imprompt.core.errors import ImageError
from imprompt.training.data.build import Progress, parallel
from imprompt.training.data.manifest import Manifest
from imprompt.training.errors import DataError

PICTURES_A_PART = 128
HASH_BYTES, COLOUR_SIDE = 16, 4

_NEIGHBOURS = 16
_MAX_BITS, _MAX_COLOUR_DIFFERENCE = 6, 8.0


@dataclass(frozen=True)
class Look:
    """What was seen of a sample.

    Attributes:
        error: Why its picture cannot be read; "" if it can.
        size: Height and width.
        outline: Where neighbouring parts become lighter, across and down, as 128 bits (`imagehash.dhash`, twice).
        colours: Of sixteen parts, as 48 bytes.
        embed: Length of its face embedding; 0 if it has none.
        embed_error: Why that cannot be read.
    """

    error: str = ""
    size: tuple[int, int] = (0, 0)
    outline: bytes = bytes(HASH_BYTES)
    colours: bytes = bytes(3 * COLOUR_SIDE**2)
    embed: int = 0
    embed_error: str = ""


def look_at_all(manifest: Manifest, *, processes: int = 1, on_progress: Progress | None = None) -> list[Look]:
    """Decode every picture of a manifest once.

    Args:
        manifest: Whose.
        processes: How many decode at a time.
        on_progress: Told how many parts are done, and of how many.
    """
    starts = range(0, len(manifest), PICTURES_A_PART)
    parts = [(manifest.path, manifest.root, start, min(start + PICTURES_A_PART, len(manifest))) for start in starts]
    return [look for looks in parallel(_look_at_part, parts, processes, on_progress) for look in looks]


def _look_at_part(part: tuple[Path, Path, int, int]) -> list[Look]:
    path, root, start, stop = part
    manifest = _manifest(path, root, path.stat().st_mtime_ns)
    return [look_at(manifest, number) for number in range(start, stop)]


@lru_cache(maxsize=1)
def _manifest(path: Path, root: Path, _changed: int) -> Manifest:
    return Manifest.read(path, root)


def look_at(manifest: Manifest, number: int) -> Look:
    """Decode one picture, and read its face embedding if it has one."""
    embed, embed_error = 0, ""
    try:
        values = manifest.id_embed(number)
        embed = 0 if values is None else len(values)
    except DataError as error:
        embed_error = str(error)
    try:
        image = manifest.image(number)
    except ImageError as error:
        return Look(str(error), embed=embed, embed_error=embed_error)
    outline, colours = fingerprint(image)
    return Look("", (image.height, image.width), outline, colours, embed, embed_error)


def picture_or_none(manifest: Manifest, number: int) -> Image.Image | None:
    """A picture to show; None where it cannot be read."""
    try:
        return manifest.image(number)
    except ImageError:
        return None


def fingerprint(image: Image.Image) -> tuple[bytes, bytes]:
    """Outline and colours of a picture, nearly the same for its copies of another size or compression."""
    small = image.resize((9, 9), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L")).astype(np.int16)
    across, down = grey[:8, 1:] > grey[:8, :-1], grey[1:, :8] > grey[:-1, :8]
    outline = np.packbits(np.stack([across, down])).tobytes()
    return outline, image.resize((COLOUR_SIDE, COLOUR_SIDE), Image.Resampling.BOX).convert("RGB").tobytes()


def near_duplicates(looks: Sequence[Look]) -> list[tuple[int, int]]:
    """Pairs of pictures that look nearly the same.

    Four times they are sorted by another quarter of their outlines, and each is compared with the next few that have
    the same quarter: what differs in three bits at most has one in common. The time grows with n log n.

    Returns:
        Pairs of numbers, the lower one first. Of many that are all alike, not every pair is told.
    """
    readable = np.array([number for number, look in enumerate(looks) if not look.error], dtype=np.int64)
    if len(readable) < 2:
        return []
    outlines = np.frombuffer(b"".join(looks[number].outline for number in readable), np.uint8).reshape(-1, HASH_BYTES)
    colours = np.frombuffer(b"".join(looks[number].colours for number in readable), np.uint8).reshape(len(readable), -1)
    quarters = np.ascontiguousarray(outlines).view(">u4")
    pairs = {pair for first in range(4) for pair in _pairs_of_quarter(np.roll(quarters, -first, axis=1), colours)}
    return sorted((int(readable[one]), int(readable[other])) for one, other in pairs)


def _pairs_of_quarter(quarters: np.ndarray, colours: np.ndarray) -> set[tuple[int, int]]:
    """Pairs whose first quarter is the same, and the rest nearly so."""
    order = np.lexsort(quarters.T[::-1])
    found: set[tuple[int, int]] = set()
    for distance in range(1, min(_NEIGHBOURS, len(order) - 1) + 1):
        one, other = order[:-distance], order[distance:]
        same = quarters[one, 0] == quarters[other, 0]
        one, other = one[same], other[same]
        bits = np.bitwise_count(quarters[one] ^ quarters[other]).sum(1)
        difference = np.abs(colours[one].astype(np.int16) - colours[other]).mean(1)
        near = (bits <= _MAX_BITS) & (difference <= _MAX_COLOUR_DIFFERENCE)
        low, high = np.minimum(one, other)[near], np.maximum(one, other)[near]
        found.update(zip(low.tolist(), high.tolist(), strict=True))
    return found
