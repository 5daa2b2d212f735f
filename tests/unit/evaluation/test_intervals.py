"""Intervals: known variances, levels that are respected, pairs."""

import numpy as np
import pytest

from imprompt.evaluation.errors import EvaluationError
from imprompt.evaluation.intervals import bootstrap, difference, ratio


def test_of_independent_values_it_is_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, 400)
    interval = bootstrap(values.tolist(), [(index,) for index in range(400)])
    half = 1.96 * values.std() / np.sqrt(400)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.high - interval.mean == pytest.approx(half, rel=0.1)
    assert interval.mean - interval.low == pytest.approx(half, rel=0.1)


def test_values_that_share_a_subject_count_once() -> None:
    """Twenty seeds of five subjects that always give the subject's value: five samples, not a hundred."""
    subjects = np.random.default_rng(1).normal(size=5)
    places = [(subject, seed) for subject in range(5) for seed in range(20)]
    values = [float(subjects[subject]) for subject, _ in places]
    nested, flat = bootstrap(values, places), bootstrap(values, [(index,) for index in range(100)])
    expected = 2 * 1.96 * subjects.std() / np.sqrt(5)
    assert nested.high - nested.low == pytest.approx(expected, rel=0.25)
    assert flat.high - flat.low < 0.4 * (nested.high - nested.low)
    assert (nested.num_values, nested.num_groups) == (100, 5)


def test_variance_of_two_levels_adds_up() -> None:
    """With G groups of n values each: variance of the mean = between / G + within / (G n), the bootstrap's between
    being that of the group means, which holds a part of the within already."""
    random = np.random.default_rng(2)
    groups = random.normal(size=30)
    places = [(group, seed) for group in range(30) for seed in range(10)]
    values = np.array([groups[group] + 2 * random.normal() for group, _ in places])
    table = values.reshape(30, 10)
    variance = table.mean(1).var() / 30 + (table.var(1) / 10).mean() / 30
    interval = bootstrap(values.tolist(), places)
    assert (interval.high - interval.low) / (2 * 1.96) == pytest.approx(np.sqrt(variance), rel=0.07)


def test_unequal_groups_weigh_alike() -> None:
    interval = bootstrap([1.0, 1.0, 1.0, 5.0], [("a", 0), ("a", 1), ("a", 2), ("b", 0)])
    assert interval.mean == 3.0


def test_pairs_see_what_means_cannot() -> None:
    subjects = np.random.default_rng(3).normal(size=40) * 10
    first = {(index,): float(value) for index, value in enumerate(subjects)}
    second = {(index,): float(value) + 0.1 + 0.05 * (index % 2) for index, value in enumerate(subjects)}
    paired = difference(first, second)
    assert paired.excludes_zero
    assert paired.mean == pytest.approx(0.125)
    assert not difference(first, dict(first)).excludes_zero


def test_one_subject_decides_nothing() -> None:
    one, two = bootstrap([0.5, 0.7], [("a", 0), ("a", 1)]), bootstrap([0.5, 0.7], [("a", 0), ("b", 0)])
    assert str(one) == "0.6000" and not one.is_known and not one.excludes_zero
    assert str(two) == "0.6000 [0.5000, 0.7000]" and two.excludes_zero


def test_the_seed_decides() -> None:
    places = [(index,) for index in range(9)]
    values = np.random.default_rng(9).normal(size=9).tolist()
    assert bootstrap(values, places, seed=4) == bootstrap(values, places, seed=4) != bootstrap(values, places, seed=5)


@pytest.mark.parametrize(
    ("values", "places", "words"),
    [
        ([], [], "one or more"),
        ([1.0], [], "1 values at 0 places"),
        ([float("nan")], [(0,)], "not finite"),
        ([1.0, 2.0], [(0,), (0, 1)], "different depth"),
    ],
)
def test_nonsense_is_refused(values: list[float], places: list[tuple[int, ...]], words: str) -> None:
    with pytest.raises(EvaluationError, match=words):
        bootstrap(values, places)


def test_results_without_a_common_place_are_refused() -> None:
    with pytest.raises(EvaluationError, match="share no"):
        difference({(0,): 1.0}, {(1,): 1.0})


def test_a_ratio_of_values_that_rise_and_fall_together_is_certain():
    values = np.random.default_rng(3).normal(2.0, 1.0, 30)
    places = [(group, seed) for group in range(10) for seed in range(3)]
    first = dict(zip(places, values.tolist(), strict=True))
    found = ratio(first, {place: 0.7 * value for place, value in first.items()}, num_draws=500)
    assert (found.mean, found.low, found.high) == pytest.approx((0.7, 0.7, 0.7))
    assert (found.num_values, found.num_groups) == (30, 10)


def test_a_ratio_of_independent_values_is_as_wide_as_the_normal_one():
    random = np.random.default_rng(4)
    first, second = ({(place,): value for place, value in enumerate(random.normal(5, 1, 400))} for _ in range(2))
    found = ratio(first, second)
    assert found.high - found.low == pytest.approx(2 * 1.96 * (2 / 400) ** 0.5 / 5, rel=0.1)


def test_nothing_is_a_share_of_what_may_be_zero():
    first = {(0,): -1.0, (1,): 1.5}
    with pytest.raises(EvaluationError, match="which may be zero"):
        ratio(first, first)
