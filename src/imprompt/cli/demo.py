"""`imprompt demo`: a contact sheet of what image prompts do, drawn by the embedded model."""

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imprompt.cli.progress import busy, progress_bar
from imprompt.core.errors import BundleError

if TYPE_CHECKING:
    from PIL import Image

    from imprompt.generation.attach import PipelineAttachment
    from imprompt.generation.result import Result
    from imprompt.prompts.image_prompt import ImagePrompt

# Things that the embedded model was trained on, as a text that none of the references shows.
TEXTS = ("cat face", "rocket", "guitar", "pizza", "house")

TEXT_WEIGHT = 0.6  # of an image that shares the picture with a text
BATCH_SIZE = 20  # cells sampled at once
CELL = 128  # side of a picture on the sheet, in pixels


@dataclass(frozen=True)
class Example:
    """One row of the sheet.

    Attributes:
        name: what the reference shows, and in which style.
        file: the reference.
        other: the reference that joins it in the column of two.
        text: what the text asks for.
    """

    name: str
    file: Path
    other: Path
    text: str


@dataclass(frozen=True)
class Column:
    """One column of the sheet.

    Attributes:
        label: what it shows.
        has_text: whether the row's text is used.
        images: the image prompts that a row has in it.
    """

    label: str
    has_text: bool
    images: "Callable[[Example], list[ImagePrompt]]"


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write.")] = Path("demo.png"),
    adapter: Annotated[str, typer.Option(help="'global' or 'plus'.")] = "plus",
    seed: Annotated[int, typer.Option(help="Of the first row; the k-th has seed + k.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
) -> None:
    """Draw a contact sheet of what image prompts do, on the embedded model.

    References that the model has never seen stand on the left; then what it makes of the text alone, the image alone,
    both, two images, an image in the left half only, and an image of rising weight beside the text.
    """
    from imprompt.generation.result import check_output, save_png

    output = output if output.suffix else output / "demo.png"
    check_output(output)
    began = time.monotonic()
    with busy("loading the embedded model"):
        pipe, attachment = load(adapter)
    examples = choose_examples()
    with progress_bar("drawing") as bar:
        results = draw(pipe, attachment, examples, COLUMNS, seed=seed, steps=steps, progress=bar)
    save_png(sheet(examples, COLUMNS, results), output, provenance(COLUMNS, results))
    count = len(examples) * len(COLUMNS)
    typer.echo(f"{output}: {count} pictures from {len(examples)} references in {time.monotonic() - began:.0f} s")
    typer.echo(f"Next: {next_command(examples[0])}")


def load(adapter: str) -> "tuple[Any, PipelineAttachment]":
    """The embedded pipeline with one of its adapters."""
    from imprompt.generation.attach import attach
    from imprompt.generation.pipelines import load_embedded_adapter, load_pipeline
    from imprompt.generation.quiet import quiet_libraries

    quiet_libraries()
    pipe = load_pipeline()
    return pipe, attach(pipe, load_embedded_adapter(adapter))


def choose_examples() -> list[Example]:
    """A reference for every text, spread over those that are packaged.

    Raises:
        BundleError: there are none.
    """
    from imprompt.emoji.bundle import reference_pictures

    pictures = list(reference_pictures().items())
    if not pictures:
        raise BundleError("the embedded model has no reference pictures; install imprompt again")
    chosen = [pictures[place * len(pictures) // len(TEXTS)] for place in range(len(TEXTS))]
    return [
        Example(name, file, chosen[(place + 1) % len(chosen)][1], text)
        for place, ((name, file), text) in enumerate(zip(chosen, TEXTS, strict=True))
    ]


def draw(
    pipe: Any,
    attachment: "PipelineAttachment",
    examples: Sequence[Example],
    columns: Sequence[Column],
    *,
    seed: int,
    steps: int | None,
    progress: Callable[[int, int], None],
) -> "list[list[Result]]":
    """The pictures of every column; all cells of a row start from the same noise."""
    from imprompt.generation.generate import generate_rows
    from imprompt.generation.pipelines import settings_for
    from imprompt.generation.request import Request

    settings = settings_for(None, steps=steps)
    requests = [
        Request(
            prompt=example.text if column.has_text else "",
            image_prompts=column.images(example),
            seed=seed + row,
            **settings,
        )
        for column in columns
        for row, example in enumerate(examples)
    ]
    batches = [requests[start : start + BATCH_SIZE] for start in range(0, len(requests), BATCH_SIZE)]
    results: list[Result] = []
    for number, batch in enumerate(batches):
        results += generate_rows(pipe, attachment, batch, progress=_part(progress, number, len(batches)))
    return [results[start : start + len(examples)] for start in range(0, len(results), len(examples))]


def sheet(examples: Sequence[Example], columns: Sequence[Column], results: "list[list[Result]]") -> "Image.Image":
    """References and pictures in a grid."""
    from imprompt.core.images import load_image
    from imprompt.core.sheet import contact_sheet

    rows = [
        [load_image(example.file), *(column[row].images[0] for column in results)]
        for row, example in enumerate(examples)
    ]
    return contact_sheet(
        rows,
        ["reference", *(column.label for column in columns)],
        [f"{example.name}; text: {example.text}" for example in examples],
        cell=CELL,
    )


def provenance(columns: Sequence[Column], results: "list[list[Result]]") -> Mapping[str, Any]:
    """What made the sheet: models and versions once, then every cell."""
    shared = ("base", "adapters", "image_encoders", "versions", "steps", "guidance_scale")
    first = results[0][0].provenance
    return {
        **{name: first[name] for name in shared},
        "cells": [
            {"column": column.label, "row": row, **_own(result)}
            for column, cells in zip(columns, results, strict=True)
            for row, result in enumerate(cells)
        ],
    }


def next_command(example: Example) -> str:
    """What to type next, by the name under which this program was found."""
    program, file = Path(sys.argv[0]), _as_typed(example.file)
    called = program.name if shutil.which(program.name) else _as_typed(program.absolute())
    words = [str(called), "generate", example.text, "--image", str(file), "--weight", str(TEXT_WEIGHT)]
    return shlex.join([*words, "--output", f"{example.text.replace(' ', '-')}.png"])


def _as_typed(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _own(result: "Result") -> dict[str, Any]:
    return {name: result.provenance_of(0)[name] for name in ("prompt", "image_prompts", "seed")}


def _part(progress: Callable[[int, int], None], number: int, count: int) -> Callable[[int, int], None]:
    return lambda done, total: progress(number * total + done, count * total)


def _alone(example: Example) -> "list[ImagePrompt]":
    return _weighted(1.0)(example)


def _two(example: Example) -> "list[ImagePrompt]":
    from imprompt.prompts.image_prompt import ImagePrompt

    return [ImagePrompt(example.file, weight=0.5), ImagePrompt(example.other, weight=0.5)]


def _left_half(example: Example) -> "list[ImagePrompt]":
    import numpy as np

    from imprompt.prompts.image_prompt import ImagePrompt

    mask = np.zeros((CELL, CELL), dtype=np.float32)
    mask[:, : CELL // 2] = 1.0
    return [ImagePrompt(example.file, mask=mask)]


def _weighted(weight: float) -> "Callable[[Example], list[ImagePrompt]]":
    def images(example: Example) -> "list[ImagePrompt]":
        from imprompt.prompts.image_prompt import ImagePrompt

        return [ImagePrompt(example.file, weight=weight)]

    return images


COLUMNS = (
    Column("text alone", True, lambda _: []),
    Column("image alone", False, _alone),
    Column("image and text", True, _weighted(TEXT_WEIGHT)),
    Column("two images", False, _two),
    Column("text, image in the left half", True, _left_half),
    Column("text, image of weight 0.2", True, _weighted(0.2)),
    Column("weight 0.5", True, _weighted(0.5)),
    Column("weight 0.8", True, _weighted(0.8)),
)
