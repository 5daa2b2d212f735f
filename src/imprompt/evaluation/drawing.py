"""Drawing the pictures of an evaluation: each file is whole or not there, and what is there is not drawn again."""

import json
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from imprompt.core.errors import ImageError
from imprompt.core.files import atomic_write, sha256_file
from imprompt.core.images import load_image
from imprompt.evaluation.errors import EvaluationError
from imprompt.evaluation.items import Case, Item
from imprompt.evaluation.protocols import Protocol
from imprompt.generation.generate import generate
from imprompt.generation.request import Request
from imprompt.generation.result import read_provenance, save_png
from imprompt.prompts.image_prompt import ImagePrompt

logger = logging.getLogger(__name__)

RUN = "run.json"
Progress = Callable[[int, int], None]


def picture_file(folder: Path, item: Item) -> Path:
    """Where an item's picture is; the reference itself where it is handed back."""
    return item.case.references[0] if item.arm == "copy" else folder / "pictures" / f"{item.key}.png"


def is_drawn(folder: Path, item: Item) -> bool:
    """Whether the picture is there and can be read; a damaged one is reported and drawn again."""
    file = picture_file(folder, item)
    if not file.is_file():
        return False
    try:
        load_image(file)
        if item.arm != "copy":
            read_provenance(file)
    except ImageError as error:
        if item.arm == "copy":
            raise
        logger.warning("picture '%s' is drawn again: %s", file.name, error)
        return False
    return True


def draw(
    pipe: Any,
    attachment: Any,
    items: Sequence[Item],
    protocol: Protocol,
    folder: Path,
    *,
    batch_size: int = 4,
    progress: Progress | None = None,
) -> int:
    """Draw what is missing.

    A picture depends on its prompt, reference, scale and seed alone; batches show in rounding at most. The text alone
    has no reference: subjects that are told the same share its pictures, each as a file of its own.

    Args:
        pipe: a pipeline, in evaluation as in use.
        attachment: the adapter on it.
        items: what is wanted.
        protocol: steps, guidance and sizes.
        folder: the run's; pictures go into `pictures/`.
        batch_size: pictures drawn at once; each batch is saved before the next.
        progress: called with pictures there and wanted.

    Returns:
        How many were drawn.
    """
    wanted = [item for item in items if item.arm != "copy"]
    missing = [item for item in wanted if not is_drawn(folder, item)]
    groups = _drawn_alike(missing)
    num_there = len(wanted) - len(missing)
    for start in range(0, len(groups), batch_size):
        if progress is not None:
            progress(num_there, len(wanted))
        batch = groups[start : start + batch_size]
        requests = [request_of(first, protocol) for first, *_ in batch]
        for members, result in zip(batch, generate(pipe, attachment, requests, batch_size=batch_size), strict=True):
            for item in members:
                save_png(result.images[0], picture_file(folder, item), result.provenance_of(0))
            num_there += len(members)
    if progress is not None:
        progress(len(wanted), len(wanted))
    return len(groups)


def _drawn_alike(items: Sequence[Item]) -> list[list[Item]]:
    """Items whose pictures are the same: those of the text alone with one prompt and seed."""
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        groups.setdefault((item.prompt, item.seed) if item.arm == "text" else item.key, []).append(item)
    return list(groups.values())


def request_of(item: Item, protocol: Protocol) -> Request:
    """What is asked for."""
    prompts = [ImagePrompt(path, weight=item.scale) for path in item.case.references] if item.arm == "adapter" else []
    return Request(
        prompt=item.prompt,
        negative_prompt=protocol.negative_prompt,
        image_prompts=prompts,
        steps=protocol.steps,
        guidance_scale=protocol.guidance_scale,
        seed=item.seed,
    )


def claim(folder: Path, protocol: Protocol, models: Mapping[str, Any], cases: Sequence[Case]) -> None:
    """Say in the run's folder what is drawn there and by what, or check that it is the same as before.

    Scales, number of seeds, subjects and metrics may be widened: they add pictures and change none.

    Raises:
        EvaluationError: the folder holds pictures of other models, settings or references.
    """
    references = {_told(path): sha256_file(path) for case in cases for path in case.references}
    before = _read_claim(folder)
    said = json.loads(json.dumps({"models": models, "settings": _settings(protocol)}))
    changed = _changed_settings(before, protocol)
    changed += ["models"] if before.get("models", said["models"]) != said["models"] else []
    known: dict[str, str] = before.get("references", {})
    if any(known.get(name, value) != value for name, value in references.items()):
        changed.append("references")
    _refuse(folder, changed)
    with atomic_write(folder / RUN) as temporary:
        content = {**said, "references": {**known, **references}}
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def check_settings(folder: Path, protocol: Protocol) -> None:
    """Refuse settings other than those of the pictures that are there, before any model is loaded.

    Raises:
        EvaluationError: they are others.
    """
    _refuse(folder, _changed_settings(_read_claim(folder), protocol))


def check_references(folder: Path, cases: Sequence[Case]) -> None:
    """Open every reference that the run does not know yet.

    Raises:
        ImageError: one is no picture.
    """
    known = _read_claim(folder).get("references", {})
    for path in dict.fromkeys(path for case in cases for path in case.references):
        if _told(path) not in known:
            load_image(path)


def _read_claim(folder: Path) -> dict[str, Any]:
    file = folder / RUN
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _settings(protocol: Protocol) -> dict[str, Any]:
    return {name: value for name, value in asdict(protocol).items() if name in _DECIDES}


def _changed_settings(before: Mapping[str, Any], protocol: Protocol) -> list[str]:
    """Settings that are not those of the run's folder, in words."""
    now = _settings(protocol)
    known = before.get("settings", now)
    return [
        f"{'protocol' if name == 'name' else name} ({known.get(name)} there, {value} now)"
        for name, value in now.items()
        if known.get(name) != value
    ]


def _refuse(folder: Path, changed: Sequence[str]) -> None:
    if changed:
        raise EvaluationError(
            f"'{folder}' holds pictures of other {' and '.join(changed)}; give another --output, or remove it"
        )


_DECIDES = ("name", "layout", "steps", "guidance_scale", "scheduler", "negative_prompt")


def _told(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
