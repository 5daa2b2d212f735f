"""Verdicts from intervals: what decides a claim, on which side of its bound that lies, and what follows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from imprompt.evaluation.errors import EvaluationError
from imprompt.evaluation.intervals import Interval, bootstrap, difference, ratio
from imprompt.recipes.emoji.evidence.judging import Measured
from imprompt.recipes.emoji.evidence.references import HeldOut

Outcome = Literal["holds", "does not hold", "not decided"]
HOLDS: Outcome = "holds"
FAILS: Outcome = "does not hold"
UNDECIDED: Outcome = "not decided"

NUM_DRAWS = 4000
"""Resampled means behind an interval."""

FEWEST = 10
"""References below which nothing is decided: the bootstrap's intervals of fewer are too narrow, down to no width."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure that decides, and the bound that it must be beyond.

    Attributes:
        what: The figure, in words.
        interval: Of the figure; None where it cannot be computed.
        bound: What it is compared with.
        above: Whether the claim wants the figure above the bound; below it otherwise.
        trainings: The same figure of each training by itself, None where it cannot be computed; all must be on the side
            that the interval is on.
    """

    what: str
    interval: Interval | None
    bound: float = 0.0
    above: bool = True
    trainings: tuple[float | None, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """Whether the whole interval, and every training, lies on one side of the bound."""
        each = [figure for figure in self.trainings if figure is not None]
        if self.interval is None or self.interval.num_groups < FEWEST or len(each) < len(self.trainings):
            return UNDECIDED
        figures = (self.interval.low, self.interval.high, *each)
        if all(figure > self.bound if self.above else figure < self.bound for figure in figures):
            return HOLDS
        if all(figure < self.bound if self.above else figure > self.bound for figure in figures):
            return FAILS
        return UNDECIDED


def together(tests: Sequence[Figure]) -> Outcome:
    """Of a claim that wants every test to hold."""
    outcomes = {test.outcome for test in tests}
    return FAILS if FAILS in outcomes else UNDECIDED if UNDECIDED in outcomes else HOLDS


def anywhere(ways: Sequence[Sequence[Figure]]) -> Outcome:
    """Of a claim that wants all tests to hold in one of several ways, such as at one of several weights."""
    outcomes = {together(way) for way in ways}
    return HOLDS if HOLDS in outcomes else UNDECIDED if UNDECIDED in outcomes else FAILS


def weakest(tests: Sequence[Figure]) -> Figure:
    """The test on which the verdict hangs: the first that fails, else the first not decided, else the closest."""
    order = (FAILS, UNDECIDED, HOLDS)
    return min(tests, key=lambda test: (order.index(test.outcome), _room(test) if test.outcome == HOLDS else 0.0))


def _room(test: Figure) -> float:
    """How far beyond its bound the interval lies, in its own widths."""
    assert test.interval is not None
    ends = (test.interval.low, test.interval.high)
    return min(abs(end - test.bound) for end in ends) / max(ends[1] - ends[0], 1e-9)


def mean(
    measured: Measured, series: str, measure: str, split: HeldOut | None = None, level: float = 0.95
) -> Interval | None:
    """Mean of a series; None where it was not measured."""
    values = measured.values(series, measure, split)
    return bootstrap(list(values.values()), list(values), num_draws=NUM_DRAWS, level=level) if values else None


def change(
    measured: Measured, first: str, second: str, measure: str, split: HeldOut | None = None, level: float = 0.95
) -> Interval | None:
    """Mean of the second series less the first, in pairs; None where one was not measured."""
    before, after = (measured.values(series, measure, split) for series in (first, second))
    return difference(before, after, num_draws=NUM_DRAWS, level=level) if before and after else None


def kept(measured: Measured, mark: str, series: str, measure: str, chance: float = 0.0) -> Interval | None:
    """What share of the mark's mean above chance a series reaches, since chance is kept by whoever keeps nothing.

    Returns:
        The share; None where the mark may be no better than chance, or one was not measured.
    """
    whole, part = (
        {place: value - chance for place, value in measured.values(name, measure).items()} for name in (mark, series)
    )
    if not whole or not part:
        return None
    try:
        return ratio(whole, part, num_draws=NUM_DRAWS)
    except EvaluationError:  # nothing is a share of what may be zero
        return None
