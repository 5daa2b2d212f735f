"""`imprompt grid`: one labelled sheet of pictures over two settings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imprompt.cli.generate import attach_wanted, check_pictures, image_prompts, load_base, plain_words, request_of
from imprompt.cli.progress import busy, progress_bar
from imprompt.core.errors import PromptError

if TYPE_CHECKING:
    from PIL import Image

    from imprompt.generation.request import Request
    from imprompt.generation.result import Result

CELL = 128  # side of a picture on the sheet, in pixels
MAX_PICTURES = 400
OF_REQUEST = ("prompt", "negative_prompt", "seed", "steps", "guidance_scale")
OF_IMAGES = (
    "image", "weight", "start", "end", "unit", "blocks", "second_weight", "curve", "combine", "fit", "detail",
    "detail_weight", "attention", "feather", "mask", "negative",
)  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it takes along one side of the sheet."""

    name: str
    values: tuple[Any, ...]

    @property
    def labels(self) -> list[str]:
        """Each value in words."""
        return [f"{self.name} {_word(value)}" for value in self.values]


def grid(  # noqa: PLR0913  (a command's options are its parameters)
    prompt: Annotated[str, typer.Argument(help="The text.")] = "",
    image: Annotated[list[str] | None, typer.Option("--image", "-i", help="A picture to follow; repeatable.")] = None,
    columns: Annotated[str, typer.Option(help="A setting and its values: weight=0.2,0.5,0.8")] = "seed=1,2,3",
    rows: Annotated[str | None, typer.Option(help="Another: blocks=style,composition")] = None,
    request: Annotated[Path | None, typer.Option(help="A request file (TOML, YAML or JSON) to start from.")] = None,
    adapter: Annotated[str | None, typer.Option(help="As in generate.")] = None,
    base: Annotated[str | None, typer.Option(help="As in generate.")] = None,
    encoder: Annotated[str | None, typer.Option(help="As in generate.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Where no axis has seeds; 0 if nothing says.")] = None,
    size: Annotated[str | None, typer.Option(help="Side, or WIDTHxHEIGHT, in pixels.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw a chart: likeness to the references against the columns' values.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The sheet, a .png file.")] = Path("grid.png"),
) -> None:
    """Draw one sheet over two settings, every other thing being equal.

    A setting is one of a request (seed, steps, guidance_scale, prompt) or of its image prompts (weight, start, end,
    blocks, curve, attention, image, ...), which it is given to all of. Values are separated by commas, or by bars where
    they hold commas themselves.

    Examples:

    imprompt grid -i cat.png --columns weight=0.2,0.5,1.0 --rows seed=1,2,3

    imprompt grid "a red apple" -i cat.png --rows "blocks=style|composition|3:1.0, 6:0.8" --columns weight=0.5,1.0

    imprompt grid --request shot.toml --columns end=0.25,0.5,1.0 --plot likeness.png
    """
    from imprompt.generation.generate import generate
    from imprompt.generation.result import check_output, save_png

    for path in (output, plot):
        if path is not None:
            check_output(path)
            if not path.suffix:
                raise PromptError(f"{str(path)!r} names a folder; give the name of a .png file")
    across, down = parse_axis(columns), parse_axis(rows) if rows else Axis("", ("",))
    models = {"base": base, "adapter": adapter, "encoder": encoder}
    start, named = request_of(
        request, prompt, image_prompts(image or [], "crop"), models=models, size=size, steps=steps, seed=seed
    )
    cells = cells_of(start if start.seed is not None else replace(start, seed=0), across, down)
    for cell in cells:
        check_pictures(cell.image_prompts)
    with plain_words():
        with busy("loading"):
            pipe = load_base(named["base"], named["scheduler"], False)
            attachment = attach_wanted(pipe, named, cells)
        with progress_bar(f"drawing {len(cells)} pictures") as bar:
            results = generate(pipe, attachment, cells, progress=bar, batch_size=16)
    save_png(sheet(results, across, down), output, {"cells": [dict(result.provenance_of(0)) for result in results]})
    typer.echo(output)
    if plot is not None:
        save_png(likeness_chart(attachment, cells, results, across, down), plot, {"grid": output.name})
        typer.echo(plot)


