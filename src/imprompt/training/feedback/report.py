"""`report.html` of a run: curves, contact sheets and settings on one page that needs nothing but its folder."""

import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from imprompt.core.errors import ImpromptError
from imprompt.core.files import atomic_write
from imprompt.core.svg import Curve, Number, curve_chart, number_text
from imprompt.training.data.quarantine import Quarantine
from imprompt.training.feedback.report_page import SLIDER, STYLE
from imprompt.training.loop.checkpointing import MANIFEST
from imprompt.training.loop.tracking import LOG, flatten

REPORT = "report.html"
SHEETS = "sheets"
CONFIG = "config.json"
QUARANTINE = "quarantine"

LOSS, GAIN = "validation/loss", "validation/reference_gain"
MOST_POINTS = 300
MOST = 1e100
_CLEAN, _NOISY = (158, 202, 255), (13, 42, 99)  # colours of the ends of the schedule

Line = Mapping[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """What a run folder tells.

    Attributes:
        name: Of the folder.
        lines: Of the log, in order of their steps.
        config: Resolved configuration.
        environment: Versions and machine.
        checkpoints: Names of the checkpoint folders, oldest first.
        sheets: Contact sheets, oldest first, relative to the folder.
        notes: What went wrong and did not stop the run, and what did.
        lost: How many samples are in quarantine, by reason.
    """

    name: str
    lines: tuple[Line, ...]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    checkpoints: tuple[str, ...]
    sheets: tuple[str, ...]
    notes: tuple[str, ...]
    lost: Mapping[str, int]


def write_report(folder: Path, pending: Iterable[Line] = ()) -> Path:
    """Write a run's report; an older one stays until the new one is whole.

    Args:
        folder: Run folder.
        pending: Lines that are about to go into the log.

    Returns:
        The page.

    Raises:
        ImpromptError: The folder holds no run.
    """
    record = read_run(folder, pending)
    path = folder / REPORT
    with atomic_write(path) as temporary:
        temporary.write_text(page(record), encoding="utf-8")
    return path


def read_run(folder: Path, pending: Iterable[Line] = ()) -> RunRecord:
    """Gather what a run has left so far.

    Raises:
        ImpromptError: The folder holds no run.
    """
    if not (folder / LOG).exists() and not (folder / "checkpoints").is_dir() and not (folder / CONFIG).exists():
        raise ImpromptError(
            f"'{folder}' holds no run: it has neither {LOG} nor checkpoints; give a run's output folder"
        )
    checkpoints = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    saved = _saved_record(folder, checkpoints)
    config = _json_of(folder / CONFIG) or _part(saved, "config")
    return RunRecord(
        name=folder.resolve().name,
        lines=tuple(sorted((*_log_lines(folder / LOG), *pending), key=lambda line: line["step"])),
        config=config,
        environment=_part(saved, "environment"),
        checkpoints=tuple(checkpoints),
        sheets=tuple(f"{SHEETS}/{path.name}" for path in sorted((folder / SHEETS).glob("step-*.png"))),
        notes=tuple(_notes(folder)),
        lost=_lost(folder / QUARANTINE),
    )


def charts(lines: Sequence[Line]) -> list[str]:
    """All curves that the lines give, as SVG."""
    made: list[str] = []
    for key, title, unit in (
        ("loss", "Training loss", ""),
        ("gradient_norm", "Gradient norm", "before clipping"),
        ("learning_rate", "Learning rate", ""),
        ("images_per_second", "Speed", "images a second"),
        ("memory_gigabytes", "Memory", "GB at most"),
    ):
        curve = thinned(*_series(lines, key), name=title)
        if curve.places:
            made.append(curve_chart(title, [curve], unit=unit))
    return [*_validation_charts(lines), *made]


def thinned(places: Sequence[Number], values: Sequence[Number], *, name: str, most: int = MOST_POINTS) -> Curve:
    """A curve of at most `most` points: means of neighbours, in a band from their least to their greatest."""
    if len(places) <= most:
        return Curve(name, places, values)
    borders = [round(number * len(places) / most) for number in range(most + 1)]
    parts = [slice(start, end) for start, end in zip(borders, borders[1:], strict=False)]
    return Curve(
        name,
        [_mean(places[part]) for part in parts],
        [_mean(values[part]) for part in parts],
        low=[min(values[part]) for part in parts],
        high=[max(values[part]) for part in parts],
    )


def page(record: RunRecord) -> str:
    """The whole page."""
    name = escape(record.name)
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    sections = [
        _summary(record),
        "".join(f"<p class='note'>{escape(note)}</p>" for note in record.notes),
        f"<section class='charts'>{''.join(f'<figure>{chart}</figure>' for chart in charts(record.lines))}</section>",
        _sheets(record.sheets),
        _quarantine(record.lost),
        _table("Configuration", flatten(record.config)),
        _table("Environment", record.environment),
        _checkpoints(record.checkpoints),
    ]
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{name}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{STYLE}</style></head><body><h1>{name}</h1><p class='written'>written {written}</p>"
        f"{''.join(sections)}<script>{SLIDER}</script></body></html>\n"
    )


