"""Noise in place of "no picture": what the negative half of guidance sees, and so what is moved away from.

A negative made of the reference itself, scrambled, keeps what guidance pulls away from close to the reference: its
colours and grain are then no longer what the picture is praised for.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from PIL import Image, ImageFilter

from imprompt.core.errors import PromptError

NoiseKind: TypeAlias = Literal["fade", "dissolve", "gaussian", "shuffle"]
NOISES: tuple[NoiseKind, ...] = get_args(NoiseKind)
_MAX_BLUR = 32.0  # pixels at a side of `_SIDE`
_SIDE = 224


@dataclass(frozen=True, kw_only=True)
class Noise:
    """A reference turned into noise.

    Attributes:
        kind: `"fade"` mixes it with uniform noise, `"dissolve"` replaces single values by noise, `"gaussian"` adds
            noise, `"shuffle"` cuts it into tiles and mixes these up: its colours and textures without its layout.
        strength: from 0, the reference as it is, to 1.
        blur: deviation of a Gaussian blur at the end, in pixels of a picture of 224 squared.
        seed: of the noise; it has a generator of its own, so that nothing else changes by it.

    Raises:
        PromptError: a value makes no sense.
    """

    kind: NoiseKind = "fade"
    strength: float = 1.0
    blur: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in NOISES:
            raise PromptError(f"noise must be one of {', '.join(map(repr, NOISES))}; got {self.kind!r}.")
        for name, low, high in (("strength", 0.0, 1.0), ("blur", 0.0, _MAX_BLUR)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not low <= value <= high:
                raise PromptError(f"{name} of noise must lie from {low:g} to {high:g}; got {value!r}.")
        if self.seed < 0:
            raise PromptError(f"the seed of noise must be a whole number from 0 up; got {self.seed!r}.")


def noisy(image: Image.Image, noise: Noise) -> Image.Image:
    """An RGB picture turned into noise, the same at every call."""
    random = np.random.default_rng(noise.seed)
    factor = _SIDE / min(image.size)
    if factor < 1:  # noise in a large picture would be averaged away when the encoder scales it down
        image = image.resize([max(_SIDE, round(side * factor)) for side in image.size], Image.Resampling.BICUBIC)  # pyright: ignore
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64) / 255.0
    strength = noise.strength
    match noise.kind:
        case "fade":
            pixels = pixels * (1 - strength) + random.random(pixels.shape) * strength
        case "dissolve":
            chosen = random.random(pixels.shape) < strength
            pixels = np.where(chosen, random.random(pixels.shape), pixels)
        case "gaussian":
            pixels = pixels + random.standard_normal(pixels.shape) * strength
        case "shuffle":
            pixels = _shuffled(pixels, strength, random)
    made = Image.fromarray((pixels.clip(0.0, 1.0) * 255.0).round().astype(np.uint8))
    radius = noise.blur * min(image.size) / _SIDE
    return made.filter(ImageFilter.GaussianBlur(radius)) if radius else made


def _shuffled(pixels: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Tiles in another order, each perhaps mirrored; the stronger, the smaller they are. At 0 one tile is left."""
    count = 1 + round(strength * 7)
    height, width = pixels.shape[:2]
    rows = [height * number // count for number in range(count + 1)]
    columns = [width * number // count for number in range(count + 1)]
    mixed = pixels.copy()
    order = random.permutation(count * count)
    for place, source in enumerate(order):
        (top, left), (from_row, from_column) = divmod(place, count), divmod(int(source), count)
        space = mixed[rows[top] : rows[top + 1], columns[left] : columns[left + 1]]
        tile = pixels[rows[from_row] : rows[from_row + 1], columns[from_column] : columns[from_column + 1]]
        tile = tile[:, ::-1] if count > 1 and random.random() < 0.5 else tile
        if space.size and tile.size:
            repeats = [math.ceil(a / b) for a, b in zip(space.shape[:2], tile.shape[:2], strict=True)]
            space[:] = np.tile(tile, (*repeats, 1))[: space.shape[0], : space.shape[1]]
    return mixed
