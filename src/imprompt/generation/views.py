"""What an encoder is shown of prompts, and the features that this makes: of all rows together, each picture once."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imprompt.core.errors import PromptError
from imprompt.core.images import FITS, Fit, fit_square, load_image
from imprompt.prompts.embeds import combine
from imprompt.prompts.framing import crop_at, grid_of, merge_details
from imprompt.prompts.image_prompt import ImagePrompt
from imprompt.prompts.noise import Noise, noisy

CENTRE = (0.5, 0.5)

Encode = Callable[[Sequence[Image.Image], Fit], Tensor]


def encode_prompts(
    column: Sequence[ImagePrompt | None], encode: Encode
) -> list[Float[Tensor, "_ *length feature"] | None]:
    """The features of every row's pictures; None for rows without any."""
    return _encoded(column, [_shown(prompt) for prompt in column], encode)


def encode_negatives(
    column: Sequence[ImagePrompt | None], encode: Encode
) -> list[Float[Tensor, "_ *length feature"] | None]:
    """The features of every row's negative; None for rows without one."""
    return _encoded(column, [_shown_instead(prompt) for prompt in column], encode)


def combined(prompt: ImagePrompt, features: Float[Tensor, "images *length feature"]) -> Tensor:
    """The features of a prompt's pictures, made one picture's if it says so.

    Raises:
        PromptError: another number of weights than of pictures.
    """
    weights = prompt.image_weights
    if weights is not None and len(weights) != len(features):
        raise PromptError(f"{len(weights)} image_weights for {len(features)} pictures; give one for each.")
    return combine(features, prompt.combine, weights)


def _shown(prompt: ImagePrompt | None) -> list[Image.Image]:
    return [] if prompt is None else [load_image(picture) for picture in prompt.images]


def _shown_instead(prompt: ImagePrompt | None) -> list[Image.Image]:
    if prompt is None or prompt.negative is None:
        return []
    if isinstance(prompt.negative, Noise):
        return [noisy(picture, prompt.negative) for picture in _shown(prompt)]
    return [load_image(prompt.negative)]


def _encoded(
    column: Sequence[ImagePrompt | None], shown: Sequence[Sequence[Image.Image]], encode: Encode
) -> list[Tensor | None]:
    features: list[Tensor | None] = [None] * len(column)
    views = [
        [] if prompt is None else [view for picture in pictures for view in views_of(picture, prompt)]
        for prompt, pictures in zip(column, shown, strict=True)
    ]
    for fit in FITS:
        rows = [row for row, prompt in enumerate(column) if prompt is not None and prompt.fit == fit and views[row]]
        if not rows:
            continue
        parts = encode([view for row in rows for view in views[row]], fit).split([len(views[row]) for row in rows])
        for row, part in zip(rows, parts, strict=True):
            prompt = column[row]
            assert prompt is not None
            features[row] = _merged(part, prompt)
    return features


def views_of(picture: Image.Image, prompt: ImagePrompt) -> list[Image.Image]:
    """What is looked at of one picture: as a rule it alone, with `detail` the crops of a grid too."""
    assert prompt.fit != "tile"
    if prompt.detail > 1:
        square = crop_at(picture, prompt.focus) if prompt.fit == "crop" else fit_square(picture, prompt.fit)
        return [square, *grid_of(square, prompt.detail)]
    # The encoder crops at the centre by itself, and after scaling.
    return [crop_at(picture, prompt.focus) if prompt.fit == "crop" and tuple(prompt.focus) != CENTRE else picture]


def _merged(views: Float[Tensor, "views *length feature"], prompt: ImagePrompt) -> Tensor:
    if prompt.detail == 1:
        return views
    each = views.split(1 + prompt.detail**2)
    return torch.stack([merge_details(part[0], part[1:], prompt.detail_weight) for part in each])