def _validation_charts(lines: Sequence[Line]) -> list[str]:
    made: list[str] = []
    places, gains = _series(lines, GAIN)
    if places:
        errors = dict(zip(*_series(lines, f"{GAIN}_error"), strict=True))
        widths = [2 * errors.get(place, 0.0) for place in places]
        low, high = ([gain + sign * width for gain, width in zip(gains, widths, strict=True)] for sign in (-1, 1))
        curve = Curve("reference gain", places, gains, low=low, high=high)
        made.append(
            curve_chart("Reference gain", [curve], unit="loss with another's reference − own, ± 2 errors", zero=True)
        )
    for key, title in ((LOSS, "Validation loss"), (GAIN, "Reference gain")):
        curves = _curves_by_bucket(lines, key)
        if curves:
            made.append(curve_chart(f"{title} by noise level", curves, unit="% of the schedule", zero=key == GAIN))
    return made


def _curves_by_bucket(lines: Sequence[Line], key: str) -> list[Curve]:
    """One curve a part of the schedule, from clean to noise; named in percents of it."""
    names = {name for line in lines for name in line}
    found = [match for name in names if (match := re.fullmatch(rf"{key}/([0-9]{{1,6}})of([0-9]{{1,6}})", name))]
    parts = sorted((int(match[1]), int(match[2]), match[0]) for match in found if 0 < int(match[1]) <= int(match[2]))
    curves: list[Curve] = []
    for number, count, name in parts:
        places, values = _series(lines, name)
        label = f"{100 * (number - 1) / count:.0f}–{100 * number / count:.0f}"
        curves.append(Curve(label, places, values, colour=_shade((number - 0.5) / count)))
    return [curve for curve in curves if curve.places]


def _shade(place: float) -> str:
    """From light for clean to dark for noise."""
    red, green, blue = (round(low + (high - low) * place) for low, high in zip(_CLEAN, _NOISY, strict=True))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _summary(record: RunRecord) -> str:
    """The figures that one looks for first."""
    steps: Any = flatten(record.config).get("loop.num_steps")
    last = record.lines[-1]["step"] if record.lines else 0
    facts = {"step": number_text(last) + (f" of {number_text(steps)}" if _is_number(steps) else "")}
    for key, label in (("loss", "training loss"), ("images_per_second", "images a second"), (LOSS, "validation loss")):
        values = _series(record.lines, key)[1]
        if values:
            facts[label] = number_text(values[-1])
    facts.update(_gain_fact(record.lines))
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(label)}</span></div>" for label, value in facts.items())
    return f"<section class='facts'>{cells}</section>"


def _gain_fact(lines: Sequence[Line]) -> dict[str, str]:
    gains, errors = _series(lines, GAIN)[1], _series(lines, f"{GAIN}_error")[1]
    if not gains or not errors:
        return {}
    is_used = gains[-1] > 2 * errors[-1]
    label = "reference gain: the reference is used" if is_used else "reference gain: no use of the reference is seen"
    return {label: f"{number_text(gains[-1])} ± {number_text(errors[-1])}"}


