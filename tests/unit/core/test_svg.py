import math
import re
from xml.etree import ElementTree

import pytest

from imprompt.core.svg import Curve, curve_chart, number_text, round_numbers


def elements(chart, name):
    return ElementTree.fromstring(chart).iter(f"{{http://www.w3.org/2000/svg}}{name}")


def points(chart):
    return [(float(each.get("cx")), float(each.get("cy"))) for each in elements(chart, "circle")]


def texts(chart):
    return [each.text for each in elements(chart, "text")]


def test_points_lie_where_their_numbers_say():
    (x0, y0), (x1, y1), (x2, y2) = points(curve_chart("Loss", [Curve("loss", [0, 50, 100], [1.0, 2.0, 3.0])]))
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1) and x0 < x2
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1) and y0 > y2  # up is up


def test_values_that_span_much_are_drawn_by_factors():
    (_, low), (_, middle), (_, high) = points(curve_chart("Norm", [Curve("norm", [0, 1, 2], [0.1, 10.0, 1000.0])]))
    assert middle == pytest.approx((low + high) / 2, abs=0.1)


def test_names_and_titles_are_text_and_nothing_else():
    name = "<script>alert('1')</script> & co"
    chart = curve_chart(name, [Curve(name, [0, 1], [0, 1]), Curve("b", [0], [1])], unit=name)
    assert "<script" not in chart
    assert name in "".join(next(elements(chart, "title")).itertext())


def test_what_is_no_number_leaves_a_gap():
    chart = curve_chart("Loss", [Curve("loss", [0, 1, 2, 3, 4], [1.0, 2.0, math.nan, 2.0, math.inf])])
    path = next(each.get("d") for each in elements(chart, "path") if each.get("stroke-width") == "1.8")
    assert path.count("M") == 2 and path.count("L") == 1
    assert "nan" not in chart and "inf" not in chart


def test_a_band_goes_there_and_back():
    chart = curve_chart("Gain", [Curve("gain", [0, 1], [1.0, 2.0], low=[0.5, 1.5], high=[1.5, 2.5])], zero=True)
    band = next(each.get("d") for each in elements(chart, "path") if each.get("fill-opacity"))
    numbers = [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", band)]
    assert len(numbers) == 4 and numbers[0][0] == numbers[3][0] and numbers[0][1] > numbers[3][1]
    assert "0" in texts(chart)


@pytest.mark.parametrize("values", [[0.0, 0.0], [3.0], [], [math.nan]])
def test_little_to_show_is_still_a_chart(values):
    chart = curve_chart("Loss", [Curve("loss", list(range(len(values))), values)])
    assert "nan" not in chart
    assert len(points(chart)) == sum(map(math.isfinite, values))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 100_000, [0, 20_000, 40_000, 60_000, 80_000, 100_000]),
        (3, 8.5, [3, 4, 5, 6, 7, 8]),
        (0.0, 0.029, [0, 0.005, 0.01, 0.015, 0.02, 0.025]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert round_numbers(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (12_000, "12,000"), (0.25, "0.25"), (1e-5, "1e-05"), (3.0, "3")])
def test_numbers_are_short(value, text):
    assert number_text(value) == text
