"""Names that people type, and the published adapter that each one means."""

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import PurePosixPath

from imprompt.core.errors import DownloadError
from imprompt.core.published import PUBLISHED_ADAPTERS, PublishedAdapter, PublishedFile

# What people call a base, beside the names of the table.
FAMILIES = {
    "sd1": ("sd1", "sd15", "sd1.5", "sd-1.5"),
    "sdxl": ("sdxl", "xl"),
    "kolors": ("kolors",),
    "flux": ("flux", "flux.1"),
    "sd3": ("sd3", "sd3.5", "sd35"),
}
SUFFIXES = (".safetensors", ".bin")

_HUB = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?([:/](?P<inside>.*))?"
)
_NUM_NEAREST = 3
_ALIKE, _SIMILAR = 0.5, 0.75  # names that are worth a mention, and words that may be one another misspelt


@dataclass(frozen=True)
class HubName:
    """A place on the hub: `owner/name`, `owner/name/inside`, `owner/name:inside` or `owner/name@revision:inside`.

    Attributes:
        repository: Owner and name.
        inside: A file or folder in it; "" for all of it.
        revision: A commit, tag or branch; None if the name says none.
    """

    repository: str
    inside: str = ""
    revision: str | None = None


def parse_hub_name(name: str) -> HubName | None:
    """Read the name of a place on the hub; None if it is none, or leads out of its repository."""
    match = _HUB.fullmatch(name)
    if match is None:
        return None
    inside = (match["inside"] or "").rstrip("/")
    parts = inside.split("/") if inside else []
    if "\\" in inside or any(part in ("", ".", "..") for part in parts):
        return None
    return HubName(match["repository"], inside, match["revision"])


