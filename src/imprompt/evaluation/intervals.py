"""Intervals of means by the bootstrap, resampling what was sampled: subjects, then prompts, then seeds.

Pictures of one subject are no independent samples; an interval that takes them for such is far too narrow. Resampling a
level at a time (Davison and Hinkley 1997, section 3.8) keeps what they share.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from imprompt.evaluation.errors import EvaluationError

Place: TypeAlias = tuple[Hashable, ...]
"""Where a value was measured: subject, prompt, seed; any number of levels, outermost first."""


@dataclass(frozen=True)
class Interval:
    """A mean and where it may lie.

    Attributes:
        mean: mean over the outermost groups of the means inside them.
        low: 2.5 % of the resampled means lie below.
        high: 2.5 % lie above.
        num_values: values behind it.
        num_groups: outermost groups behind it, which decide how wide it is.
    """

    mean: float
    low: float
    high: float
    num_values: int
    num_groups: int

    @property
    def is_known(self) -> bool:
        """Whether it says how far the mean may lie: one group alone says nothing of others."""
        return self.num_groups > 1

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside: of a difference, whether it is real."""
        return self.is_known and (self.low > 0 or self.high < 0)

    def told(self, form: str) -> str:
        """Mean and bounds in a number's form, as ".3f"; the mean alone where the bounds are not known."""
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]" if self.is_known else f"{self.mean:{form}}"

    def __str__(self) -> str:
        return self.told(".4f")


def bootstrap(
    values: Sequence[float],
    places: Sequence[Place],
    *,
    num_draws: int | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of the mean of values that were measured at places.

    Args:
        values: one a place.
        places: where each was measured.
        num_draws: resampled means; by default 10,000, or 1,000 of more than 500 groups, whose means are smooth.
        seed: of the resampling.
        level: share of the resampled means inside.

    Raises:
        EvaluationError: there are none, one is not finite, or places are of different depth.
    """
    if not values or len(values) != len(places):
        raise EvaluationError(f"{len(values)} values at {len(places)} places; an interval wants one or more, as many")
    if not np.isfinite(values).all():
        raise EvaluationError(f"{int((~np.isfinite(values)).sum())} of {len(values)} values are not finite")
    if len({len(place) for place in places}) != 1:
        raise EvaluationError(f"places of different depth: {places[0]} and others; give each subject, prompt and seed")
    num_groups = len({place[0] for place in places})
    num_draws = num_draws or (10_000 if num_groups <= 500 else 1_000)
    means = _resample(np.asarray(values, dtype=np.float64), list(places), num_draws, np.random.default_rng(seed))
    centre = _nested_mean(values, places)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(centre, float(low), float(high), len(values), num_groups)


def difference(
    first: dict[Place, float],
    second: dict[Place, float],
    *,
    num_draws: int | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of the mean of `second - first` over the places that both have: the paired bootstrap.

    Raises:
        EvaluationError: they share no place.
    """
    shared = _shared(first, second)
    changes = [second[place] - first[place] for place in shared]
    return bootstrap(changes, shared, num_draws=num_draws, seed=seed, level=level)


def ratio(
    first: dict[Place, float],
    second: dict[Place, float],
    *,
    num_draws: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of the mean of `second` over the mean of `first`, at the places that both have.

    Every draw takes the same subjects, prompts and seeds of both, so what they share does not widen the interval.

    Raises:
        EvaluationError: They share no place, or the mean of `first` may be zero or below, which nothing is a share of.
    """
    places = _shared(first, second)
    below, above = ([values[place] for place in places] for values in (first, second))
    least = bootstrap(below, places, num_draws=num_draws, seed=seed, level=level)
    if least.low <= 0:
        raise EvaluationError(f"the mean to compare with is {least}, which may be zero; a ratio wants more than that")
    means, others = (
        _resample(np.asarray(values, dtype=np.float64), places, num_draws, np.random.default_rng(seed))
        for values in (below, above)
    )
    ratios = np.divide(others, means, out=np.full(num_draws, np.inf), where=means > 0)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return Interval(_nested_mean(above, places) / least.mean, float(low), float(high), len(places), least.num_groups)


def _shared(first: dict[Place, float], second: dict[Place, float]) -> list[Place]:
    shared = sorted(first.keys() & second.keys(), key=repr)
    if not shared:
        raise EvaluationError("the two results share no subject, prompt and seed, so nothing can be compared in pairs")
    return shared


def _resample(values: np.ndarray, places: list[Place], num_draws: int, random: np.random.Generator) -> np.ndarray:
    """Means of `num_draws` resamples: outermost groups are drawn, and each one drawn is resampled inside itself."""
    groups = _groups(places)
    chosen = random.integers(len(groups), size=num_draws * len(groups))
    order = np.argsort(chosen, kind="stable")
    ends = np.searchsorted(chosen[order], np.arange(len(groups) + 1))
    drawn = np.empty(len(chosen))
    for number, members in enumerate(groups):
        where = order[ends[number] : ends[number + 1]]
        inner = [places[index][1:] for index in members]
        drawn[where] = _resample(values[members], inner, len(where), random) if inner[0] else values[members].mean()
    return drawn.reshape(num_draws, len(groups)).mean(1)


def _nested_mean(values: Sequence[float], places: Sequence[Place]) -> float:
    if not places[0]:
        return float(np.mean(values))
    groups = _groups(list(places))
    return float(
        np.mean(
            [
                _nested_mean([values[index] for index in members], [places[index][1:] for index in members])
                for members in groups
            ]
        )
    )


def _groups(places: list[Place]) -> list[list[int]]:
    """Numbers of the places of each outermost group, in order of first appearance."""
    groups: dict[Hashable, list[int]] = {}
    for index, place in enumerate(places):
        groups.setdefault(place[0], []).append(index)
    return list(groups.values())
