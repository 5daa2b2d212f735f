"""Values of an evaluation with everything they depend on: `results.json`, and what is read back from it."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from imprompt.core.files import atomic_write
from imprompt.evaluation.errors import EvaluationError
from imprompt.evaluation.intervals import Interval, Place, bootstrap, difference
from imprompt.evaluation.items import Arm, Item
from imprompt.evaluation.metrics.table import DERIVED, METRICS, Metric, with_derived
from imprompt.evaluation.scoring import score_groups, score_pictures
from imprompt.evaluation.sets import set_change, set_interval, set_rows

logger = logging.getLogger(__name__)

VERSION = 2
Series = tuple[str, float]
"""Arm and scale: what belongs into one row of a table."""


_NOTHING = {"mean": None, "low": None, "high": None, "num_values": 0, "num_groups": 0}
"""What is told in place of an interval where nothing was measured."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One picture and what was measured of it.

    Attributes:
        subject: outermost group.
        prompt_name: prompt of the subject.
        seed: of its noise.
        arm: who made it.
        scale: weight of the image prompt.
        file: the picture, relative to the run's folder where it lies inside.
        reference: what it was to be like, by name.
        prompt: what the model was told.
        values: by metric; None where it could not be measured.
    """

    subject: str
    prompt_name: str
    seed: int
    arm: Arm
    scale: float
    file: str
    reference: str
    prompt: str
    values: dict[str, float | None]

    @property
    def place(self) -> Place:
        """Where the values were measured."""
        return (self.subject, self.prompt_name, self.seed)


@dataclass(frozen=True, kw_only=True)
class Results:
    """A whole evaluation.

    Attributes:
        protocol: its settings.
        models: base and adapter, by hash.
        judges: networks behind the metrics, by slot.
        rows: a picture each.
        groups: values of the pictures of one case: metric, arm, scale, subject, prompt, value.
        sets: values of all pictures of a series; see `imprompt.evaluation.sets.Row`.
        versions: of the packages.
    """

    protocol: dict[str, Any]
    models: dict[str, Any]
    judges: dict[str, Any]
    rows: list[Row]
    groups: list[dict[str, Any]]
    sets: list[dict[str, Any]]
    versions: dict[str, str]

    def series(self) -> list[Series]:
        """Arms and scales in order of first appearance."""
        return list(dict.fromkeys((row.arm, row.scale) for row in self.rows))

    def drawn(self) -> list[Series]:
        """Those of `series` that a model drew: all but the references handed back."""
        return [each for each in self.series() if each[0] != "copy"]

    def over_the_weight(self) -> list[Series]:
        """What was drawn at each weight of the image prompt, the least first; at 0 the text alone stands for it."""
        adapter = sorted(each for each in self.series() if each[0] == "adapter")
        stands_in = 0.0 in self.protocol["scales"] and ("adapter", 0.0) not in adapter
        return [each for each in self.series() if each[0] == "text" and stands_in] + adapter

    def metrics(self) -> list[str]:
        """Names of what was measured, in the order of the table of metrics."""
        found = {name for row in self.rows for name in row.values}
        found |= {row["metric"] for row in (*self.groups, *self.sets)}
        return [name for name in METRICS if name in found]

    def measured(self, metric: str, series: Series) -> dict[Place, float]:
        """Values of a metric by place; pictures that could not be measured are left out."""
        if metric in DERIVED:
            derived = DERIVED[metric]
            return {place: derived.of(value) for place, value in self.measured(derived.source, series).items()}
        if METRICS[metric].kind == "group":
            found = [row for row in self.groups if (row["metric"], row["arm"], row["scale"]) == (metric, *series)]
            return {(row["subject"], row["prompt_name"]): row["value"] for row in found}
        rows = [row for row in self.rows if (row.arm, row.scale) == series]
        values = {row.place: row.values.get(metric) for row in rows}
        return {place: value for place, value in values.items() if value is not None}

    def interval(self, metric: str, series: Series) -> Interval | None:
        """Mean and interval of a metric; None where nothing was measured, or of a set of too few subjects."""
        if (metric, series) not in self._intervals:
            self._intervals[metric, series] = self._interval(metric, series)
        return self._intervals[metric, series]

    @cached_property
    def _intervals(self) -> dict[tuple[str, Series], Interval | None]:
        """Those that were asked for: of thousands of subjects one takes seconds."""
        return {}

    def _interval(self, metric: str, series: Series) -> Interval | None:
        if metric in METRICS and METRICS[metric].kind == "set":
            row = self.set_row(metric, series)
            return None if row is None else set_interval(row)
        values = self.measured(metric, series)
        return bootstrap(list(values.values()), list(values)) if values else None

    def set_row(self, metric: str, series: Series) -> dict[str, Any] | None:
        """What was measured of all pictures of a series; None where nothing was."""
        found = (row for row in self.sets if (row["metric"], row["arm"], row["scale"]) == (metric, *series))
        return next(found, None)

    def num_unmeasured(self, metric: str, series: Series) -> int:
        """Pictures of which a metric has no value: no face, no caption."""
        source = DERIVED[metric].source if metric in DERIVED else metric
        rows = [row for row in self.rows if (row.arm, row.scale) == series and source in row.values]
        return sum(row.values[source] is None for row in rows)

    def save(self, path: Path) -> None:
        """Write JSON, whole or not at all, with the summary that tables show and what each metric in it is."""
        definitions = {name: metric.definition for name, metric in with_derived(self.metrics()).items()}
        content = {"version": VERSION, **asdict(self), "definitions": definitions, "summary": self.summary()}
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")

    def summary(self) -> list[dict[str, Any]]:
        """Mean and 95 % interval of every metric and series, derived ones too; `sets` has distances between sets.

        Pictures that could not be measured are counted apart; where none could be, there is no mean.
        """
        names = [name for name, metric in with_derived(self.metrics()).items() if metric.kind != "set"]
        found = [(name, series, self.interval(name, series)) for name in names for series in self.series()]
        return [
            {
                "metric": name,
                "arm": arm,
                "scale": scale,
                **(_NOTHING if interval is None else asdict(interval)),
                "num_unmeasured": self.num_unmeasured(name, (arm, scale)),
            }
            for name, (arm, scale), interval in found
            if interval is not None or self.num_unmeasured(name, (arm, scale))
        ]


def read_results(path: Path) -> Results:
    """Read what `Results.save` wrote.

    Raises:
        EvaluationError: it is not there, or nothing that an evaluation wrote.
    """
    file = path / "results.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise EvaluationError(
                f"'{file}' has version {content['version']}, and this imprompt reads {VERSION}; evaluate again"
            )
        kept = {name: content[name] for name in ("protocol", "models", "judges", "groups", "sets", "versions")}
        return Results(rows=[Row(**row) for row in content["rows"]], **kept)
    except FileNotFoundError:
        raise EvaluationError(
            f"there is no '{file}', so no results.json to read; `imprompt evaluate` writes one"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(f"'{file}' is no results.json of `imprompt evaluate` ({error!r})") from error


def measure(
    items: Sequence[Item], files: Mapping[str, Path], metrics: Sequence[Metric], judges: Mapping[str, Any], root: Path
) -> tuple[list[Row], list[dict[str, Any]], list[dict[str, Any]]]:
    """All values of all pictures.

    Args:
        items: what was drawn.
        files: the picture of each item, by key.
        metrics: what to measure.
        judges: networks by slot.
        root: what the files' names are told relative to.

    Returns:
        Rows, groups and sets as in `Results`.

    Raises:
        EvaluationError: something cannot be measured.
    """
    pictures = [files[item.key] for item in items]
    columns = {
        metric.name: score_pictures(metric, items, pictures, judges) for metric in metrics if metric.kind == "picture"
    }
    rows = [
        Row(
            subject=item.case.subject,
            prompt_name=item.case.prompt_name,
            seed=item.seed,
            arm=item.arm,
            scale=item.scale,
            file=_told(file, root),
            reference=item.case.references[0].name,
            prompt=item.prompt,
            values={name: values[index] for name, values in columns.items()},
        )
        for index, (item, file) in enumerate(zip(items, pictures, strict=True))
    ]
    groups = [row for metric in metrics if metric.kind == "group" for row in _groups(metric, items, files, judges)]
    sets = [
        row for metric in metrics if metric.kind == "set" for row in set_rows(metric, _by_series(items), files, judges)
    ]
    return rows, groups, sets


def _groups(
    metric: Metric, items: Sequence[Item], files: Mapping[str, Path], judges: Mapping[str, Any]
) -> list[dict[str, Any]]:
    found = []
    for (arm, scale), members in _by_series(items).items():
        cases: dict[tuple[str, str], list[Path]] = {}
        for item in members:
            cases.setdefault((item.case.subject, item.case.prompt_name), []).append(files[item.key])
        for (subject, prompt_name), value in score_groups(metric, cases, judges).items():
            where = {"subject": subject, "prompt_name": prompt_name}
            found.append({"metric": metric.name, "arm": arm, "scale": scale, **where, "value": value})
    return found


def _by_series(items: Sequence[Item]) -> dict[Series, list[Item]]:
    series: dict[Series, list[Item]] = {}
    for item in items:
        series.setdefault((item.arm, item.scale), []).append(item)
    return series


def _told(file: Path, root: Path) -> str:
    return str(file.relative_to(root)) if file.is_relative_to(root) else file.name


def _check_same_prompts(first: Results, second: Results) -> None:
    """A prompt's name is its number among a subject's; pairs are pairs only where it says the same."""
    asked = {(row.arm, *row.place[:2]): (row.prompt, row.reference) for row in first.rows}
    for row in second.rows:
        other = asked.get((row.arm, *row.place[:2]), (row.prompt, row.reference))
        if other != (row.prompt, row.reference):
            who = "the text alone" if row.arm == "text" else f"the {row.arm}"
            raise EvaluationError(
                f"of {row.subject} {row.prompt_name}, {who} is told {other[0]!r} with {other[1]!r} in the first and "
                f"{row.prompt!r} with {row.reference!r} in the second; evaluate both with the same prompts, captions "
                "and references"
            )


@dataclass(frozen=True)
class Comparison:
    """A metric in two results.

    Attributes:
        metric: its name.
        series: arm and scale in the first.
        other_series: in the second; another scale where each has one alone.
        first: in the first, over what both have.
        second: in the second, over what both have.
        change: second less first, in pairs.
        num_first: values in the whole of the first.
        num_second: values in the whole of the second.
    """

    metric: str
    series: Series
    other_series: Series
    first: Interval
    second: Interval
    change: Interval
    num_first: int
    num_second: int

    @property
    def is_of_all(self) -> bool:
        """Whether both have the same places, so that nothing was left out."""
        return self.change.num_values == self.num_first == self.num_second


def compare(first: Results, second: Results) -> list[Comparison]:
    """Which differences are real: paired over the pictures that both have. References handed back differ in nothing.

    What is drawn at one weight alone in both is compared, whatever the two weights are.

    Raises:
        EvaluationError: they were not measured by the same judges, or have nothing in common.
    """
    for slot in first.judges.keys() & second.judges.keys():
        if _network(first.judges[slot]) != _network(second.judges[slot]):
            raise EvaluationError(
                f"the judge {slot!r} is not the same network with the same preprocessing in both "
                f"({first.judges[slot].get('name')!r}, {second.judges[slot].get('name')!r}); evaluate both with one"
            )
    _check_same_prompts(first, second)
    pairs = [(metric, *each) for metric in METRICS for each in compared_series(first, second)]
    found = [row for pair in pairs if (row := _compared(first, second, *pair)) is not None]
    if not found:
        raise EvaluationError("the two results share no picture: same protocol, subjects, prompts and seeds are wanted")
    return found


def _network(judge: Mapping[str, Any]) -> dict[str, Any]:
    """What a judge is, wherever it lies: all that is said of it but its name."""
    return {key: value for key, value in judge.items() if key != "name"}


def compared_series(first: Results, second: Results) -> list[tuple[Series, Series]]:
    """What `compare` holds against what: the same, or where each has one weight alone, these two."""
    weights = [[each for each in results.drawn() if each[0] == "adapter"] for results in (first, second)]
    if all(len(each) == 1 for each in weights):
        others = [(each, each) for each in first.drawn() if each[0] != "adapter" and each in second.drawn()]
        return [(weights[0][0], weights[1][0]), *others]
    return [(each, each) for each in first.drawn() if each in second.drawn()]


def differing_settings(first: Results, second: Results) -> dict[str, tuple[Any, Any]]:
    """Settings of the protocol, by name, that are not the same in both; what was measured is none of them."""
    names = [name for name in first.protocol if name in second.protocol and name not in ("title", "metrics")]
    pairs = {name: (first.protocol[name], second.protocol[name]) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _compared(first: Results, second: Results, metric: str, series: Series, other_series: Series) -> Comparison | None:
    if METRICS[metric].kind == "set":
        return _compared_sets(first, second, metric, series, other_series)
    one, other = first.measured(metric, series), second.measured(metric, other_series)
    shared = [place for place in one if place in other]
    if not shared:
        return None
    before, after = (bootstrap([values[place] for place in shared], shared) for values in (one, other))
    return Comparison(metric, series, other_series, before, after, difference(one, other), len(one), len(other))


def _compared_sets(
    first: Results, second: Results, metric: str, series: Series, other_series: Series
) -> Comparison | None:
    """Sets are compared where they are of the same subjects, prompts and seeds: a distance depends on how many."""
    one, other = first.set_row(metric, series), second.set_row(metric, other_series)
    if one is None or other is None:
        return None
    before, after = set_interval(one), set_interval(other)
    places = [
        sorted(row.place for row in results.rows if (row.arm, row.scale) == each)
        for results, each in ((first, series), (second, other_series))
    ]
    if before is None or after is None:
        why = "one has no interval, which wants five subjects or more; evaluate it again, with as many"
    elif places[0] != places[1] or one["num_references"] != other["num_references"]:
        why = "they are not of the same subjects, prompts and seeds; evaluate both with the same"
    else:
        change, numbers = set_change(one, other), (one["num_pictures"], other["num_pictures"])
        return Comparison(metric, series, other_series, before, after, change, *numbers)
    at = f"{series[1]:g}" if series == other_series else f"{series[1]:g} and {other_series[1]:g}"
    logger.warning("%s of %s at %s is not compared: %s", METRICS[metric].title, series[0], at, why)
    return None
