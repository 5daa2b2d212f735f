"""The emoji pictures: gathering them once, and reading them back with subjects, styles and splits."""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from imprompt.core.files import atomic_write
from imprompt.core.sheet import contact_sheet
from imprompt.emoji.styles import STYLES, Style
from imprompt.recipes.emoji.paths import cache_folder
from imprompt.recipes.emoji.render import is_blank, render_files, render_svg
from imprompt.recipes.emoji.sources import (
    THINGS,
    IconSet,
    Names,
    Subject,
    fetch_package,
    find_drawing,
    load_subjects,
)
from imprompt.recipes.emoji.split import Split, split_of

logger = logging.getLogger(__name__)

SIZE = 64
"""Side of the pictures in pixels."""

SHEET_SUBJECTS = (
    "red apple",
    "cat face",
    "dog face",
    "pizza",
    "automobile",
    "rocket",
    "house",
    "tulip",
    "crab",
    "guitar",
)


@dataclass(frozen=True)
class EmojiPictures:
    """All pictures of a data set.

    Attributes:
        images: uint8 [num_pictures, size, size, 3], drawn on white.
        styles: int64 [num_pictures], index into `STYLES`.
        subject_indices: int64 [num_pictures], index into `subjects`.
        subjects: What the pictures show.
    """

    images: np.ndarray
    styles: np.ndarray
    subject_indices: np.ndarray
    subjects: tuple[Subject, ...]

    def split(self, *names: Split) -> np.ndarray:
        """Indices of the pictures of the named splits."""
        return np.array([index for index in range(len(self.images)) if self.split_name(index) in names], np.int64)

    def split_name(self, index: int) -> Split:
        """Split of one picture."""
        return split_of(self.subject_of(index).hexcode, STYLES[self.styles[index]].name)

    def subject_of(self, index: int) -> Subject:
        """Subject of one picture."""
        return self.subjects[self.subject_indices[index]]


def gather(size: int = SIZE, *, everything: bool = False, folder: Path | None = None) -> Path:
    """Fetch and draw all styles; a style that is already there is kept, so an interrupted run goes on.

    Args:
        size: Side of the pictures in pixels.
        everything: Also people, smileys, symbols and flags, not only the things.
        folder: Root of the recipe's files; the user's cache by default.

    Returns:
        Folder with `subjects.json` and one `STYLE.npz` a style.
    """
    root = folder or cache_folder()
    target = data_folder(root, size, everything)
    packages = root / "packages"
    subjects = load_subjects(packages, None if everything else THINGS)
    with atomic_write(target / "subjects.json") as path:
        path.write_text(json.dumps([asdict(subject) for subject in subjects], ensure_ascii=False, indent=1))
    names = Names.from_packages(packages)
    for style in tqdm(STYLES, desc="styles", unit="style"):
        if not (target / f"{style.name}.npz").exists():
            _draw_style(style, subjects, names, packages, target / f"{style.name}.npz", size)
    return target


def data_folder(root: Path, size: int, everything: bool) -> Path:
    """Folder of one data set."""
    return root / "data" / f"{'all' if everything else 'things'}-{size}"


def load(size: int = SIZE, *, everything: bool = False, folder: Path | None = None) -> EmojiPictures:
    """Pictures of a data set, gathered first where they are not there yet."""
    target = data_folder(folder or cache_folder(), size, everything)
    if not all((target / f"{style.name}.npz").exists() for style in STYLES):
        gather(size, everything=everything, folder=folder)
    return read(target)


def read(folder: Path) -> EmojiPictures:
    """Pictures of a gathered data set, ordered by style, then by subject."""
    entries = json.loads((folder / "subjects.json").read_text())
    subjects = tuple(
        Subject(**entry | {"tags": tuple(entry["tags"]), "shortcodes": tuple(entry["shortcodes"])}) for entry in entries
    )
    parts = []
    for style in STYLES:
        with np.load(folder / f"{style.name}.npz") as arrays:
            parts.append((arrays["images"], arrays["subject_indices"]))
    counts = [len(images) for images, _ in parts]
    return EmojiPictures(
        images=np.concatenate([images for images, _ in parts]),
        styles=np.repeat(np.arange(len(STYLES)), counts),
        subject_indices=np.concatenate([indices for _, indices in parts]),
        subjects=subjects,
    )


def _draw_style(style: Style, subjects: list[Subject], names: Names, packages: Path, target: Path, size: int) -> None:
    tarball = fetch_package(style.package, packages)
    if style.layout == "files":
        drawn = render_files(tarball, subjects, size)
    else:
        drawn = _render_icons(style, IconSet(tarball), subjects, names, size)
    pictures = {index: picture for index, picture in drawn if not is_blank(picture)}
    indices = sorted(pictures)
    with atomic_write(target) as path, path.open("wb") as stream:
        np.savez_compressed(
            stream,
            images=np.stack([pictures[index] for index in indices]),
            subject_indices=np.array(indices, np.int64),
        )
    logger.info("%s: %d of %d subjects", style.name, len(indices), len(subjects))


def _render_icons(
    style: Style, icons: IconSet, subjects: list[Subject], names: Names, size: int
) -> Iterator[tuple[int, np.ndarray]]:
    for index, subject in enumerate(tqdm(subjects, desc=style.name, unit="picture", leave=False)):
        name = find_drawing(style, icons, subject, names)
        if name is not None:
            yield index, render_svg(icons.svg(name), size)


def counts(pictures: EmojiPictures) -> list[tuple[str, int, int]]:
    """Per style: its name, the number of pictures, and how many of them are held out."""
    held_out = set(pictures.split("held_out_subject", "held_out_pair").tolist())
    rows = []
    for number, style in enumerate(STYLES):
        members = np.flatnonzero(pictures.styles == number).tolist()
        rows.append((style.name, len(members), len(held_out.intersection(members))))
    return rows


def save_sheet(pictures: EmojiPictures, path: Path) -> Path:
    """Contact sheet: some subjects down, all styles across."""
    numbers = {subject.label: number for number, subject in enumerate(pictures.subjects)}
    places = {
        (subject, style): index
        for index, (subject, style) in enumerate(zip(pictures.subject_indices, pictures.styles, strict=True))
    }
    labels = [label for label in SHEET_SUBJECTS if label in numbers]
    found = [[places.get((numbers[label], style)) for style in range(len(STYLES))] for label in labels]
    rows = [
        [None if index is None else Image.fromarray(pictures.images[index]) for index in indices] for indices in found
    ]
    with atomic_write(path) as temporary:
        contact_sheet(rows, [style.name for style in STYLES], labels, cell=96).save(temporary)
    return path
