"""Drawing the pictures of an evaluation: each file is whole or not there, and what is there is not drawn again."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
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

    A picture depends on its prompt, reference, scale and seed alone; batches show in rounding at most.

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
    for start in range(0, len(missing), batch_size):
        if progress is not None:
            progress(len(wanted) - len(missing) + start, len(wanted))
        batch = missing[start : start + batch_size]
        results = generate(pipe, attachment, [request_of(item, protocol) for item in batch], batch_size=batch_size)
        for item, result in zip(batch, results, strict=True):
            save_png(result.images[0], picture_file(folder, item), result.provenance_of(0))
    if progress is not None:
        progress(len(wanted), len(wanted))
    return len(missing)


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
    settings = {name: value for name, value in asdict(protocol).items() if name in _DECIDES}
    references = {_told(path): sha256_file(path) for case in cases for path in case.references}
    file = folder / RUN
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    said = json.loads(json.dumps({"models": models, "settings": settings}))
    known_settings = before.get("settings", said["settings"])
    changed = [
        f"{'protocol' if name == 'name' else name} ({known_settings.get(name)} there, {value} now)"
        for name, value in said["settings"].items()
        if known_settings.get(name) != value
    ]
    changed += ["models"] if before.get("models", said["models"]) != said["models"] else []
    known: dict[str, str] = before.get("references", {})
    if any(known.get(name, value) != value for name, value in references.items()):
        changed.append("references")
    if changed:
        raise EvaluationError(
            f"'{folder}' holds pictures of other {' and '.join(changed)}; give another --output, or remove it"
        )
    with atomic_write(file) as temporary:
        content = {**said, "references": {**known, **references}}
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


_DECIDES = ("name", "layout", "steps", "guidance_scale", "scheduler", "negative_prompt")


def _told(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