def find_adapter(name: str, *, family: str | None = None) -> PublishedAdapter:
    """Find the published adapter that a name means.

    Args:
        name: Its name (`ip-adapter-plus_sd15`), the end of it (`plus_sd15`), the name of its file, its place on the hub
            with or without the suffix (`h94/IP-Adapter:models/ip-adapter-plus_sd15`), its repository if that has but
            one, or what ComfyUI's loader calls it (`PLUS FACE`, with a family beside it or after it: `PLUS FACE sdxl`).
        family: The base it has to be for: `sd1` (`sd15`), `sdxl`, `kolors`, `flux`, `sd3`.

    Raises:
        DownloadError: No published adapter is called so, or several are; the nearest are named, each with the reason
            why it was not taken.
    """
    wanted = _family(family) if family else None
    adapters = [adapter for adapter in PUBLISHED_ADAPTERS if wanted in (None, adapter.family)]
    fitting = [adapter for adapter in adapters if _is_preset(name, adapter)]
    fitting = fitting or [adapter for adapter in adapters if _means(name.strip(), adapter)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        choices = ", ".join(f"'{adapter.name}' (for {adapter.family})" for adapter in fitting)
        raise DownloadError(f"'{name}' means several published adapters; say which one: {choices}.")
    wish = f"'{name}' for {family}" if family else f"'{name}'"
    nearest = describe_nearest(name, family=wanted)
    raise DownloadError(f"{wish} is not a file or folder here, nor a published adapter; {nearest}.")


def files_at(place: HubName) -> tuple[PublishedFile, ...]:
    """The published files that a place on the hub means, the best first; none if it means no published adapter.

    A path without its suffix means the file in every format there is, and a repository that has one adapter means that.
    """
    if not place.inside:
        adapters = [adapter for adapter in PUBLISHED_ADAPTERS if adapter.repository == place.repository]
        return adapters[0].files if len(adapters) == 1 else ()
    files = _files_of(place.repository)
    exact = tuple(file for file in files if file.path == place.inside)
    return exact or tuple(file for file in files if _stem(file.path) == place.inside)


def is_published(repository: str, file: PublishedFile | None = None) -> bool:
    """Whether published adapters are in a repository, or a file of them is."""
    files = _files_of(repository)
    return bool(files) if file is None else file in files


def describe_nearest(name: str, *, family: str | None = None) -> str:
    """Name the published adapters whose names are nearest, each with the reason why it is not the one, as a phrase."""
    asked = _words(PurePosixPath(name.strip().replace(":", "/")).name)
    ranked = sorted(PUBLISHED_ADAPTERS, key=lambda adapter: _likeness(asked, adapter, family), reverse=True)
    ranked = [adapter for adapter in ranked if _likeness(asked, adapter, family)[0] >= _ALIKE]
    if not ranked:
        return f"they are called as '{PUBLISHED_ADAPTERS[0].name}' is, and none is called anything like it"
    reasons = [f"'{adapter.name}' ({_reason(asked, adapter, family)})" for adapter in ranked[:_NUM_NEAREST]]
    return f"the nearest are {', '.join(reasons)}"


def _files_of(repository: str) -> tuple[PublishedFile, ...]:
    """Every published file of a repository, LoRAs included."""
    adapters = [adapter for adapter in PUBLISHED_ADAPTERS if adapter.repository == repository]
    loras = [adapter.lora for adapter in adapters if adapter.lora is not None]
    return (*(file for adapter in adapters for file in adapter.files), *loras)


def _means(name: str, adapter: PublishedAdapter) -> bool:
    """Whether a name is one of an adapter's own."""
    place = parse_hub_name(name)
    if place is not None:
        return place.repository == adapter.repository and any(file in adapter.files for file in files_at(place))
    return _plain(name) in _names(adapter)


def _names(adapter: PublishedAdapter) -> set[str]:
    """Every name of an adapter but those with a repository, plain."""
    own = _plain(adapter.name)
    names = {own, own.removeprefix("ip-adapter-")}
    for file in adapter.files:
        base = _plain(PurePosixPath(file.path).name)
        if base not in ("ip-adapter.bin", "ip-adapter.safetensors"):  # what half of the repositories call theirs
            names |= {base, _stem(base)}
    return names


def _plain(name: str) -> str:
    """A name in small letters, with hyphens wherever people write them or something else."""
    return re.sub(r"[-_\s]+", "-", name.strip().lower())


def _is_preset(name: str, adapter: PublishedAdapter) -> bool:
    """Whether a name is what ComfyUI's loader calls an adapter, with all it says, or with a family after it."""
    if adapter.preset is None:
        return False
    label = re.split(r"\s+\(|\s+-\s", name.strip())[0]  # "PLUS FACE (portraits)", "FULL FACE - SD1.5 only (...)"
    words = label.split()
    named = words[:-1] if words and words[-1].lower() in FAMILIES[adapter.family] else words
    return adapter.preset in (" ".join(words).upper(), " ".join(named).upper())


def _family(name: str) -> str:
    for family, aliases in FAMILIES.items():
        if name.lower() in aliases:
            return family
    raise DownloadError(f"'{name}' is no family of base models; expected one of {', '.join(FAMILIES)}.")


def _stem(path: str) -> str:
    """A path without a suffix that weights have; `pulid_v1.1` has none."""
    return next((path.removesuffix(suffix) for suffix in SUFFIXES if path.endswith(suffix)), path)


def _words(name: str) -> list[str]:
    """The words of a name, families by the name that the table has for them."""
    words = re.split(r"[-_\s()]+", _stem(name.lower()))
    known = {alias: family for family, aliases in FAMILIES.items() for alias in aliases}
    return [known.get(word, word) for word in words if word and word not in ("ip", "adapter")]


def _likeness(asked: list[str], adapter: PublishedAdapter, family: str | None) -> tuple[float, bool]:
    """How near a name is: by the letters, and then whether it is of the family that was asked for."""
    alike = (SequenceMatcher(None, " ".join(asked), " ".join(words)).ratio() for words in _wordings(adapter))
    return max(alike), family in (None, adapter.family)


def _wordings(adapter: PublishedAdapter) -> list[list[str]]:
    preset = [[*_words(adapter.preset), adapter.family], _words(adapter.preset)] if adapter.preset else []
    return [_words(adapter.name), *preset]


def _reason(asked: list[str], adapter: PublishedAdapter, family: str | None) -> str:
    """Why an adapter is not the one that was asked for."""
    asked_families = {word for word in [*asked, family] if word in FAMILIES}
    if asked_families and adapter.family not in asked_families:
        return f"for {adapter.family}"
    own = _words(adapter.name)
    missing = [word for word in asked if word not in own and word not in FAMILIES]
    further = [word for word in own if word not in asked and word not in FAMILIES]
    for word in missing:
        for other in further:
            if SequenceMatcher(None, word, other).ratio() >= _SIMILAR:
                return f"spelt '{other}', not '{word}'"
    if missing:
        return f"has no '{missing[0]}'"
    if further:
        return f"also has '{further[0]}'"
    return f"for {adapter.family}; write it in full"
