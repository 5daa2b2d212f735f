"""Curves as SVG text, for pages that must not depend on anything: a title, axes with round numbers, lines and bands."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeAlias

Number: TypeAlias = int | float

WIDTH, HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 28, 40, 40
_INK, _FAINT, _RULE = "#1f2328", "#59636e", "#e4e7eb"
_LINE = "#1f5fbf"
_FONT = "font-family='system-ui, sans-serif'"
_NAMES_WIDTH = 60  # of the column of names, where there are several curves
_LOG_FROM = 100.0  # an axis is logarithmic where its values span more than this factor


@dataclass(frozen=True)
class Curve:
    """Values over places; those that are no finite numbers leave a gap.

    Attributes:
        name: Shown beside it where there are several.
        places: Where on the horizontal axis.
        values: Of the line.
        low: Lower edge of a band around it.
        high: Upper edge.
        colour: Any SVG colour.
    """

    name: str
    places: Sequence[Number]
    values: Sequence[Number]
    low: Sequence[Number] | None = None
    high: Sequence[Number] | None = None
    colour: str = _LINE

    def extent(self) -> list[Number]:
        """All numbers that the vertical axis must show."""
        return _finite([*self.values, *(self.low or ()), *(self.high or ())])


@dataclass(frozen=True)
class Axis:
    """One direction of a chart, from numbers to pixels.

    Attributes:
        low: Smallest number.
        high: Largest.
        start: Pixel of the smallest.
        end: Pixel of the largest.
        is_log: Whether equal factors take equal space.
    """

    low: Number
    high: Number
    start: Number
    end: Number
    is_log: bool = False

    def at(self, value: Number) -> Number:
        """Pixel of a number."""
        low, high, value = (math.log(each) if self.is_log else each for each in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[Number]:
        """Round numbers along it."""
        if self.is_log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            return [10.0**power for power in range(first, last + 1)]
        return round_numbers(self.low, self.high)


def curve_chart(title: str, curves: Sequence[Curve], *, unit: str = "", zero: bool = False) -> str:
    """Draw curves over training steps.

    Args:
        title: What the values are.
        curves: One or several; each needs at least one place.
        unit: Said after the title.
        zero: Whether the vertical axis includes 0, with a line there.

    Returns:
        An `<svg>` element.
    """
    several = len(curves) > 1
    across = _horizontal(curves, WIDTH - _RIGHT - (_NAMES_WIDTH if several else 0))
    up = _vertical(curves, zero)
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' role='img' {_FONT} font-size='12'>",
        f"<title>{escape(title)}</title>",
        f"<rect width='{WIDTH}' height='{HEIGHT}' fill='#ffffff'/>",
        f"<text x='16' y='22' font-size='14' font-weight='600' fill='{_INK}'>{escape(title)}"
        f"<tspan dx='8' font-weight='400' fill='{_FAINT}'>{escape(unit)}</tspan></text>",
        *_grid(across, up, zero),
        *(_band(curve, across, up) for curve in curves),
        *(_line(curve, across, up) for curve in curves),
        *(_names(curves, across.end) if several else ()),
        "</svg>",
    ]
    return "".join(parts)


def round_numbers(low: Number, high: Number, most: int = 6) -> list[Number]:
    """At most `most` multiples of 1, 2 or 5 times a power of ten from low to high."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    steps = (factor * power for factor in (1, 2, 5, 10, 20))
    multiples = (_multiples(low, high, step) for step in steps)
    return next(each for each in multiples if len(each) <= most)


