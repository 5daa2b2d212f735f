"""When a prompt acts, and how strongly."""

import math

import pytest

from imprompt.core.errors import PromptError
from imprompt.prompts.schedule import CURVES, check_curve, factor_at, factors_over_run, window


@pytest.mark.parametrize(
    ("start", "end", "acting"),
    [(0.0, 1.0, [0, 1, 2, 3, 4]), (0.2, 0.6, [1, 2]), (0.5, 1.0, [3, 4]), (0.0, 0.2, [0]), (0.9, 0.95, [])],
)
def test_steps_in_a_window(start: float, end: float, acting: list[int]) -> None:
    assert [step for step in range(5) if window(start, end, step / 5)] == acting


def test_the_last_moment_belongs_to_an_end_of_one() -> None:
    assert window(0.0, 1.0, 1.0)
    assert not window(0.0, 0.99, 1.0)


def test_two_windows_hand_over_without_overlap_or_gap() -> None:
    for progress in (index / 1000 for index in range(1001)):
        assert window(0.0, 0.3, progress) + window(0.3, 1.0, progress) == 1


@pytest.mark.parametrize(
    ("curve", "values"),
    [
        ("constant", [1, 1, 1]),
        ("rise", [0, 0.5, 1]),
        ("fall", [1, 0.5, 0]),
        ("ease rise", [0, 0.5, 1]),
        ("ease fall", [1, 0.5, 0]),
        ("swell", [0, 1, 0]),
        ("dip", [1, 0, 1]),
        (lambda x: 3 * x, [0, 1.5, 3]),
    ],
)
def test_a_curve_lies_in_its_window(curve, values) -> None:
    for start, end in ((0.0, 1.0), (0.2, 0.6)):
        found = [factor_at(curve, start, end, start + (end - start) * x) for x in (0.0, 0.5, 1.0)]
        assert found == pytest.approx(values)
    assert factor_at("ease rise", 0.0, 1.0, 0.1) < factor_at("rise", 0.0, 1.0, 0.1)


@pytest.mark.parametrize("num_steps", [1, 3, 7, 20, 30, 99])
def test_a_list_as_long_as_the_run_has_a_factor_for_each_step(num_steps: int) -> None:
    factors = [float(step) for step in range(num_steps)]
    assert [factor_at(factors, 0.0, 1.0, step / num_steps) for step in range(num_steps)] == factors


def test_every_named_curve_is_finite() -> None:
    for name in CURVES:
        check_curve(name)
        assert all(0 <= factor_at(name, 0.0, 1.0, x / 10) <= 1 for x in range(11))


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        ("rize", "no curve 'rize'; did you mean 'rise'"),
        ([], "empty list"),
        ([1.0, math.nan], "curve holds nan"),
        ([1.0, "2"], "curve holds '2'"),
        (7, "curve must be a name"),
    ],
)
def test_what_is_no_curve(curve, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        check_curve(curve)


def test_a_function_without_a_number_is_said_when_it_is_asked() -> None:
    with pytest.raises(PromptError, match="curve gives nan at 0.500"):
        factor_at(lambda _: math.nan, 0.0, 1.0, 0.5)


@pytest.mark.parametrize("curve", ["constant", "ease fall", (0.5, 1.0, 2.0)])
def test_a_whole_run_at_once(curve) -> None:
    for start, end in ((0.0, 1.0), (0.25, 0.5), (0.5, 1.0)):
        table = factors_over_run(curve, start, end, count=11, slack=0.01)
        for number, factor in enumerate(table):
            at = number / 10
            acts = window(start, end, at + 0.01)
            assert factor == (factor_at(curve, start, end, at, slack=0.01) if acts else 0.0)
