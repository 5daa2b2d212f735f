"""`report.html` of an evaluation: tables with intervals, curves, and the pictures themselves. Opens offline."""

import base64
import html
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from PIL import Image

from imprompt.core.chart import line_chart, path_chart
from imprompt.core.files import atomic_write
from imprompt.core.images import load_image
from imprompt.core.markdown import markdown_table
from imprompt.core.sheet import contact_sheet
from imprompt.evaluation.drawing import RUN
from imprompt.evaluation.metrics.table import METRICS, Metric, with_derived
from imprompt.evaluation.published import COCO, COCO_SOURCE
from imprompt.evaluation.results import Results, Row, Series

ARMS = {"adapter": "adapter", "text": "text alone", "copy": "reference handed back"}
NUM_SHOWN = 8
TEXT = "clip_t"
"""The metric of likeness to the text."""
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}.small{color:#666;font-size:13px}"
)


def write_report(results: Results, references: dict[tuple[str, str], Path], folder: Path) -> Path:
    """Write the report beside the pictures, and its summary as `results.md`.

    Args:
        results: what was measured.
        references: reference of each subject and prompt.
        folder: the run's.

    Returns:
        The file.
    """
    parts = [
        f"<h1>{_text(results.protocol['title'])}</h1>",
        f"<p class=small>{_text(_settings(results))}</p>",
        _summary(results),
        _trade_off(results),
        _curves(results),
        *_sheets(results, references, folder),
        _published(results),
        _definitions(results),
    ]
    page = f"<!doctype html><meta charset=utf-8><title>imprompt: evaluation</title><style>{_STYLE}</style>"
    file = folder / "report.html"
    with atomic_write(file) as path:
        path.write_text(page + "\n".join(parts), encoding="utf-8")
    with atomic_write(folder / "results.md") as path:
        path.write_text(markdown_table(summary_table(results)) + "\n", encoding="utf-8")
    return file


def _settings(results: Results) -> str:
    said = results.protocol
    scales = ", ".join(f"{scale:g}" for scale in said["scales"])
    texts = f", texts {'; '.join(said['prompts'])}" if said["prompts"] else ""
    return (
        f"{said['steps']} steps, guidance {said['guidance_scale']:g}, sampler {said['scheduler'] or 'of the base'}, "
        f"seeds {said['seed']} to {said['seed'] + said['num_seeds'] - 1}, weights {scales}{texts}."
    )


def summary_table(results: Results) -> list[list[str]]:
    """The summary as cells: a header, and a row for each arm and scale."""
    metrics = with_derived(results.metrics())
    head = ["", *(metric.title + _arrow(metric) for metric in metrics.values())]
    return [
        head,
        *([_series_name(series), *(_cell(results, name, series) for name in metrics)] for series in results.series()),
    ]


def _summary(results: Results) -> str:
    num_drawn = sum(row.arm != "copy" for row in results.rows)
    note = (
        "Mean and 95 % interval by the bootstrap over subjects, then prompts, then seeds; of a distance between sets "
        "by the jackknife over subjects, and at n pictures; a single subject has none. "
        f"{num_drawn} pictures, of {len({row.subject for row in results.rows})} subjects.{_told_alone(results)}"
    )
    return f"<h2>Summary</h2>{_table(summary_table(results))}<p class=small>{_text(note)}</p>"


def _told_alone(results: Results) -> str:
    """What the text alone is told where that is not what the adapter is told, in a sentence."""
    texts = [row.prompt for row in results.rows if row.arm == "text"]
    if not texts or any(row.prompt for row in results.rows if row.arm == "adapter"):
        return ""
    silent = texts.count("")
    nothing = f", and in {silent} of {len(texts)} pictures nothing, for want of a caption" if silent else ""
    return f" The adapter is told nothing beside its image; the text alone is told the caption{nothing}."


def _cell(results: Results, name: str, series: Series) -> str:
    if name in METRICS and METRICS[name].kind == "set":
        return _set_cell(results, name, series)
    interval, unmeasured = results.interval(name, series), results.num_unmeasured(name, series)
    apart = f" · {unmeasured} without" if unmeasured else ""
    return f"{'–' if interval is None else interval.told('.3f')}{apart}"