def _multiples(low: Number, high: Number, step: Number) -> list[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def number_text(value: Number) -> str:
    """A number as an axis or a table shows it: 12,000, 0.25, 1e-05."""
    if value == 0:
        return "0"
    if abs(value) >= 1000 and value == round(value):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _horizontal(curves: Sequence[Curve], end: Number) -> Axis:
    places = _finite([place for curve in curves for place in curve.places])
    low, high = min(places, default=0.0), max(places, default=1.0)
    return Axis(low, high if high > low else low + 1.0, _LEFT, end)


def _vertical(curves: Sequence[Curve], zero: bool) -> Axis:
    values = [value for curve in curves for value in curve.extent()] or [0.0, 1.0]
    low, high = min(values), max(values)
    start, end = HEIGHT - _BOTTOM, _TOP
    if low > 0 and high / low > _LOG_FROM and not zero:
        return Axis(low, high, start, end, is_log=True)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    margin = (high - low) * 0.04
    return Axis(low - margin, high + margin, start, end)


def _grid(across: Axis, up: Axis, zero: bool) -> list[str]:
    parts: list[str] = []
    for value in up.ticks():
        y, is_base = up.at(value), zero and abs(value) < 1e-12
        colour = _FAINT if is_base else _RULE
        parts.append(f"<path d='M{across.start:.1f} {y:.1f}H{across.end:.1f}' stroke='{colour}' fill='none'/>")
        parts.append(
            f"<text x='{_LEFT - 8}' y='{y + 4:.1f}' text-anchor='end' fill='{_FAINT}'>{number_text(value)}</text>"
        )
    y = HEIGHT - _BOTTOM + 18
    for value in across.ticks():
        parts.append(
            f"<text x='{across.at(value):.1f}' y='{y}' text-anchor='middle' fill='{_FAINT}'>{number_text(value)}</text>"
        )
    middle = (across.start + across.end) / 2
    parts.append(f"<text x='{middle:.1f}' y='{HEIGHT - 6}' text-anchor='middle' fill='{_FAINT}'>step</text>")
    return parts


def _band(curve: Curve, across: Axis, up: Axis) -> str:
    if curve.low is None or curve.high is None:
        return ""
    edges = [
        (across.at(place), up.at(low), up.at(high))
        for place, low, high in zip(curve.places, curve.low, curve.high, strict=True)
        if math.isfinite(low) and math.isfinite(high)
    ]
    there = [f"{x:.1f} {low:.1f}" for x, low, _ in edges]
    back = [f"{x:.1f} {high:.1f}" for x, _, high in reversed(edges)]
    outline = "L".join(there + back)
    return f"<path d='M{outline}Z' fill='{curve.colour}' fill-opacity='0.16'/>" if edges else ""


def _line(curve: Curve, across: Axis, up: Axis) -> str:
    """The line and, where there are few, its points; each says its numbers when pointed at."""
    places: list[str] = []
    points: list[str] = []
    command = "M"
    for place, value in zip(curve.places, curve.values, strict=True):
        if not math.isfinite(value):
            command = "M"
            continue
        x, y = f"{across.at(place):.1f}", f"{up.at(value):.1f}"
        places.append(f"{command}{x} {y}")
        command = "L"
        said = escape(f"{curve.name}, step {number_text(place)}: {number_text(value)}")
        points.append(f"<circle cx='{x}' cy='{y}' r='2.5' fill='{curve.colour}'><title>{said}</title></circle>")
    line = f"<path d='{''.join(places)}' fill='none' stroke='{curve.colour}' stroke-width='1.8'/>" if places else ""
    return line + ("".join(points) if len(points) <= 60 else "")


def _names(curves: Sequence[Curve], edge: Number) -> list[str]:
    """Names in a column, top to bottom in the order of the curves."""
    height = min(18.0, (HEIGHT - _TOP - _BOTTOM) / len(curves))
    parts: list[str] = []
    for number, curve in enumerate(curves):
        y = _TOP + height * (number + 0.5)
        parts.append(f"<path d='M{edge + 8:.1f} {y:.1f}h10' stroke='{curve.colour}' stroke-width='3'/>")
        parts.append(f"<text x='{edge + 22:.1f}' y='{y + 4:.1f}' fill='{_FAINT}'>{escape(curve.name)}</text>")
    return parts


def _finite(values: Sequence[Number]) -> list[Number]:
    return [value for value in values if math.isfinite(value)]
