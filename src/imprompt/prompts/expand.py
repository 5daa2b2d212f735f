"""Prompts that stand for several: pictures with masks of their own, and pictures cut into tiles."""

from collections.abc import Sequence
from dataclasses import replace

from imprompt.core.errors import PromptError
from imprompt.core.images import load_image
from imprompt.prompts.framing import tiles_of
from imprompt.prompts.image_prompt import ImagePrompt
from imprompt.prompts.masks import Box, Mask, paint, read_mask


def expand(prompt: ImagePrompt, size: tuple[int, int] | None = None) -> list[ImagePrompt]:
    """The prompts, each with one mask at most, that a prompt stands for.

    Args:
        prompt: any.
        size: height and width of the picture to be made, at which shapes are drawn.

    Raises:
        PromptError: masks and features do not go together.
        ImageError: a picture cannot be read.
    """
    parts = _one_each(prompt) if prompt.has_mask_each or (prompt.fit == "tile") else [prompt]
    return [tile for part in parts for tile in _tiled(part, size)]


def _one_each(prompt: ImagePrompt) -> list[ImagePrompt]:
    """A prompt for every picture, with its own mask and weight."""
    pictures = _pictures(prompt)
    masks: Sequence[Mask | None] = prompt.masks if prompt.has_mask_each else [prompt.mask] * len(pictures)  # pyright: ignore
    if len(masks) != len(pictures):
        raise PromptError(f"{len(masks)} masks for {len(pictures)} pictures; give one for each.")
    weights = prompt.image_weights or [1.0] * len(pictures)
    return [
        replace(part, mask=mask, weight=prompt.weight * weight, second_weight=_times(prompt.second_weight, weight))
        for part, mask, weight in zip(pictures, masks, weights, strict=True)
    ]


def _pictures(prompt: ImagePrompt) -> list[ImagePrompt]:
    alone = {"image_weights": None, "mask": None}
    if prompt.features is None:
        return [replace(prompt, image=image, **alone) for image in prompt.images]
    if prompt.features.ndim == 1:
        return [replace(prompt, **alone)]
    # The first axis counts pictures: a hidden layer of a single one has to say so here.
    crops = [None] * len(prompt.features) if prompt.crop_features is None else prompt.crop_features
    return [
        replace(prompt, features=features[None], crop_features=None if crop is None else crop[None], **alone)
        for features, crop in zip(prompt.features, crops, strict=True)
    ]


def _times(weight: float | None, factor: float) -> float | None:
    return None if weight is None else weight * factor


def _tiled(prompt: ImagePrompt, size: tuple[int, int] | None) -> list[ImagePrompt]:
    if prompt.fit != "tile":
        return [prompt]
    tiles = tiles_of(load_image(prompt.images[0]))
    return [
        replace(prompt, image=tile.image, fit="crop", feather=0.0, mask=_inside(prompt, tile.place, size))
        for tile in tiles
    ]


def _inside(prompt: ImagePrompt, place: Box, size: tuple[int, int] | None) -> Mask:
    """A tile's own place, as far as the whole prompt's mask goes."""
    if not prompt.masks:
        return place
    mask = read_mask(prompt.masks[0], size, prompt.feather)
    return mask * paint(place, (mask.shape[0], mask.shape[1]))