def _sheets(sheets: Sequence[str]) -> str:
    """The latest sheet, a slider over all of them, and their list for those who allow no scripts."""
    if not sheets:
        return ""
    links = "".join(f"<li><a href='{quote(sheet)}'>{escape(_step_name(sheet))}</a></li>" for sheet in sheets)
    latest = sheets[-1]
    return (
        "<section id='sheets'><h2>Contact sheets</h2>"
        f"<p><input type='range' min='0' max='{len(sheets) - 1}' value='{len(sheets) - 1}' aria-label='step'> "
        f"<output>{escape(_step_name(latest))}</output></p>"
        f"<img src='{quote(latest)}' alt='contact sheet'>"
        f"<details><summary>all sheets</summary><ol>{links}</ol></details></section>"
    )


def _quarantine(lost: Mapping[str, int]) -> str:
    if not lost:
        return ""
    rows = "".join(f"<tr><td>{count:,}</td><td>{escape(reason)}</td></tr>" for reason, count in lost.items())
    total = sum(lost.values())
    return f"<section><h2>Quarantine: {total:,} samples</h2><table>{rows}</table></section>"


def _table(title: str, values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    rows = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape('none' if value is None else str(value))}</td></tr>"
        for name, value in values.items()
    )
    return f"<details><summary>{escape(title)}</summary><table>{rows}</table></details>"


def _checkpoints(names: Sequence[str]) -> str:
    if not names:
        return ""
    links = "".join(f"<li><a href='checkpoints/{quote(name)}/'>{escape(_step_name(name))}</a></li>" for name in names)
    return f"<details><summary>Checkpoints</summary><ul>{links}</ul></details>"


def _step_name(path: str) -> str:
    """A file or folder named by its step, as in "step 1,000"."""
    digits = "".join(letter for letter in Path(path).stem if letter.isdigit())
    return f"step {int(digits):,}" if digits else Path(path).stem


def _series(lines: Sequence[Line], key: str) -> tuple[list[Number], list[Number]]:
    """Steps and values of the lines that have a number there; of several for a step the last."""
    values = {line["step"]: line[key] for line in lines if _is_number(line.get(key))}
    return list(values), list(values.values())


def _is_number(value: Any) -> bool:
    """Whether a chart can show it; nothing that a run measures is larger, and ranges of larger ones overflow."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -MOST <= value <= MOST


def _mean(values: Sequence[Number]) -> float:
    return sum(values) / len(values)


def _log_lines(path: Path) -> list[Line]:
    """All lines that are whole; the last one may be half written."""
    lines: list[Line] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int) and _is_number(line["step"]):
            lines.append(line)
    return lines


def _saved_record(folder: Path, checkpoints: Sequence[str]) -> dict[str, Any]:
    """What the newest checkpoint whose manifest can be read says of the run."""
    for name in reversed(checkpoints):
        record = _json_of(folder / "checkpoints" / name / MANIFEST).get("record")
        if isinstance(record, dict):
            return record
    return {}


def _json_of(path: Path) -> dict[str, Any]:
    """An object from a file; an empty one where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a record; an empty one where it is anything else."""
    part = record.get(name)
    return part if isinstance(part, dict) else {}


def _notes(folder: Path) -> list[str]:
    failed = [path.read_text(encoding="utf-8").strip() for path in sorted((folder / SHEETS).glob("step-*.txt"))]
    diverged = [
        f"The run diverged at {_step_name(path.name)}; the batch is in {path.name}."
        for path in sorted(folder.glob("diverged-step-*.json"))
    ]
    return [*diverged, *failed[-1:]]


def _lost(folder: Path) -> dict[str, int]:
    losses = Quarantine(folder, 1.0, 1).losses() if folder.is_dir() else {}
    return dict(Counter(losses.values()).most_common())
