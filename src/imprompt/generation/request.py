"""What a user asks for, checked when it is written down."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from imprompt.core.errors import PromptError
from imprompt.prompts.image_prompt import ImagePrompt
from imprompt.prompts.parse import check_keys, parse_prompts, parse_regions
from imprompt.prompts.text_region import TextRegion

MAX_SEED = 2**63 - 1  # what torch's generators take


@dataclass(frozen=True, kw_only=True)
class Request:
    """Pictures to make.

    Attributes:
        prompt: the text; empty to follow the image prompts alone.
        negative_prompt: what to keep away from; None leaves it to the pipeline (SDXL treats "" otherwise).
        image_prompts: what to follow, each with its own weight, region and schedule.
        regions: texts that parts of the picture follow in place of `prompt` (UNets alone).
        steps: denoising steps.
        guidance_scale: strength of classifier-free guidance; 1 turns it off.
        seed: of the first picture; picture k has seed + k, so that it does not depend on how many are made. None
            draws one, which the result tells.
        num_images: how many pictures.
        height: of the picture, in pixels; None leaves it to the pipeline.
        width: likewise.
    """

    prompt: str = ""
    negative_prompt: str | None = None
    image_prompts: Sequence[ImagePrompt] = ()
    regions: Sequence[TextRegion] = ()
    steps: int = 30
    guidance_scale: float = 7.5
    seed: int | None = None
    num_images: int = 1
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_prompts", tuple(self.image_prompts))
        object.__setattr__(self, "regions", tuple(self.regions))
        for prompt in self.image_prompts:
            if not isinstance(prompt, ImagePrompt):
                raise PromptError(f"image_prompts holds a {type(prompt).__name__}; write ImagePrompt({prompt!r})")
        for region in self.regions:
            if not isinstance(region, TextRegion):
                raise PromptError(f"regions holds a {type(region).__name__}; write TextRegion(text, mask)")
        for name in ("steps", "num_images", "height", "width"):
            _check_positive(name, getattr(self, name))
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise PromptError(f"guidance_scale is {self.guidance_scale}; expected a finite number from 0 up")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED - self.num_images:
            raise PromptError(f"seed is {self.seed}; expected a whole number from 0 to {MAX_SEED - self.num_images}")


def parse_request(given: Mapping[str, Any], folder: str | Path = ".", **defaults: Any) -> Request:
    """A request of a mapping: of a request file, an HTTP body, a node.

    Args:
        given: `Request`'s fields; each of `image_prompts` is a path or a mapping of `ImagePrompt`'s fields, each of
            `regions` a mapping of `TextRegion`'s.
        folder: what paths are relative to.
        **defaults: values of fields that are not given.

    Raises:
        PromptError: a key is unknown, or a value makes no sense.
    """
    check_keys(given, [field.name for field in fields(Request)], "a request")
    values = {**defaults, **given}
    for name in ("prompt", "negative_prompt"):
        if not isinstance(values.get(name), str | None):
            raise PromptError(f"{name} must be a text; got {values[name]!r:.60}")
    for name in ("steps", "seed", "num_images", "height", "width"):
        if not isinstance(values.get(name), int | None) or isinstance(values.get(name), bool):
            raise PromptError(f"{name} must be a whole number; got {values[name]!r:.60}")
    scale = values.get("guidance_scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise PromptError(f"guidance_scale must be a number; got {scale!r:.60}")
    if "guidance_scale" in values:
        values["guidance_scale"] = float(scale)
    values["image_prompts"] = parse_prompts(values.get("image_prompts", ()), folder)
    values["regions"] = parse_regions(values.get("regions", ()), folder)
    return Request(**values)


def _check_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise PromptError(f"{name} is {value}; expected a whole number from 1 up")
