"""What a repository of published adapters holds, off the table: nothing is downloaded."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imprompt.core.published import PublishedAdapter

BASES = {
    "sd1": "Stable Diffusion 1.x",
    "sdxl": "Stable Diffusion XL",
    "kolors": "Kolors",
    "flux": "FLUX.1",
    "sd3": "Stable Diffusion 3.5",
}
PARTS = {"csgo": ("content", "style")}  # of files that hold several adapters, by how their names begin


def repository_facts(name: str) -> dict[str, Any] | None:
    """The published adapters of a repository; None if the name is something else, or no repository of the table."""
    from imprompt.core.published import PUBLISHED_ADAPTERS, REVISIONS
    from imprompt.core.registry import parse_hub_name

    place = parse_hub_name(name)
    if place is None or place.inside or Path(name).expanduser().exists():
        return None
    adapters = [adapter for adapter in PUBLISHED_ADAPTERS if adapter.repository == place.repository]
    if not adapters:
        return None
    return {
        "repository": place.repository,
        "revision": place.revision or REVISIONS.get(place.repository),
        "adapters": [_facts(adapter) for adapter in adapters],
    }


def as_rows(facts: dict[str, Any]) -> dict[str, Any]:
    """The same for a table: each adapter beside its file."""
    rest = {name: value for name, value in facts.items() if name != "adapters"}
    return rest | {each["file"]: {name: each[name] for name in each if name != "file"} for each in facts["adapters"]}


def _facts(adapter: "PublishedAdapter") -> dict[str, Any]:
    best, *others = adapter.files
    return {
        "file": best.path,
        "also_as": [file.path for file in others],
        "bytes": best.num_bytes,
        "variant": adapter.name,
        "what": _what(adapter),
        "encoder": _encoder(adapter.encoder),
        "face_networks": None if adapter.face_encoder is None else f"InsightFace's pack {adapter.face_encoder!r}",
        "lora": None if adapter.lora is None else adapter.lora.path,
        "licence": adapter.licence,
        "load": _call(adapter),
    }


def _what(adapter: "PublishedAdapter") -> str:
    reads = {
        (True, False): "follows a picture",
        (False, True): "follows a face",
        (True, True): "follows a face and its picture",
    }[adapter.encoder is not None, adapter.face_encoder is not None]
    preset = "" if adapter.preset is None else f"; {adapter.preset!r} in ComfyUI's loader"
    return f"an adapter for {BASES[adapter.family]} that {reads}{preset}"


def _encoder(address: str | None) -> str | None:
    """An encoder by its name and where it is to be had."""
    from imprompt.encoders.known import encoder_at

    known = None if address is None else encoder_at(address)
    return address if known is None else f"{known.name}, {known.address}"


def _call(adapter: "PublishedAdapter") -> str:
    parts = next((parts for start, parts in PARTS.items() if adapter.name.startswith(start)), ())
    calls = [f'load_adapter("{adapter.name}", part="{part}")' for part in parts]
    return ", ".join(calls) or f'load_adapter("{adapter.name}")'