def _set_cell(results: Results, name: str, series: Series) -> str:
    row, interval = results.set_row(name, series), results.interval(name, series)
    if row is None:
        return "–"
    bounds = "" if interval is None else f" [{interval.low:.3f}, {interval.high:.3f}]"
    return f"{row['value']:.3f}{bounds} (n = {row['num_pictures']})"


def _trade_off(results: Results) -> str:
    """Likeness to the image against likeness to the text, a point a weight, where both were measured at several."""
    series = results.over_the_weight()
    likeness = next((name for name in results.metrics() if _is_cosine(name) and name != TEXT), None)
    if len(series) < 2 or likeness is None or TEXT not in results.metrics():
        return ""
    across, up = (_means(results, name, series) for name in (TEXT, likeness))
    if across is None or up is None:
        return ""
    weights = [f"{scale:g}" for _, scale in series]
    titles = METRICS[TEXT].title, METRICS[likeness].title
    chart = path_chart(list(zip(across, up, strict=True)), weights, x_label=titles[0], y_label=titles[1])
    note = "A point is a weight of the image prompt; up is likeness to the image, right is likeness to the text."
    if series[0][0] == "text":
        note += " At 0 it is the text alone."
    return f"<h2>{_text(titles[1])} against {_text(titles[0])}</h2><p class=small>{note}</p>{_embedded(chart, note)}"


def _curves(results: Results) -> str:
    """Likeness to image and text over the weight, where several were drawn."""
    series = results.over_the_weight()
    if len(series) < 2:
        return ""
    found = {METRICS[name].title: _means(results, name, series) for name in results.metrics() if _is_cosine(name)}
    curves = {title: means for title, means in found.items() if means is not None}
    if not curves:
        return ""
    chart = line_chart(curves, [scale for _, scale in series], x_label="weight of the image prompt", y_label="cosine")
    words = f"{', '.join(curves)} over the weight of the image prompt, the values of the table above"
    return f"<h2>Over the weight</h2>{_embedded(chart, words)}"


def _means(results: Results, name: str, series: Sequence[Series]) -> list[float] | None:
    """Means of a metric, or None where one of the series has none."""
    intervals = [results.interval(name, each) for each in series]
    means = [interval.mean for interval in intervals if interval is not None]
    return means if len(means) == len(series) else None


def _is_cosine(name: str) -> bool:
    """Whether a metric belongs on an axis of cosines: shares and distances would squeeze the curves of others."""
    return METRICS[name].kind == "picture" and METRICS[name].higher_is_better is True


def _sheets(results: Results, references: dict[tuple[str, str], Path], folder: Path) -> Iterable[str]:
    """Best, median and worst pictures of each weight by the first metric of pictures, each beside its reference."""
    name = next((name for name in results.metrics() if METRICS[name].kind == "picture"), None)
    if name is None:
        return
    weights = sorted(scale for arm, scale in results.series() if arm == "adapter")
    for weight in weights:
        rows = [row for row in results.rows if (row.arm, row.scale) == ("adapter", weight)]
        apart = f", weight {weight:g}" if len(weights) > 1 else ""
        for title, part in shown(_ranked(rows, name)).items():
            sheet, names = _pairs(part, name, references, folder), ", ".join(row.subject for row in part)
            words = f"references above, what was made of them below: {names}"
            yield f"<h2>{title} by {_text(METRICS[name].title)}{apart}</h2>{_embedded(sheet, words)}"


def _ranked(rows: Sequence[Row], name: str) -> list[Row]:
    """Those that a metric could be measured of, the best first."""
    measured = [row for row in rows if row.values.get(name) is not None]
    return sorted(
        measured, key=lambda row: row.values[name] or 0.0, reverse=METRICS[name].higher_is_better is not False
    )


