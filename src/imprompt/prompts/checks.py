"""What numbers of a prompt may be, whoever the prompt is to."""

import math
from numbers import Real
from typing import cast

from imprompt.core.errors import PromptError
from imprompt.prompts.schedule import UNITS, check_curve


def check_number(field: str, value: object) -> None:
    """Refuse what is no finite number.

    Raises:
        PromptError: it names the field.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise PromptError(f"{field} must be a finite number; got {value!r}.")


def check_between(field: str, value: object, low: float, high: float) -> None:
    """Refuse what is no number in a range.

    Raises:
        PromptError: it names the field.
    """
    check_number(field, value)
    if not low <= cast(float, value) <= high:
        raise PromptError(f"{field} must lie from {low:g} to {high:g}; got {value!r}.")


def check_window(start: float, end: float, unit: object, curve: object) -> None:
    """Refuse what is no part of a run.

    Raises:
        PromptError: it names the field.
    """
    check_number("start", start)
    check_number("end", end)
    if unit not in UNITS:
        raise PromptError(f"unit must be one of {', '.join(map(repr, UNITS))}; got {unit!r}.")
    if not 0.0 <= start < end <= 1.0:
        raise PromptError(
            f"start and end must satisfy 0 <= start < end <= 1 (fractions of the {unit}); "
            f"got start={start!r}, end={end!r}."
        )
    check_curve(curve)


def is_index(value: object) -> bool:
    """Whether something is a whole number from 0 up."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def kind_of(value: object) -> str:
    """A value and its type, for a message."""
    return f"{value!r:.60} ({type(value).__name__})"
