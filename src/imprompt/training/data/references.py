"""Which pictures a target follows in training, drawn per row of a batch, and an augmentation of their own.

A reference that is always the target itself teaches to copy; another picture of the same group teaches what they share.
"""

import math

import torch
from jaxtyping import Int
from PIL import Image, ImageOps
from torch import Tensor

from imprompt.training.data.manifest import Manifest, ReferenceMode
from imprompt.training.errors import DataError
from imprompt.training.loop.task import Draw

PURPOSE = "references"
ASPECT_JITTER = 4 / 3


def choose(
    manifest: Manifest, samples: Int[Tensor, " rows"], mode: ReferenceMode, num: int, draw: Draw
) -> Int[Tensor, "rows num"]:
    """Choose references for the rows of a batch: a pure function of the draw.

    Args:
        manifest: Where samples and references are.
        samples: Numbers of the targets.
        mode: As `Manifest.reference_ids` takes it.
        num: References a target; they differ as long as there are enough, and come again where there are not.
        draw: Its rows are those of `samples`.

    Raises:
        DataError: There are not as many samples as rows.
    """
    if len(samples) != len(draw.rows):
        raise DataError(f"{len(samples)} samples for {len(draw.rows)} rows of a batch; expected one a row.")
    if mode == "self":
        return samples[:, None].repeat(1, num)
    generators = draw.row_generators(PURPOSE)
    rows = [
        _of_group(manifest, number, num, generator)
        if mode == "group"
        else _distinct(torch.tensor(manifest.reference_ids(number, mode)), num, generator)
        for number, generator in zip(samples.tolist(), generators, strict=True)
    ]
    return torch.stack(rows)


def _of_group(manifest: Manifest, number: int, num: int, generator: torch.Generator) -> Int[Tensor, " num"]:
    """Others of a sample's group; it may have millions, so that nothing of its size is made."""
    members = manifest.group_members(number)
    if len(members) < 2:
        return torch.full((num,), number)
    own = int(members.searchsorted(number))
    places = _distinct_places(len(members) - 1, num, generator)
    return torch.from_numpy(members[(places + (places >= own)).numpy()])


def _distinct(candidates: Int[Tensor, " candidates"], num: int, generator: torch.Generator) -> Int[Tensor, " num"]:
    return candidates[_distinct_places(len(candidates), num, generator)]


def _distinct_places(count: int, num: int, generator: torch.Generator) -> Int[Tensor, " num"]:
    """Places below `count`, different ones as long as there are enough."""
    if count <= 4 * num:
        order = torch.randperm(count, generator=generator)
        return order[torch.arange(num) % count]
    places: list[int] = []
    while len(places) < num:
        place = int(torch.randint(count, (), generator=generator))
        if place not in places:
            places.append(place)
    return torch.tensor(places)


def augmented(image: Image.Image, generator: torch.Generator, *, smallest: float, mirror: bool) -> Image.Image:
    """Crop, and perhaps mirror, a reference at random, whatever is done to the target.

    Args:
        image: Any picture.
        generator: Decides it; the same numbers are drawn whatever the settings are.
        smallest: Least part of the area that is kept; 1 keeps the picture as it is.
        mirror: Whether half of the pictures are mirrored.
    """
    part, jitter, across, down, side = torch.rand(5, generator=generator).tolist()
    if smallest < 1:
        image = _cropped(image, smallest + (1 - smallest) * part, ASPECT_JITTER ** (2 * jitter - 1), (across, down))
    return ImageOps.mirror(image) if mirror and side < 0.5 else image


def _cropped(image: Image.Image, area: float, aspect: float, place: tuple[float, float]) -> Image.Image:
    width = max(1, min(image.width, round(image.width * math.sqrt(area * aspect))))
    height = max(1, min(image.height, round(image.height * math.sqrt(area / aspect))))
    left, top = round((image.width - width) * place[0]), round((image.height - height) * place[1])
    return image.crop((left, top, left + width, top + height))