def shown(ranked: Sequence[Row]) -> dict[str, Sequence[Row]]:
    """Rows of each sheet: a third of all at most, so that no picture is in two of them; fewer than three have fewer."""
    num = min(NUM_SHOWN, max(1, len(ranked) // 3))
    parts = {"Best": ranked[:num]} if ranked else {}
    if len(ranked) >= 3:
        middle = (len(ranked) - num) // 2
        parts["Median"] = ranked[middle : middle + num]
    if len(ranked) >= 2:
        parts["Worst"] = ranked[-num:]
    return parts


def _pairs(rows: Sequence[Row], name: str, references: dict[tuple[str, str], Path], folder: Path) -> Image.Image:
    above = [load_image(references[row.subject, row.prompt_name]) for row in rows]
    below = [load_image(folder / row.file) for row in rows]
    labels = [shorten(f"{row.values[name]:.3f} {row.subject} {row.prompt}", 60, placeholder=" …") for row in rows]
    return contact_sheet([above, below], labels, ["reference", "made"], cell=128)


def _published(results: Results) -> str:
    if results.protocol["name"] != "coco":
        return ""
    own = []
    for series in results.series():
        score, clip_i = (results.interval(name, series) for name in ("clip_score", "clip_i"))
        if score is not None and clip_i is not None:
            own.append([_series_name(series), "", f"{score.mean:.3f}", f"{clip_i.mean:.3f}"])
    papers = [[row.method, f"{row.num_parameters} M", f"{row.clip_t:.3f}", f"{row.clip_i:.3f}"] for row in COCO]
    head = ["method", "trained parameters", "CLIPScore (2.5 x CLIP-T)", "CLIP-I"]
    return f"<h2>Beside published figures</h2>{_table([head, *own, *papers])}<p class=small>{_text(COCO_SOURCE)}</p>"


def _definitions(results: Results) -> str:
    rows = [[metric.title, metric.definition] for metric in with_derived(results.metrics()).values()]
    judges = [
        [slot, str(said.get("name")), str(said.get("fingerprint", ""))[:16]] for slot, said in results.judges.items()
    ]
    digits = "SHA-256, first 16 digits"
    files = [[where, file, sha256[:16]] for where, file, sha256 in _files(results.models)]
    num_references = len({(row.subject, row.reference) for row in results.rows})
    words = ", ".join([*_base(results.models["base"]), *(" ".join(each) for each in results.versions.items())])
    words += f". References by hash ({num_references}): {RUN}."
    return (
        f"<h2>What was measured</h2>{_table([['metric', 'definition'], *rows])}"
        f"<h2>By whom</h2>{_table([['judge', 'network', 'fingerprint'], *judges])}"
        f"<h2>Of what</h2>{_table([['model', 'file', digits], *files])}<p class=small>{_text(words)}</p>"
    )


def _files(models: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Where each weight file belongs, its name and its hash; an adapter from no file has its tensors' hash."""
    for part, files in models["base"]["sha256"].items():
        yield from ((part, file, sha256) for file, sha256 in files.items())
    for adapter in models["adapters"]:
        sha256 = adapter.get("sha256") or adapter["sha256_tensors"]
        yield f"adapter {adapter['name']}", adapter.get("file", "its tensors"), sha256
    for encoder in models["image_encoders"]:
        yield f"image encoder of adapter {encoder['adapter']}", encoder["name"], encoder["fingerprint"]


def _base(base: Mapping[str, Any]) -> Iterator[str]:
    """What the base is, beside its files."""
    yield from (base[name] for name in ("name", "pipeline", "scheduler") if base[name])
    yield from (f"LoRA {name}" for name in base["loras"])


def _series_name(series: Series) -> str:
    arm, scale = series
    return f"{ARMS[arm]}, weight {scale:g}" if arm == "adapter" else ARMS[arm]


def _arrow(metric: Metric) -> str:
    return {True: " ↑", False: " ↓", None: ""}[metric.higher_is_better]


def _table(cells: Sequence[Sequence[str]]) -> str:
    head, *rows = cells
    lines = ["".join(f"<th>{_text(cell)}" for cell in head)]
    lines += ["".join(f"<td>{_text(cell)}" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}" for line in lines) + "</table>"


def _embedded(image: Image.Image, words: str) -> str:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return f'<img alt="{_text(words)}" src="data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}">'


def _text(words: str) -> str:
    return html.escape(words)
