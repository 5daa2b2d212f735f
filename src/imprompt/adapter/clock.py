"""Where in its run a denoiser is: timesteps to progress, as tensors, so that nothing waits for the device."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprompt.adapter.conditioning import NUM_PROGRESS
from imprompt.core.errors import ConditioningError


def run_timesteps(pipe: Any) -> Tensor:
    """The timesteps of a pipeline's present run, in order, one for each call of the denoiser's loop.

    Image-to-image starts late, so it runs the last of the scheduler's timesteps; SDXL's `denoising_end` stops early, so
    it runs the first. `num_timesteps` tells how many.

    Raises:
        ConditioningError: there is no run to speak of.
    """
    timesteps = getattr(getattr(pipe, "scheduler", None), "timesteps", None)
    if timesteps is None:
        raise ConditioningError(
            "a prompt with start or end needs to know the run's timesteps, but there is no pipeline with a scheduler; "
            "attach to the pipeline instead of its denoiser"
        )
    count = getattr(pipe, "_num_timesteps", None) or len(timesteps)
    begin = _first_step(pipe, len(timesteps), count)
    return timesteps[begin : begin + count]


def num_levels(pipe: Any) -> int:
    """How many noise levels a pipeline's denoiser was trained on."""
    config = getattr(getattr(pipe, "scheduler", None), "config", None)
    return getattr(config, "num_train_timesteps", None) or 1000


def noise_bins(timestep: Tensor, levels: int) -> Int[Tensor, " n"]:
    """For one timestep, or one a row, the position in a scale table that goes by noise level: 1 - timestep / levels."""
    progress = 1.0 - timestep.reshape(-1).float() / levels
    return torch.round(progress * (NUM_PROGRESS - 1)).long().clamp(0, NUM_PROGRESS - 1)


def _first_step(pipe: Any, length: int, count: int) -> int:
    told = getattr(pipe.scheduler, "begin_index", None)  # schedulers that keep one are told it by image-to-image
    if told is not None:
        return told
    ends_early = getattr(pipe, "denoising_end", None) and not getattr(pipe, "denoising_start", None)
    return 0 if ends_early else length - count


def told_timestep(timestep: Tensor, pipe: Any) -> Tensor:
    """The timestep of a call; where the call does not tell it, that of the step which the pipeline's scheduler counts.

    Raises:
        ConditioningError: nothing tells.
    """
    if timestep.numel():
        return timestep
    scheduler = getattr(pipe, "scheduler", None)
    timesteps = getattr(scheduler, "timesteps", None)
    if timesteps is None or not hasattr(scheduler, "step_index"):
        raise ConditioningError(
            "a prompt with start or end needs to know the step, which this denoiser's calls do not tell; attach to a "
            "pipeline whose scheduler counts its steps, or leave start and end out"
        )
    step = current_step(scheduler)
    return timesteps[step : step + 1]


def current_step(scheduler: Any) -> int:
    """Where in its timesteps a scheduler that counts is."""
    return scheduler.step_index if scheduler.step_index is not None else (scheduler.begin_index or 0)


def progress_bins(timesteps: Float[Tensor, " steps"] | Int[Tensor, " steps"], timestep: Tensor) -> Int[Tensor, " n"]:
    """For one timestep, or one a row, the position in a scale table of `NUM_PROGRESS` entries.

    Progress is `step / number of steps`, so it begins at 0 and ends short of 1.
    """
    wanted = timestep.to(timesteps.device).reshape(-1, 1)
    step = (timesteps[None].float() - wanted.float()).abs().argmin(dim=1)  # not double: Apple's devices have none
    return torch.round(step * ((NUM_PROGRESS - 1) / len(timesteps))).long()
