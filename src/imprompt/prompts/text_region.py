"""A text for a part of the picture. Plain data, checked when it is written down."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from torch import Tensor

from imprompt.core.errors import PromptError
from imprompt.prompts.checks import check_between, check_window, kind_of
from imprompt.prompts.masks import Box, Mask, Polygon
from imprompt.prompts.schedule import Curve, Unit

_MASKS = (str, Path, Image.Image, Tensor, np.ndarray, Box, Polygon)


@dataclass(frozen=True, eq=False)
class TextRegion:
    """A text that a part of the picture follows in place of the prompt.

    Each place of the picture is shared out: a region has `weight` times its mask, all regions together at most the
    whole (where they come to more, each has its part of their sum), and the prompt has the rest: the background. A
    place that is fully in one region of weight 1 follows that region's text alone. The negative prompt stays whole.

    Attributes:
        text: What is to be there; None where `embeds` are given.
        mask: Where: white where the text counts, black elsewhere. A picture, an array, a `Box` or a `Polygon`.
        embeds: What the pipeline's text encoders made of a text, `[tokens, width]`, of any length.
        weight: How much of its place the region has, from 0 to 1; the rest stays the prompt's.
        feather: How soft the mask's edges become, as a fraction of its shorter side.
        start: When it begins to act, in `unit`. Before, its place is the prompt's.
        end: When it ceases to act; 1 includes the last step.
        unit: What `start` and `end` are fractions of: `"steps"`, or `"noise"`, as for an image prompt.
        curve: A factor on the weight from start to end, from 0 to 1, as for an image prompt.

    Raises:
        PromptError: A value makes no sense; the message names the field.
    """

    text: str | None = None
    mask: Mask | None = None
    _: KW_ONLY
    embeds: Tensor | None = None
    weight: float = 1.0
    feather: float = 0.0
    start: float = 0.0
    end: float = 1.0
    unit: Unit = "steps"
    curve: Curve = "constant"

    def __post_init__(self) -> None:
        text: Any = self.text
        if not isinstance(text, str | None):
            raise PromptError(f"the text of a region must be a text; got {kind_of(text)}.")
        if (text is None) == (self.embeds is None):
            raise PromptError(f"a region needs either text or embeds; got {'neither' if text is None else 'both'}.")
        if not isinstance(self.mask, _MASKS):
            raise PromptError(
                f"the mask of a region must be a path, a PIL image, a tensor or an array, a Box or a Polygon; got "
                f"{kind_of(self.mask)}."
            )
        _check_embeds(self.embeds)
        check_between("the weight of a region", self.weight, 0.0, 1.0)
        check_between("feather", self.feather, 0.0, 1.0)
        check_window(self.start, self.end, self.unit, self.curve)
        curve: Any = self.curve
        if isinstance(curve, list | tuple):
            for factor in cast(Sequence[object], curve):
                check_between("a factor in the curve of a region", factor, 0.0, 1.0)


def _check_embeds(embeds: Any) -> None:
    if embeds is None:
        return
    if not isinstance(embeds, Tensor) or embeds.ndim != 2 or embeds.numel() == 0:
        shape = list(embeds.shape) if isinstance(embeds, Tensor) else kind_of(embeds)
        raise PromptError(f"the embeds of a region must be a tensor [tokens, width]; got {shape}.")
    if not bool(embeds.isfinite().all()):
        raise PromptError("the embeds of a region hold NaN or infinite values; encode the text again.")
