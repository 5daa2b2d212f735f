"""Values of all pictures of a series against all references, and how certain they and their differences are."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from imprompt.evaluation.intervals import Interval
from imprompt.evaluation.items import Item
from imprompt.evaluation.jackknife import LEAST_SUBJECTS, LeftOut, group_sizes, groups_of
from imprompt.evaluation.metrics.table import Metric
from imprompt.evaluation.scoring import leave_out, set_features, set_value

Row = dict[str, Any]
"""A set in `results.json`: metric, arm, scale, value, numbers of pictures and references; where there are enough
subjects, low and high of its interval and the values without each group of them."""


def set_rows(
    metric: Metric,
    series: Mapping[tuple[str, float], Sequence[Item]],
    files: Mapping[str, Path],
    judges: Mapping[str, Any],
) -> list[Row]:
    """A row for each series but that of the references handed back.

    Args:
        metric: of kind "set".
        series: items by arm and scale.
        files: the picture of each item, by key.
        judges: networks by slot.

    Raises:
        EvaluationError: there are too few pictures.
    """
    subjects: dict[Path, str] = {}
    for item in (item for members in series.values() for item in members):
        subjects.setdefault(item.case.references[0], item.case.subject)
    return [
        {"metric": metric.name, "arm": arm, "scale": scale, **_measured(metric, members, subjects, files, judges)}
        for (arm, scale), members in series.items()
        if arm != "copy"
    ]


def _measured(
    metric: Metric,
    items: Sequence[Item],
    references: Mapping[Path, str],
    files: Mapping[str, Path],
    judges: Mapping[str, Any],
) -> Row:
    made, real = set_features(metric, [files[item.key] for item in items], list(references), judges)
    value, noise = set_value(metric, made, real)
    row = {"value": value, "num_pictures": len(made), "num_references": len(real)}
    groups = groups_of(item.case.subject for item in items)
    if len(groups) < LEAST_SUBJECTS:
        return row
    of_made = torch.tensor([groups[item.case.subject] for item in items])
    of_real = torch.tensor([groups[subject] for subject in references.values()])
    whole, *without = leave_out(metric, made, real, of_made, of_real)
    left = LeftOut(whole=whole, values=tuple(without), sizes=group_sizes(groups), noise=noise)
    interval = left.around(value, len(made))
    return {**row, "low": interval.low, "high": interval.high, "left_out": asdict(left)}


def set_interval(row: Row) -> Interval | None:
    """The interval of a row; None where there were too few subjects, or another version wrote it."""
    return _left(row).around(row["value"], row["num_pictures"]) if "left_out" in row else None


def set_change(first: Row, second: Row) -> Interval:
    """The interval of `second - first`, of the same subjects: both without the same groups."""
    change = _left(second).less(_left(first))
    return change.around(second["value"] - first["value"], second["num_pictures"])


def _left(row: Row) -> LeftOut:
    said = row["left_out"]
    return LeftOut(**{**said, "values": tuple(said["values"]), "sizes": tuple(said["sizes"])})
