"""What a pipeline can be asked for: sizes that its denoiser can make, guidance that it heeds."""

import inspect
from collections.abc import Mapping
from typing import Any

from imprompt.adapter.fit import pipe_and_host
from imprompt.core.errors import PromptError
from imprompt.generation.request import Request


def parameters_of(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """The arguments of a pipeline's call."""
    return inspect.signature(type(pipe).__call__).parameters


def check_sizes(pipe: Any, sizes: Mapping[str, int]) -> None:
    """Refuse sizes that a pipeline would round, or would fail at.

    Raises:
        PromptError: it names the nearest size that fits.
    """
    factor = _multiple_of(pipe)
    for name, value in sizes.items():
        if name not in parameters_of(pipe):
            raise PromptError(f"{type(pipe).__name__} takes its {name} from its picture; leave {name} out")
        if value % factor:
            nearest = max(1, round(value / factor)) * factor
            raise PromptError(f"{name} is {value}; expected a multiple of {factor}, e.g. {nearest}")


def check_negative(pipe: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse a negative prompt that a pipeline would not read: FLUX and its kin do so under a guidance of its own only.

    Raises:
        PromptError: it names that guidance.
    """
    asked = parameters_of(pipe).get("true_cfg_scale")
    if arguments.get("negative_prompt") is None or asked is None:
        return
    scale = arguments.get("true_cfg_scale", asked.default)
    if isinstance(scale, int | float) and scale <= 1:
        raise PromptError(
            f"{type(pipe).__name__} reads a negative prompt only where true_cfg_scale is above 1, and it is {scale}; "
            "pass true_cfg_scale=, or leave negative_prompt out"
        )


def picture_size(pipe: Any, request: Request, options: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the picture, None where only the pipeline will know."""
    if request.height is not None and request.width is not None:
        return request.height, request.width
    config = getattr(pipe_and_host(pipe)[1], "config", None)
    side = getattr(pipe, "default_sample_size", None) or getattr(config, "sample_size", None)
    factor = getattr(pipe, "vae_scale_factor", None)
    if "image" in options or request.height or request.width or not (isinstance(side, int) and isinstance(factor, int)):
        return None
    return side * factor, side * factor


def _multiple_of(pipe: Any) -> int:
    """Of how many pixels sizes must be: latents that are cut into patches want more than the autoencoder does."""
    factor = getattr(pipe, "vae_scale_factor", 8)
    config = getattr(getattr(pipe, "image_processor", None), "config", None)
    patched = factor * getattr(pipe, "patch_size", 1)
    return max(patched, getattr(config, "vae_scale_factor", None) or 0)
