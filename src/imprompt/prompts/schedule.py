"""When an image prompt acts: pure functions of a run's progress from 0 (pure noise) to 1 (the finished picture)."""


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
