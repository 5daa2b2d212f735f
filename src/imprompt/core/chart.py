"""Line charts: a few curves over one axis, drawn with Pillow alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_PAPER, _INK, _RULE = (255, 255, 255), (40, 40, 40), (225, 225, 225)
_COLOURS = ((31, 95, 191), (204, 85, 0), (34, 139, 84), (150, 60, 160), (120, 120, 120))
_MARGIN = 56


def line_chart(
    curves: Mapping[str, Sequence[float]], places: Sequence[float], *, x_label: str, y_label: str, width: int = 640
) -> Image.Image:
    """Draw curves.

    Args:
        curves: values by name; each has one for every place.
        places: where on the horizontal axis the values lie.
        x_label: what that axis is.
        y_label: what the values are.
        width: of the picture, in pixels; its height is two thirds of it.
    """
    values = [value for curve in curves.values() for value in curve]
    plane = _Plane(width, _bounds(places), _bounds(values))
    chart, draw = _axes(plane, [(place, f"{place:g}") for place in places], x_label, y_label)
    for number, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        _curve(draw, [plane.at(place, value) for place, value in zip(places, curve, strict=True)], colour)
        draw.text((width - 24, 8 + 18 * number), name, colour, _font(), anchor="rt")
    return chart


def path_chart(
    points: Sequence[tuple[float, float]], labels: Sequence[str], *, x_label: str, y_label: str, width: int = 640
) -> Image.Image:
    """Draw one curve from point to point of a plane, with a label at each.

    Args:
        points: values across and up, in the order of the curve.
        labels: words beside each point.
        x_label: what the values across are.
        y_label: what the values up are.
        width: of the picture, in pixels; its height is two thirds of it.
    """
    across, up = (_widened(_bounds(values)) for values in zip(*points, strict=True))
    plane = _Plane(width, across, up)
    ticks = [across[0] + (across[1] - across[0]) * part / 4 for part in range(5)]
    chart, draw = _axes(plane, [(tick, f"{tick:.3f}") for tick in ticks], x_label, y_label)
    places = [plane.at(*point) for point in points]
    _curve(draw, places, _COLOURS[0])
    for (x, y), label in zip(places, labels, strict=True):
        draw.text((x + 7, y - 4), label, _INK, _font(), anchor="lb", stroke_width=2, stroke_fill=_PAPER)
    return chart


def bar_chart(values: Sequence[float], *, size: tuple[int, int] = (160, 80)) -> Image.Image:
    """Draw a bar for each value, upwards from a line at 0; those below it hang from it.

    Args:
        values: the bars' heights, in units of which 1 is the picture's upper half and -1 its lower.
        size: width and height of the picture, in pixels.
    """
    width, height = size
    chart = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(chart)
    has_negative = any(value < 0 for value in values)
    base = height // 2 if has_negative else height - 4
    unit = (base - 4) / max(1.0, *(abs(value) for value in values))
    step = (width - 8) / max(1, len(values))
    for number, value in enumerate(values):
        x = 4 + number * step
        top, bottom = sorted((base - value * unit, float(base)))
        draw.rectangle((x + 1, top, x + step - 2, bottom), _COLOURS[1] if value < 0 else _COLOURS[0])
    draw.line([(2, base), (width - 2, base)], _INK)
    return chart


@dataclass(frozen=True)
class _Plane:
    """Where values lie on a picture of a width: across and up between the bounds of both."""

    width: int
    across: tuple[float, float]
    up: tuple[float, float]

    @property
    def height(self) -> int:
        return self.width * 2 // 3

    def at(self, place: float, value: float) -> tuple[float, float]:
        """A point, in pixels from the left and from above."""
        (left, right), (low, high) = self.across, self.up
        x = _MARGIN + (place - left) / (right - left) * (self.width - _MARGIN - 24)
        return x, self.height - _MARGIN - (value - low) / (high - low) * (self.height - 2 * _MARGIN)


def _axes(
    plane: _Plane, ticks: Sequence[tuple[float, str]], x_label: str, y_label: str
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A picture without curves: five rules up, ticks across, and what both are."""
    chart = Image.new("RGB", (plane.width, plane.height), _PAPER)
    draw, font = ImageDraw.Draw(chart), _font()
    (left, right), (low, high) = plane.across, plane.up
    digits = max(2, math.ceil(-math.log10((high - low) / 4)))  # so that no two rules are told alike
    for part in range(5):
        value = low + (high - low) * part / 4
        draw.line([plane.at(left, value), plane.at(right, value)], _RULE)
        draw.text((_MARGIN - 6, plane.at(left, value)[1]), f"{value:.{digits}f}", _INK, font, anchor="rm")
    for place, words in ticks:
        draw.text((plane.at(place, low)[0], plane.height - _MARGIN + 8), words, _INK, font, anchor="mt")
    draw.text((plane.width // 2, plane.height - 8), x_label, _INK, font, anchor="mb")
    draw.text((8, 8), y_label, _INK, font, anchor="lt")
    return chart, draw


def _curve(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], colour: tuple[int, int, int]) -> None:
    draw.line(points, colour, 2)
    for x, y in points:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), colour)


def _font() -> Any:
    return ImageFont.load_default(14)


def _widened(bounds: tuple[float, float]) -> tuple[float, float]:
    """Bounds with room for the labels of what lies on them."""
    low, high = bounds
    room = (high - low) / 10
    return low - room, high + room


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
