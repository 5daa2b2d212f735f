"""`imprompt compare`: which differences between two evaluations are real."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from imprompt.evaluation.intervals import Interval


def compare(
    first: Annotated[Path, typer.Argument(help="results.json of an evaluation, or its folder.")],
    second: Annotated[Path, typer.Argument(help="The other.")],
) -> None:
    """Compare two evaluations picture by picture, over the subjects, prompts and seeds that both have.

    Means are over these, too; where one has more, the line says how many are shared. Weights are held against
    the same weight, or where each evaluation has one alone, against each other. A change is real where its 95 %
    interval leaves zero out; that of FID, KID or CMMD wants the same pictures in both.

    Example:

    imprompt compare before/results.json after/results.json
    """
    from imprompt.evaluation.metrics.table import METRICS
    from imprompt.evaluation.results import compare as compare_results
    from imprompt.evaluation.results import compared_series, differing_settings, read_results

    before, after = read_results(first), read_results(second)
    for row in compare_results(before, after):
        metric, change, where = METRICS[row.metric], row.change, told(*row.series)
        where += "" if row.series == row.other_series else f" -> {row.other_series[1]:g}"
        among = "" if row.is_of_all else f"  ({change.num_values} shared of {row.num_first} and {row.num_second})"
        typer.echo(
            f"{metric.title:18s} {where:22s} {row.first.mean:.4f} -> {row.second.mean:.4f}  "
            f"change {change.told('+.4f')}  {verdict(change, metric.higher_is_better)}{among}"
        )
    for name, (one, other) in differing_settings(before, after).items():
        typer.echo(f"not set alike: {name} is {one} in the first and {other} in the second", err=True)
    held = compared_series(before, after)
    alone = sorted({*before.drawn()} - {one for one, _ in held} | {*after.drawn()} - {other for _, other in held})
    if alone:
        names = ", ".join(told(arm, scale) for arm, scale in alone)
        typer.echo(f"not compared, since only one of the two has it: {names}", err=True)


def verdict(change: "Interval", higher_is_better: bool | None) -> str:
    """What a change is, in words."""
    if not change.is_known:
        return "one subject decides nothing"
    if change.low == change.high == 0:
        return "no difference"
    if not change.excludes_zero:
        return "no real difference"
    better = None if higher_is_better is None else (change.mean > 0) == higher_is_better
    return {True: "better", False: "worse", None: "other"}[better]


def told(arm: str, scale: float) -> str:
    """Who drew, and at which weight."""
    return f"{arm} {scale:g}" if arm == "adapter" else arm
