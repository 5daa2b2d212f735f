"""Learning rate over the steps of a run."""

import math
from typing import Literal

Schedule = Literal["constant", "cosine"]


def learning_rate_factor(step: int, *, num_steps: int, warmup_steps: int, schedule: Schedule) -> float:
    """Factor on the peak learning rate: a linear warm-up, then constant or half a cosine down to 2 %.

    Args:
        step: Step about to be taken, from 0.
        num_steps: Length of the run, at whose end the cosine arrives.
        warmup_steps: Steps of the linear rise.
        schedule: Shape after the rise.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
    return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * progress))
