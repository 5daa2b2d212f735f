"""When an image prompt acts, and how strongly: pure functions of a run's progress from 0 (pure noise) to 1 (finished).

Progress is counted in one of two units. `"steps"`: step i of n is at i / n. `"noise"`: by how far the noise level has
come down the schedule that the denoiser was trained on, 1 - timestep / 1000; samplers that spend more steps on some
levels (Karras, exponential) pass these at other steps. ComfyUI's start and end are of the second kind, those of
InvokeAI and A1111 of the first.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, cast

from imprompt.core.errors import PromptError

Unit: TypeAlias = Literal["steps", "noise"]
UNITS: tuple[Unit, ...] = ("steps", "noise")

# A curve's name, a factor for every step, or a function of the position in the window.
Curve: TypeAlias = str | Sequence[float] | Callable[[float], float]

CURVES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "rise": lambda x: x,
    "fall": lambda x: 1.0 - x,
    "ease rise": lambda x: (1.0 - math.cos(math.pi * x)) / 2,
    "ease fall": lambda x: (1.0 + math.cos(math.pi * x)) / 2,
    "swell": lambda x: math.sin(math.pi * x),
    "dip": lambda x: 1.0 - math.sin(math.pi * x),
}
"""Factors on the weight by name, from the window's start at 0 to its end at 1."""


def window(start: float, end: float, progress: float) -> bool:
    """Tell whether a prompt that acts from `start` to `end` acts at `progress`.

    The start belongs to the window and the end does not, so that two prompts can hand over at one point without both
    acting there; an end of 1 includes the last step.

    Args:
        start: Where the window opens, as a fraction of the steps.
        end: Where it closes.
        progress: Where the run is; step i of n is at i / n.
    """
    return start <= progress and (progress < end or end >= 1.0)


def factor_at(curve: Curve, start: float, end: float, progress: float, *, slack: float = 1e-6) -> float:
    """A curve's factor at a progress that lies in its window.

    Args:
        curve: its name, a function, or a list, whose entries share the window: with as many as there are steps, entry i
            is the factor of step i.
        start: where the window opens.
        end: where it closes.
        progress: where the run is.
        slack: how much earlier than step i of n the progress may be that stands for it.

    Raises:
        PromptError: a function gives something that is no finite number.
    """
    position = min(max((progress - start) / (end - start), 0.0), 1.0)
    if isinstance(curve, str):
        return CURVES[curve](position)
    if not callable(curve):
        later = position + slack / (end - start)
        return float(curve[min(int(later * len(curve)), len(curve) - 1)])
    factor = curve(position)
    if not isinstance(cast(object, factor), int | float) or not math.isfinite(factor):
        raise PromptError(f"curve gives {factor!r} at {position:.3f} of its window; expected a finite number.")
    return float(factor)


def factors_over_run(curve: Curve, start: float, end: float, *, count: int, slack: float) -> list[float]:
    """The factors at `count` places spread evenly over the whole run: the curve's in its window, 0 outside of it.

    Args:
        curve: as in `factor_at`.
        start: where the window opens.
        end: where it closes.
        count: number of places, the run's two ends included.
        slack: how far the window reaches out to places before it.
    """
    places = [number / (count - 1) for number in range(count)]
    inside = [start <= place + slack and (place + slack < end or end >= 1.0) for place in places]  # as `window`
    if curve == "constant":
        return [float(acts) for acts in inside]
    return [
        factor_at(curve, start, end, place, slack=slack) if acts else 0.0
        for place, acts in zip(places, inside, strict=True)
    ]


def check_curve(curve: object) -> None:
    """Refuse what is no curve.

    Raises:
        PromptError: an unknown name, an empty list, or a number that is none.
    """
    if isinstance(curve, str):
        if curve not in CURVES:
            nearest = difflib.get_close_matches(curve, CURVES, n=1, cutoff=0.0)[0]
            raise PromptError(f"no curve {curve!r}; did you mean {nearest!r}? There are {', '.join(CURVES)}.")
    elif isinstance(curve, Sequence):
        factors = cast(Sequence[object], curve)
        if not factors:
            raise PromptError("curve is an empty list; give a factor for every step.")
        for factor in factors:
            if isinstance(factor, bool) or not isinstance(factor, int | float) or not math.isfinite(factor):
                raise PromptError(f"curve holds {factor!r}; expected finite numbers.")
    elif not callable(curve):
        raise PromptError(f"curve must be a name, a list of factors or a function; got {curve!r:.60}.")
