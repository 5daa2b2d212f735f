"""Drawings to pixels: SVG or raster files onto a white square."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from imprompt.recipes.emoji.sources import Subject, normal_hexcode

MARGIN = 0.03
"""Free border around a drawing, as a fraction of the side."""


def on_white(picture: Image.Image, size: int) -> np.ndarray:
    """Picture fitted into the middle of a white square: uint8 [size, size, 3]."""
    picture = picture.convert("RGBA")
    scale = size * (1 - 2 * MARGIN) / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    resized = picture.resize((width, height), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (size, size), "white")
    canvas.alpha_composite(resized, ((size - width) // 2, (size - height) // 2))
    return np.asarray(canvas.convert("RGB"))


def render_svg(svg: str, size: int) -> np.ndarray:
    """SVG document as uint8 [size, size, 3] on white, drawn at twice the size and reduced."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * size, height=2 * size)
    return on_white(Image.open(io.BytesIO(bytes(png))), size)


def render_files(tarball: Path, subjects: list[Subject], size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Raster files of a package that are named by code points, as (index of the subject, picture)."""
    wanted = {normal_hexcode(subject.hexcode): index for index, subject in enumerate(subjects)}
    with tarfile.open(tarball) as archive:
        for member in archive:
            path = Path(member.name)
            stream = archive.extractfile(member) if path.suffix in (".webp", ".png") else None
            index = wanted.pop(normal_hexcode(path.stem), None) if stream else None
            if stream is not None and index is not None:
                yield index, on_white(Image.open(io.BytesIO(stream.read())), size)


def is_blank(picture: np.ndarray) -> bool:
    """True where the renderer drew nothing visible."""
    return not bool((picture < 250).any())