def parse_axis(text: str) -> Axis:
    """A setting and its values, of `weight=0.2,0.5`.

    Raises:
        PromptError: no such setting, or no values.
    """
    import difflib

    name, equals, values = (part.strip() for part in text.partition("="))
    known = (*OF_REQUEST, *OF_IMAGES)
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise PromptError(f"a grid has no setting {name!r}; did you mean {nearest!r}? It knows {', '.join(known)}")
    parts = [part.strip() for part in values.split("|" if "|" in values else ",") if part.strip()]
    if not equals or not parts:
        raise PromptError(f"{text!r} gives {name} no values; write {name}=FIRST,SECOND,...")
    return Axis(name, tuple(_typed(part) for part in parts))


def cells_of(start: "Request", across: Axis, down: Axis) -> "list[Request]":
    """The request of every cell, row by row.

    Raises:
        PromptError: too many, or a value makes no sense.
    """
    count = len(across.values) * len(down.values)
    if count > MAX_PICTURES:
        raise PromptError(f"the grid has {count} pictures; at most {MAX_PICTURES} are drawn, so leave some values out")
    return [
        varied(varied(replace(start, num_images=1), down.name, row), across.name, column)
        for row in down.values
        for column in across.values
    ]


def varied(request: "Request", name: str, value: Any) -> "Request":
    """The request with one setting changed; of image prompts, in all of them."""
    from imprompt.prompts.parse import parse_prompt

    if not name:
        return request
    if name in OF_REQUEST:
        return replace(request, **{name: str(value) if "prompt" in name else value})
    if not request.image_prompts:
        raise PromptError(f"{name} is a setting of image prompts, and there are none; give an --image")
    # Read as a request file would be, so that a value means the same; what it changes is then put in place.
    stand_in = {} if name == "image" else {"image": "reference"}
    changed = getattr(parse_prompt({**stand_in, name: str(value) if name in ("image", "mask") else value}), name)
    return replace(request, image_prompts=[replace(prompt, **{name: changed}) for prompt in request.image_prompts])


def sheet(results: "Sequence[Result]", across: Axis, down: Axis) -> "Image.Image":
    """The pictures with their labels."""
    from imprompt.core.sheet import contact_sheet

    width = len(across.values)
    pictures = [result.images[0] for result in results]
    table = [pictures[start : start + width] for start in range(0, len(pictures), width)]
    return contact_sheet(table, across.labels, down.labels if down.name else (), cell=CELL)


def likeness_chart(
    attachment: Any, cells: "Sequence[Request]", results: "Sequence[Result]", across: Axis, down: Axis
) -> "Image.Image":
    """Likeness of every picture to its references, by the adapter's own encoder, a curve a row."""
    from imprompt.core.chart import line_chart

    if attachment is None:
        raise PromptError("--plot needs references to compare with; give an --image")
    if not all(isinstance(value, int | float) for value in across.values):
        raise PromptError(f"--plot draws against numbers, and the columns' {across.name} has others")
    values = [likeness(attachment, cell, result) for cell, result in zip(cells, results, strict=True)]
    width = len(across.values)
    names = down.labels if down.name else ["likeness"]
    curves = {name: values[place * width : (place + 1) * width] for place, name in enumerate(names)}
    places = [float(value) for value in across.values]
    return line_chart(curves, places, x_label=across.name, y_label="likeness (cosine, the adapter's encoder)")


def likeness(attachment: Any, cell: "Request", result: "Result") -> float:
    """Mean cosine of a picture's features and its references'."""
    import torch

    from imprompt.prompts.image_prompt import ImagePrompt

    made = attachment.encode(ImagePrompt(result.images[0])).features.flatten(1)
    shown = [prompt for prompt in cell.image_prompts if prompt.images]
    features = [attachment.encode(ImagePrompt(prompt.images)).features.flatten(1) for prompt in shown]
    if not features:
        raise PromptError("--plot needs references that are pictures")
    return float(torch.cosine_similarity(made, torch.cat(features)).mean())


def _typed(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _word(value: Any) -> str:
    return (
        Path(value).stem if isinstance(value, str) and value.lower().endswith((".png", ".jpg", ".webp")) else str(value)
    )
