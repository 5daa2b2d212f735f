"""`imprompt evaluate`: draw a protocol's pictures, measure them, and show both."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imprompt.cli.generate import NAMES, attach_adapter, load_base, plain_words
from imprompt.cli.interrupts import goes_on
from imprompt.cli.progress import busy, progress_bar
from imprompt.cli.split import Engine, split_of
from imprompt.core.errors import PromptError

if TYPE_CHECKING:
    from imprompt.evaluation.items import Item
    from imprompt.evaluation.protocols import Protocol
    from imprompt.evaluation.results import Results


@goes_on("the pictures that are drawn")
def evaluate(  # noqa: PLR0913  (a command's options are its parameters)
    protocol: Annotated[str, typer.Argument(help="coco, dreambench, dreambench-plus, style, sweep, or folder.")],
    source: Annotated[Path, typer.Argument(help="Folder of references, in the protocol's layout.")],
    base: Annotated[str | None, typer.Option(help="As in generate.")] = None,
    adapter: Annotated[str | None, typer.Option(help="As in generate.")] = None,
    encoder: Annotated[str | None, typer.Option(help="As in generate.")] = None,
    faces: Annotated[str | None, typer.Option(help="As in generate.")] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(help="Network that judges, SLOT=FOLDER: clip, dino, dinov2, csd, face, inception."),
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="What to measure, separated by commas.")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A text of every subject, {subject} in dreambench and sweep; repeatable.")
    ] = None,
    scales: Annotated[str | None, typer.Option(help="Weights of the image prompt, separated by commas.")] = None,
    num_seeds: Annotated[int | None, typer.Option(help="Pictures of each subject, prompt and weight.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Strength of classifier-free guidance.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many subjects, from the first.")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Draw one share only, as 1/4; the ranks of torchrun, SLURM and MPI are read by themselves."),
    ] = None,
    engine: Annotated[
        Engine,
        typer.Option(help="Who draws: this process, or a Ray cluster, all of whose machines see the same paths."),
    ] = Engine.LOCAL,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures drawn at once.")] = 4,
    fail_under: Annotated[
        list[str] | None, typer.Option(help="Exit with status 1 where a mean is lower: clip_i=0.7; repeatable.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The run's folder.")] = Path("evaluation"),
) -> None:
    """Measure how well pictures follow their references and their texts.

    Draws what is missing (a stopped evaluation goes on where it was), then writes results.json and report.html: tables
    with 95 % intervals over subjects, prompts and seeds, curves, and the best, median and worst pictures, beside the
    text alone and the reference itself.

    Examples:

    imprompt evaluate folder ./my-pictures --metrics mobilenet,near_copies

    imprompt evaluate dreambench ./subjects --base ./sd15 --adapter ip-adapter-plus_sd15 --judge clip=./clip-vit-l14

    imprompt evaluate coco ./coco2017 --base ./sd15 --adapter ip-adapter_sd15 --split 1/8

    imprompt evaluate coco ./coco2017 --base ./sd15 --adapter ip-adapter_sd15 --engine ray
    """
    chosen = _settings(
        protocol,
        base,
        metrics=_parts(metrics, "--metrics"),
        scales=_scales(scales),
        num_seeds=num_seeds,
        steps=steps,
        guidance_scale=guidance_scale,
        prompts=tuple(prompt) if prompt else None,
    )
    judges, least = _pairs(judge, "--judge"), _bounds(fail_under)
    _check_bounds(chosen, least)
    share = split_of(split)
    items = _checked_items(chosen, source, limit, output)  # what is wrong with them is told before a model is loaded
    for note in _notes(chosen, items, output, judges) if share[0] == 0 else ():
        typer.echo(note, err=True)
    _check_judges(chosen, items, judges)
    missing, models = _draw(
        chosen, items, output, Models(base, adapter, encoder, faces, chosen.scheduler),
        engine=engine, share=share, batch_size=batch_size,
    )  # fmt: skip
    if missing:
        typer.echo(
            f"{missing} pictures of other shares are not drawn yet; the share that ends last measures all of them, "
            "or this command without --split"
        )
        return
    results = _score(chosen, items, output, models, judges)
    for line in _lines(results):
        typer.echo(line)
    typer.echo(output / "report.html")
    if not _is_enough(results, least):
        raise typer.Exit(1)


def _settings(name: str, base: str | None, **given: Any) -> "Protocol":
    from imprompt.evaluation.metrics.table import metrics_named
    from imprompt.evaluation.protocols import protocol_named
    from imprompt.generation.pipelines import EMBEDDED_SETTINGS, is_embedded

    protocol = protocol_named(name)
    if base is None or is_embedded(base):  # its own settings, and a judge that is at hand
        protocol = replace(protocol, **EMBEDDED_SETTINGS, scheduler=None, metrics=("mobilenet", "near_copies"))
    protocol = replace(protocol, **{key: value for key, value in given.items() if value is not None})
    metrics_named(protocol.metrics)
    for key in ("num_seeds", "steps"):
        if getattr(protocol, key) < 1:
            raise PromptError(f"{key} is {getattr(protocol, key)}; expected 1 or more")
    return protocol


@dataclass(frozen=True)
class Models:
    """Base and adapter as they were named; every process loads them for itself.

    Attributes:
        base: as in `generate`, like the next three.
        adapter: to put on it.
        encoder: of the references.
        faces: folder of face networks.
        scheduler: sampler; None takes the base's own.
    """

    base: str | None
    adapter: str | None
    encoder: str | None
    faces: str | None
    scheduler: str | None

    def __call__(self) -> tuple[Any, Any]:
        """Load them: the pipeline, and the adapter on it."""
        pipe = load_base(self.base, self.scheduler, False)
        pipe.set_progress_bar_config(disable=True)
        return pipe, attach_adapter(pipe, {name: getattr(self, name, None) for name in NAMES})


def _checked_items(protocol: "Protocol", source: Path, limit: int | None, output: Path) -> "list[Item]":
    from imprompt.evaluation.drawing import check_references, check_settings
    from imprompt.evaluation.runner import check_numbers, items_in

    items = items_in(protocol, source, limit)
    check_numbers(protocol, items)
    check_settings(output, protocol)
    with busy("opening the references"):
        check_references(output, list(dict.fromkeys(item.case for item in items)))
    return items


def _draw(
    protocol: "Protocol",
    items: "Sequence[Item]",
    output: Path,
    models: Models,
    *,
    engine: Engine,
    share: tuple[int, int],
    batch_size: int,
) -> tuple[int, dict[str, Any]]:
    from imprompt.evaluation.cluster import Drawing, draw_on_ray
    from imprompt.evaluation.runner import draw_share, models_of, num_missing

    options: dict[str, Any] = {"share": share, "batch_size": batch_size}
    with plain_words(remedy="a smaller --batch-size"):
        if engine is Engine.RAY:
            drawing = Drawing(load=models, protocol=protocol, items=items, folder=output, **options)
            with progress_bar("drawing") as bar:
                return draw_on_ray(drawing, bar)
        with busy("loading"):
            pipe, attachment = models()
        with progress_bar("drawing") as bar, attachment:
            drawn = draw_share(pipe, attachment, protocol, items, output, progress=bar, **options)
            return num_missing(items, output, drawn=drawn), models_of(pipe, attachment)


def _notes(protocol: "Protocol", items: "Sequence[Item]", output: Path, judges: dict[str, str]) -> Iterator[str]:
    """What is there of an earlier run, and what a user may not have meant."""
    from imprompt.evaluation.drawing import picture_file
    from imprompt.evaluation.metrics.table import metrics_named

    files = [picture_file(output, item) for item in items if item.arm != "copy"]
    if num_there := sum(file.is_file() for file in files):
        yield f"{num_there} of {len(files)} pictures are in '{output}' already"
    metrics = metrics_named(protocol.metrics)
    if unasked := sorted(judges.keys() - {metric.judge for metric in metrics}):
        yield f"no metric asks the judge {', '.join(unasked)}; --metrics has {','.join(protocol.metrics)}"
    for metric in metrics:
        if metric.kind == "group" and protocol.num_seeds < metric.floor:
            yield f"{metric.name} is left out: it wants --num-seeds {metric.floor} or more"
    cases = dict.fromkeys(item.case for item in items)
    if silent := [case for case in cases if not case.caption]:
        names = ", ".join(case.references[0].name for case in silent[:3]) + (", ..." if len(silent) > 3 else "")
        left_out = "CLIP-T leaves them out, and " if "clip_t" in protocol.metrics else ""
        remedy = "; put name.txt beside a picture, or give --prompt" if protocol.layout == "folder" else ""
        said = f"{len(silent)} of {len(cases)} have no caption ({names})"
        yield f"{said}: {left_out}the text alone is told nothing there{remedy}"


def _score(
    protocol: "Protocol", items: "Sequence[Item]", output: Path, models: dict[str, Any], judges: dict[str, str]
) -> "Results":
    from imprompt.evaluation.runner import score

    with busy("judging"):
        return score(protocol, items, output, models, judges=judges)


def _lines(results: "Results") -> list[str]:
    from imprompt.evaluation.report import summary_table

    cells = summary_table(results)
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _is_enough(results: "Results", least: dict[str, float]) -> bool:
    from imprompt.evaluation.metrics.table import metrics_named

    enough = True
    for metric in metrics_named(tuple(least)):
        bound = least[metric.name]
        for series in (series for series in results.series() if series[0] == "adapter"):
            interval = results.interval(metric.name, series)
            if interval is None or interval.mean < bound:
                found = "was not measured" if interval is None else f"is {interval.mean:.4f}"
                typer.echo(f"{metric.name} at weight {series[1]:g} {found}; wanted {bound:g} or more", err=True)
                enough = False
    return enough


def _check_judges(protocol: "Protocol", items: "list[Item]", judges: dict[str, str]) -> None:
    """What is wrong with the judges is told before anything is drawn."""
    from imprompt.evaluation.runner import check_judges
    from imprompt.generation.quiet import quiet_libraries

    quiet_libraries()
    with busy("loading the judges"):
        check_judges(protocol, items, judges)


def _check_bounds(protocol: "Protocol", least: dict[str, float]) -> None:
    for name in least:
        if name not in protocol.metrics:
            raise PromptError(
                f"--fail-under {name}: only {', '.join(protocol.metrics)} are measured; add it to --metrics"
            )


def _bounds(given: list[str] | None) -> dict[str, float]:
    from imprompt.evaluation.metrics.table import metrics_named

    bounds = {name: _number(text, "--fail-under") for name, text in _pairs(given, "--fail-under").items()}
    for metric in metrics_named(tuple(bounds)):
        if metric.kind == "set" or not metric.higher_is_better:
            raise PromptError(
                f"--fail-under {metric.name}: it wants a metric that has a mean and of which higher is better"
            )
    return bounds


def _pairs(given: list[str] | None, option: str) -> dict[str, str]:
    pairs = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not (equals and name and value):
            raise PromptError(f"{option} is {text!r}; expected NAME=VALUE")
        pairs[name] = value
    return pairs


def _scales(text: str | None) -> tuple[float, ...] | None:
    parts = _parts(text, "--scales")
    return None if parts is None else tuple(dict.fromkeys(_number(part, "--scales") for part in parts))


def _parts(text: str | None, option: str) -> tuple[str, ...] | None:
    """What an option lists, each once."""
    if text is None:
        return None
    if parts := tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip())):
        return parts
    raise PromptError(f"{option} is {text!r}; expected one or more, separated by commas")


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise PromptError(f"{option} says {text!r}; expected a number") from None
