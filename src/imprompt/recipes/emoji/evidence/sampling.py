"""Pictures out of a pipeline, each from a noise of its own."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from imprompt.recipes.emoji.evidence.settings import DrawingSettings
from imprompt.training.loop.optimizers import autocast_format

Before: TypeAlias = Callable[[slice], dict[str, Any]]
"""Called before each batch with its place among all pictures; returns what else the pipeline is called with."""


def no_options(part: slice) -> dict[str, Any]:
    """Nothing is done before a batch, and nothing more is said."""
    return {}


@torch.no_grad()
def sample(
    pipe: Any, settings: DrawingSettings, texts: Sequence[str], seeds: Sequence[int], before: Before = no_options
) -> UInt8[Tensor, "pictures 3 height width"]:
    """Draw one picture for each text, `settings.batch_size` at a time; how many go together changes nothing else.

    Args:
        pipe: Any pipeline that draws from texts.
        settings: Steps, guidance and size of batches.
        texts: One for each picture; an empty one says nothing.
        seeds: One for each picture, of its noise.
        before: Prepares a batch.
    """
    parts, device = [], torch.device(settings.device)
    number_format = autocast_format(settings.autocast, device)
    for start in range(0, len(texts), settings.batch_size):
        part = slice(start, start + settings.batch_size)
        options = before(part)
        with torch.autocast(device.type, number_format, enabled=number_format is not None):
            made = pipe(
                list(texts[part]),
                num_inference_steps=settings.num_steps,
                guidance_scale=settings.guidance_scale,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
                output_type="np",
                **options,
            ).images
        parts.append(torch.from_numpy(np.round(made * 255).astype(np.uint8)).permute(0, 3, 1, 2))
    return torch.cat(parts)
