"""Line charts: a few curves over one axis, drawn with Pillow alone."""

from collections.abc import Mapping, Sequence

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
    height = width * 2 // 3
    chart = Image.new("RGB", (width, height), _PAPER)
    draw, font = ImageDraw.Draw(chart), ImageFont.load_default(14)
    values = [value for curve in curves.values() for value in curve]
    low, high = _bounds(values)
    left, right = _bounds(places)

    def at(place: float, value: float) -> tuple[float, float]:
        x = _MARGIN + (place - left) / (right - left) * (width - _MARGIN - 24)
        return x, height - _MARGIN - (value - low) / (high - low) * (height - 2 * _MARGIN)

    for part in range(5):
        value = low + (high - low) * part / 4
        draw.line([at(left, value), at(right, value)], _RULE)
        draw.text((_MARGIN - 6, at(left, value)[1]), f"{value:.2f}", _INK, font, anchor="rm")
    for place in places:
        draw.text((at(place, low)[0], height - _MARGIN + 8), f"{place:g}", _INK, font, anchor="mt")
    draw.text((width // 2, height - 8), x_label, _INK, font, anchor="mb")
    draw.text((8, 8), y_label, _INK, font, anchor="lt")
    for number, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [at(place, value) for place, value in zip(places, curve, strict=True)]
        draw.line(points, colour, 2)
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
        draw.text((width - 24, 8 + 18 * number), name, colour, font, anchor="rt")
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


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
