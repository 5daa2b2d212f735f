"""An image prompt: which pictures, how strongly, where and when. Plain data, checked when it is written down."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from PIL import Image
from torch import Tensor

from imprompt.core.errors import PromptError
from imprompt.core.images import FITS, Fit, ImageSource

FaceChoice: TypeAlias = Literal["largest"] | int | Tensor

_SOURCES = (str, Path, Image.Image, Tensor, np.ndarray)
_WANTED = "a path, a PIL image, a tensor or an array"


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """One image prompt of one adapter.

    Nothing is opened here: pictures are read when the prompt is resolved.

    Attributes:
        image: A picture, or several that are shown to the adapter together (their tokens share one softmax): a path, a
            PIL image, a tensor `[3, height, width]` or an array `[height, width, 3]`. None where `features` are given.
        features: What the adapter's encoder made of pictures: `[width]` or `[pictures, width]` for pooled features,
            `[length, width]` or `[pictures, length, width]` for a hidden layer. None where `image` is given.
        weight: How strongly it acts: 0 not at all, 1 as trained, above 1 exaggerated, below 0 pushed away from.
        mask: Where it acts: white everywhere the picture's words count, black elsewhere; everywhere if None.
        start: When it begins to act, as a fraction of the steps.
        end: When it ceases to act; 1 includes the last step.
        fit: What becomes of a picture that is not square: `"crop"` keeps the centre, `"pad"` adds white, `"stretch"`
            distorts.
        adapter: Which of the attached adapters it speaks to, counted from 0.
        face: Whose face, for adapters of faces: `"largest"`, a number counted from 0 at the left, or an embedding that
            it is to be like; as the face encoder says if None.
        crop_features: Beside `features`, for FaceID-Plus: what its image encoder made of the aligned faces,
            `[length, width]` or `[pictures, length, width]`.
        structure: For FaceID-Plus version 2: how strongly the face's picture counts beside the identity (`s_scale`).

    Raises:
        PromptError: A value makes no sense; the message names the field.
    """

    image: ImageSource | Sequence[ImageSource] | None = None
    _: KW_ONLY
    features: Tensor | None = None
    weight: float = 1.0
    mask: ImageSource | None = None
    start: float = 0.0
    end: float = 1.0
    fit: Fit = "crop"
    adapter: int = 0
    face: FaceChoice | None = None
    crop_features: Tensor | None = None
    structure: float = 1.0

    def __post_init__(self) -> None:
        if (self.image is None) == (self.features is None):
            given = "neither" if self.image is None else "both"
            raise PromptError(f"An image prompt needs either image or features; got {given}.")
        self._check_images()
        self._check_features()
        _check_number("weight", self.weight)
        _check_number("start", self.start)
        _check_number("end", self.end)
        if not 0.0 <= self.start < self.end <= 1.0:
            raise PromptError(
                f"start and end must satisfy 0 <= start < end <= 1 (fractions of the steps); "
                f"got start={self.start!r}, end={self.end!r}."
            )
        if self.mask is not None and not isinstance(cast(Any, self.mask), _SOURCES):
            raise PromptError(f"mask must be {_WANTED}; got {_kind(self.mask)}.")
        if self.fit not in FITS:
            raise PromptError(f"fit must be one of {', '.join(map(repr, FITS))}; got {self.fit!r}.")
        self._check_face()
        if not _is_index(self.adapter):
            raise PromptError(f"adapter must be an attached adapter's number, counted from 0; got {self.adapter!r}.")

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """Every picture of this prompt; none where features were given."""
        if self.image is None:
            return ()
        if isinstance(self.image, _SOURCES):
            return (self.image,)
        return tuple(self.image)

    def _check_images(self) -> None:
        image: Any = self.image
        if image is None or isinstance(image, _SOURCES):
            return
        if not isinstance(image, list | tuple):
            raise PromptError(f"image must be {_WANTED} or a list of them; got {_kind(image)}.")
        if not image:
            raise PromptError("image is an empty list; give at least one picture, or leave the whole prompt out.")
        for place, item in enumerate(cast(Sequence[object], image)):
            if not isinstance(item, _SOURCES):
                raise PromptError(f"image[{place}] must be {_WANTED}; got {_kind(item)}.")

    def _check_features(self) -> None:
        features: Any = self.features
        if features is None:
            return
        if not isinstance(features, Tensor):
            raise PromptError(f"features must be a tensor; got {_kind(features)}.")
        if not 1 <= features.ndim <= 3 or features.numel() == 0:
            raise PromptError(
                "features must have the shape [width], [pictures, width] or [pictures, length, width]; "
                f"got {list(features.shape)}."
            )
        if not bool(features.isfinite().all()):
            raise PromptError("features hold NaN or infinite values; encode the picture again.")

    def _check_face(self) -> None:
        face: Any = self.face
        if not (face is None or isinstance(face, Tensor) or face == "largest" or _is_index(face)):
            raise PromptError(f"face must be 'largest', a number counted from 0, or an embedding; got {_kind(face)}.")
        if face is not None and self.image is None:
            raise PromptError("face chooses among the faces of a picture; this prompt has features.")
        crop: Any = self.crop_features
        if crop is not None and (not isinstance(crop, Tensor) or crop.ndim not in (2, 3) or self.features is None):
            raise PromptError(
                "crop_features must be a tensor [length, width] or [pictures, length, width] that goes with features; "
                f"got {_kind(crop) if not isinstance(crop, Tensor) else list(crop.shape)}."
            )
        _check_number("structure", self.structure)


def _check_number(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise PromptError(f"{field} must be a finite number; got {value!r}.")


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _kind(value: object) -> str:
    return f"{value!r:.60} ({type(value).__name__})"
