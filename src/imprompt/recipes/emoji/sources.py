"""The drawings and their names as npm packages carry them: fetching, reading, and finding a subject in each set."""

import json
import re
import subprocess
import tarfile
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprompt.core.errors import DownloadError
from imprompt.emoji.styles import STYLES, Style

NAMES_PACKAGE = "emojibase-data@17.0.0"
THINGS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")


@dataclass(frozen=True)
class Subject:
    """What an emoji depicts: its Unicode code points, CLDR name and search words."""

    hexcode: str
    label: str
    tags: tuple[str, ...]
    shortcodes: tuple[str, ...]
    group: str


def fetch_package(spec: str, folder: Path) -> Path:
    """Tarball of the npm package `name@version`, downloaded once.

    Raises:
        DownloadError: npm is missing or could not fetch the package.
    """
    name, version = spec.rsplit("@", 1)
    tarball = folder / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    if tarball.exists():
        return tarball
    folder.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["npm", "pack", "--silent", spec], cwd=folder, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DownloadError(f"npm could not fetch '{spec}' ({error}). Install npm and check the registry.") from error
    return tarball


def read_json(tarball: Path, member: str) -> Any:
    """Parsed JSON file of a package, or None where the package has no such file."""
    with tarfile.open(tarball) as archive:
        try:
            stream = archive.extractfile(f"package/{member}")
        except KeyError:
            return None
        return json.load(stream) if stream else None


def normal_hexcode(hexcode: str) -> str:
    """Code points without leading zeros and without the variation selector, which only some sets write."""
    parts = (part.lstrip("0") for part in hexcode.upper().split("-"))
    return "-".join(part for part in parts if part != "FE0F")


def slug(label: str) -> str:
    """Label as icon sets spell it in file names: "piñata" -> "pinata", "T-Rex" -> "t-rex"."""
    ascii_label = unicodedata.normalize("NFKD", label.lower()).encode("ascii", "ignore").decode()
    spelled = ascii_label.replace("'", "").replace("*", "asterisk").replace("#", "hash").replace("&", "and")
    return re.sub(r"[^a-z0-9]+", "-", spelled).strip("-")


def load_subjects(folder: Path, groups: tuple[str, ...] | None = THINGS) -> list[Subject]:
    """Subjects of the given Unicode groups (None: all), in Unicode's own order."""
    tarball = fetch_package(NAMES_PACKAGE, folder)
    group_names = read_json(tarball, "meta/groups.json")["groups"]
    shortcodes = read_json(tarball, "en/shortcodes/iamcal.json") or {}
    subjects = []
    for entry in read_json(tarball, "en/data.json"):
        group = group_names.get(str(entry.get("group")), "component")
        if group != "component" and (groups is None or group in groups):
            subjects.append(_subject(entry, group, shortcodes.get(entry["hexcode"], ())))
    return subjects


def _subject(entry: dict[str, Any], group: str, shortcodes: str | list[str] | tuple[str, ...]) -> Subject:
    codes = (shortcodes,) if isinstance(shortcodes, str) else tuple(shortcodes)
    tags = tuple(dict.fromkeys(entry.get("tags", ())))
    return Subject(entry["hexcode"], entry["label"], tags, codes, group)


class IconSet:
    """One Iconify package: SVG bodies by name, aliases, and for most sets a table from code points to names."""

    def __init__(self, tarball: Path) -> None:
        self._data = read_json(tarball, "icons.json")
        characters = read_json(tarball, "chars.json") or {}
        self.names_by_hexcode = {normal_hexcode(code): name for code, name in characters.items()}
        self._names_without_dashes = {name.replace("-", ""): name for name in self._data["icons"]}

    def resolve(self, name: str) -> str | None:
        """Name of the drawing behind `name`, through aliases that do not turn or flip it."""
        for _ in range(6):
            if name in self._data["icons"]:
                return name
            alias = self._data.get("aliases", {}).get(name)
            if alias is None or set(alias) - {"parent", "hidden"}:
                return None
            name = alias["parent"]
        return None

    def resolve_loosely(self, name: str) -> str | None:
        """As `resolve`, but also blind to dashes and underscores."""
        return self.resolve(name) or self._names_without_dashes.get(name.replace("-", "").replace("_", ""))

    def svg(self, name: str) -> str:
        """The drawing as a complete SVG document."""
        icon = self._data["icons"][name]
        left, top, width, height = (
            icon.get(key, self._data.get(key, default))
            for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )
        body = icon["body"].replace("currentColor", "#000000")
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{body}</svg>'
        )


class Names:
    """The names under which a set without a code-point table may know a subject."""

    def __init__(self, tables: Sequence[Mapping[str, str]]) -> None:
        """Take tables from code points to names, the preferred one first."""
        self._tables = tables

    @classmethod
    def from_packages(cls, folder: Path) -> "Names":
        """Names of the sets that have a table and are large."""
        with_table = [style for style in STYLES if style.name in ("noto", "fluentflat", "twemoji")]
        return cls([IconSet(fetch_package(style.package, folder)).names_by_hexcode for style in with_table])

    def candidates(self, subject: Subject) -> list[str]:
        """Names given by sets that have a table, then the CLDR label, then the shortcodes."""
        code = normal_hexcode(subject.hexcode)
        names = [table.get(code) for table in self._tables]
        names += [slug(subject.label), *(shortcode.replace("_", "-") for shortcode in subject.shortcodes)]
        return list(dict.fromkeys(name for name in names if name))


def find_drawing(style: Style, icons: IconSet, subject: Subject, names: Names) -> str | None:
    """Name of a subject's drawing in an icon set, or None where the set does not draw it."""
    if icons.names_by_hexcode:
        name = icons.names_by_hexcode.get(normal_hexcode(subject.hexcode))
        return icons.resolve(name) if name else None
    candidates = names.candidates(subject)
    if style.name == "fxemoji":
        return _find_old_drawing(icons, subject, candidates)
    return next((found for found in map(icons.resolve, candidates) if found), None)


def _find_old_drawing(icons: IconSet, subject: Subject, candidates: list[str]) -> str | None:
    """FxEmoji uses older names: shortcodes come first, and its symbols mean other things than today's."""
    if subject.group == "symbols":
        return None
    older_names = [code.replace("_", "-") for code in subject.shortcodes]
    return next((found for found in map(icons.resolve_loosely, [*older_names, *candidates]) if found), None)
