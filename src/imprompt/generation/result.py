"""What came out: pictures that carry, in their own file, everything that made them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imprompt.core.errors import ImageError
from imprompt.core.files import atomic_write

CHUNK = "imprompt"  # the keyword of the iTXt chunk that holds the provenance


@dataclass(frozen=True, kw_only=True)
class Result:
    """Pictures, and where they come from.

    Attributes:
        images: one RGB picture for each seed.
        seeds: the seed of each picture; the same request with that seed and one image makes the same picture.
        provenance: the request, references and weights by hash, versions; JSON.
    """

    images: tuple[Image.Image, ...]
    seeds: tuple[int, ...]
    provenance: Mapping[str, Any]

    def provenance_of(self, index: int) -> dict[str, Any]:
        """The provenance of one picture, its own seed included."""
        width, height = self.images[index].size
        return {**self.provenance, "width": width, "height": height, "seed": self.seeds[index]}

    def save(self, path: str | Path) -> list[Path]:
        """Write every picture as a PNG with its provenance inside; each file appears whole or not at all.

        Args:
            path: a file that ends in `.png`, which is replaced if it exists (several pictures become `name-1.png`,
                `name-2.png`, ...); or a folder, in which `SEED.png` is written and nothing ever replaced.

        Returns:
            The files, in the order of the images.

        Raises:
            ImageError: the name ends in another suffix; no other format is sure to keep the provenance.
        """
        paths = output_paths(Path(path), self.seeds)
        for index, (image, file) in enumerate(zip(self.images, paths, strict=True)):
            save_png(image, file, self.provenance_of(index))
        return paths


def output_paths(path: Path, seeds: Sequence[int]) -> list[Path]:
    """The file of every picture, as `Result.save` says."""
    check_output(path)
    if path.suffix == "":
        return [free_name(path / f"{seed}.png") for seed in seeds]
    if len(seeds) == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{number}") for number in range(1, len(seeds) + 1)]


def check_output(path: Path) -> None:
    """Refuse a path that pictures cannot be saved to, before any time is spent on them.

    Raises:
        ImageError: it is neither a `.png` file nor a folder.
    """
    if path.suffix.lower() not in ("", ".png"):
        raise ImageError(f"cannot save pictures as {path.name!r}; give a name that ends in .png, or a folder")
    if path.suffix and path.is_dir():
        raise ImageError(f"{str(path)!r} is a folder; give the name of a .png file in it")
    if not path.suffix and path.is_file():
        raise ImageError(f"{str(path)!r} is a file; give a folder, or a name that ends in .png")


def free_name(path: Path) -> Path:
    """The path itself, or with `-2`, `-3`, ... before its suffix where that is taken."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_stem(f"{path.stem}-{number}")
    return candidate


def save_png(image: Image.Image, path: str | Path, provenance: Mapping[str, Any]) -> None:
    """Write a PNG whose iTXt chunk `imprompt` holds the provenance; whole or not at all."""
    info = PngInfo()
    info.add_itxt(CHUNK, json.dumps(provenance, ensure_ascii=False))
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def read_provenance(path: str | Path) -> dict[str, Any]:
    """What a picture says about how it was made.

    Raises:
        ImageError: it is no PNG, or was not made by imprompt, or lost its metadata on the way.
    """
    if not Path(path).is_file():
        raise ImageError(f"there is no file {str(path)!r}; give a picture made by imprompt")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            text = image.info.get(CHUNK)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{str(path)!r} cannot be read as a PNG ({error}); give a picture made by imprompt") from error
    if text is None:
        raise ImageError(
            f"{Path(path).name!r} carries no provenance; it was not made by imprompt, or a program that saved it again "
            "dropped its metadata"
        )
    return json.loads(text)
