"""From a picture to the numbers a vision tower reads, bit for bit as its own processor computes them.

The processor of transformers is not used: its default needs torchvision, and it knows one way to make a picture square.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imprompt.core.errors import CheckpointError
from imprompt.core.images import Fit, check_fit

logger = logging.getLogger(__name__)

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)  # SigLIP's mean and deviation: pixels from -1 to 1

BILINEAR, BICUBIC = 2, 3  # as Pillow numbers its filters

# A picture thinner than this is cut before it is scaled: a strip of one pixel would else become millions of them wide.
_MAX_RATIO = 16
_WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Preprocessing:
    """How an encoder wants its pictures.

    Attributes:
        shortest_edge: To what the shorter side is scaled before the crop, in pixels; 0 if both sides are scaled alike.
        crop_size: Side of the square that the encoder sees, in pixels.
        mean: What is subtracted from each channel, on a scale from 0 to 1.
        std: By what each channel is divided afterwards.
        resample: Pillow's number of the filter; 3 is bicubic.
    """

    shortest_edge: int = 224
    crop_size: int = 224
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    resample: int = BICUBIC

    @classmethod
    def openai(cls, image_size: int = 224) -> "Preprocessing":
        """CLIP's own, at the size of an encoder."""
        return cls(shortest_edge=image_size, crop_size=image_size)

    def at(self, image_size: int) -> "Preprocessing":
        """The same at the size of an encoder: with the crop that it makes, but without a margin."""
        return replace(self, crop_size=image_size, shortest_edge=image_size if self.shortest_edge else 0)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, default: "Preprocessing | None" = None) -> "Preprocessing":
        """Read the content of a `preprocessor_config.json`, of any age.

        Args:
            config: The content.
            default: What holds where it says nothing; OpenAI's for CLIP by default.

        Raises:
            CheckpointError: It makes no squares.
        """
        default = cls.openai() if default is None else default
        shortest_edge, crop_size = _sizes(config, default)
        normalised = config.get("do_normalize") is not False
        return cls(
            shortest_edge=shortest_edge,
            crop_size=crop_size,
            mean=_triple(config.get("image_mean") or default.mean) if normalised else (0.0, 0.0, 0.0),
            std=_triple(config.get("image_std") or default.std) if normalised else (1.0, 1.0, 1.0),
            resample=default.resample if config.get("resample") is None else int(config["resample"]),
        )

    @classmethod
    def from_folder(cls, folder: Path, *, default: "Preprocessing | None" = None) -> "Preprocessing":
        """Read a folder's `preprocessor_config.json`; the default where there is none, which the log then says.

        Raises:
            CheckpointError: It cannot be read, or makes no squares.
        """
        path = preprocessor_file(folder)
        if path is not None:
            try:
                config = json.loads(path.read_text())
                # The second name is of a processor for pictures and texts, and says this in a part of its own.
                return cls.from_config(config.get("image_processor", config), default=default)
            except (AttributeError, CheckpointError, TypeError, ValueError) as error:
                raise CheckpointError(
                    f"'{path}' does not say how to prepare pictures ({error}); get it again."
                ) from error
        logger.info("no preprocessor_config.json in '%s': preparing pictures as is usual for such an encoder", folder)
        return cls.openai() if default is None else default

    def to_json(self) -> str:
        """Every value, in a fixed order, for fingerprints."""
        return json.dumps(asdict(self))


def preprocessor_file(folder: Path) -> Path | None:
    """The file that says how an encoder's pictures are prepared; None if there is none.

    Pipelines of diffusers keep it beside the folder of their image encoder.
    """
    beside = [folder.parent / "feature_extractor"] if folder.name == "image_encoder" else []
    names = ("preprocessor_config.json", "processor_config.json")
    places = [place / name for place in (folder, *beside) for name in names]
    return next((path for path in places if path.is_file()), None)


def prepare_pixels(
    image: Image.Image, preprocessing: Preprocessing, fit: Fit = "crop"
) -> Float[Tensor, "3 height width"]:
    """Scale a picture, make it square, and normalise it.

    Args:
        image: An RGB picture.
        preprocessing: How the encoder wants it.
        fit: `"crop"` scales the shorter side and keeps the centre, as published adapters were trained; `"pad"` scales
            the longer side and adds white; `"stretch"` scales both.
    """
    check_fit(fit)
    values = np.asarray(_SQUARES[fit](image, preprocessing)).astype(np.float64) * (1 / 255)
    # Twice in single precision, as transformers does it, so that features agree to the last bit.
    mean, std = (np.array(numbers, dtype=np.float32) for numbers in (preprocessing.mean, preprocessing.std))
    normalised = (values.astype(np.float32) - mean) / std
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))


def lost_by_crop(size: tuple[int, int]) -> float:
    """Tell which share of a picture of this width and height, 0 to 1, lies outside its central square."""
    return 1.0 - min(size) / max(size)


def _crop(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    side = preprocessing.crop_size
    if preprocessing.shortest_edge == 0:
        return _stretch(image, preprocessing)
    image = _limit_ratio(image)
    short, long = sorted(image.size)
    longer = int(preprocessing.shortest_edge * long / short)
    width, height = image.size
    scaled = (preprocessing.shortest_edge, longer) if width <= height else (longer, preprocessing.shortest_edge)
    image = image.resize(scaled, preprocessing.resample)
    left, top = (scaled[0] - side) // 2, (scaled[1] - side) // 2
    return image.crop((left, top, left + side, top + side))


def _pad(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    side = preprocessing.crop_size
    factor = side / max(image.size)
    width, height = (max(1, round(extent * factor)) for extent in image.size)
    square = Image.new("RGB", (side, side), _WHITE)
    square.paste(image.resize((width, height), preprocessing.resample), ((side - width) // 2, (side - height) // 2))
    return square


def _stretch(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    return image.resize((preprocessing.crop_size, preprocessing.crop_size), preprocessing.resample)


_SQUARES = {"crop": _crop, "pad": _pad, "stretch": _stretch}


def _limit_ratio(image: Image.Image) -> Image.Image:
    """Keep the middle of a very thin picture, still far more than the crop will show."""
    width, height = image.size
    longest = min(width, height) * _MAX_RATIO
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


def _sizes(config: Mapping[str, Any], default: Preprocessing) -> tuple[int, int]:
    """The shorter side before the crop, or 0 if both sides are scaled alike, and the side of the square."""
    size = config.get("size")
    if not size:
        shortest_edge, square = default.shortest_edge, default.crop_size
    elif isinstance(size, Mapping) and "shortest_edge" not in size:
        shortest_edge, square = 0, _side(size)
    else:
        shortest_edge = square = _side(size)
    cropped = config.get("do_center_crop") is not False and config.get("crop_size")
    return shortest_edge, _side(config["crop_size"]) if cropped else square


def _side(size: Any) -> int:
    """Read a size that is a number, or a mapping with one in it."""
    match size:
        case int():
            return size
        case {"shortest_edge": int(side)}:
            return side
        case {"height": int(height), "width": int(width)} if height == width:
            return height
        case _:
            raise CheckpointError(f"its size is {size!r}; expected a number, a shortest_edge, or equal sides")


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)
