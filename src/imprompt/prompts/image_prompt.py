"""An image prompt: which pictures, how strongly, where and when. Plain data, checked when it is written down."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
from PIL import Image
from torch import Tensor

from imprompt.core.errors import PromptError
from imprompt.core.images import Fit, ImageSource
from imprompt.prompts.blocks import COMPAT, BlockWeights, Compat, check_blocks
from imprompt.prompts.checks import check_between, check_number, check_window, is_index, kind_of
from imprompt.prompts.embeds import Combine, check_combine
from imprompt.prompts.masks import Box, Mask, Polygon
from imprompt.prompts.noise import Noise
from imprompt.prompts.schedule import Curve, Unit

Framing: TypeAlias = Fit | Literal["tile"]
FaceChoice: TypeAlias = Literal["largest"] | int | Tensor
AttentionMode: TypeAlias = Literal["values", "keys and values", "channel penalty", "norm matched", "joint softmax"]

FRAMINGS: tuple[Framing, ...] = ("crop", "pad", "stretch", "tile")
ATTENTIONS: tuple[AttentionMode, ...] = get_args(AttentionMode)
MAX_DETAIL = 8

_SOURCES = (str, Path, Image.Image, Tensor, np.ndarray)
_MASKS = (*_SOURCES, Box, Polygon)
_WANTED = "a path, a PIL image, a tensor or an array"


@dataclass(frozen=True)
class FeatureOrigin:
    """What made the features of a prompt, so that no adapter of another encoder reads them.

    Attributes:
        encoder: the encoder's name.
        fingerprint: hash of its weights and preprocessing.
        layer: which of its outputs.
        index: which hidden state, if one.
    """

    encoder: str
    fingerprint: str
    layer: str
    index: int | None = None


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """One image prompt of one adapter.

    Nothing is opened here: pictures are read when the prompt is resolved.

    Attributes:
        image: A picture, or several: a path, a PIL image, a tensor `[3, height, width]` or an array
            `[height, width, 3]`. None where `features` are given.
        features: What the adapter's encoder made of pictures: `[width]` or `[pictures, width]` for pooled features,
            `[length, width]` or `[pictures, length, width]` for a hidden layer. None where `image` is given.
        weight: How strongly it acts: 0 not at all, 1 as trained, above 1 exaggerated, below 0 pushed away from.
        mask: Where it acts: white everywhere the picture's words count, black elsewhere; everywhere if None. A picture,
            an array, a `Box` or a `Polygon`; a list gives every picture its own, and attention of its own.
        start: When it begins to act, in `unit`.
        end: When it ceases to act; 1 includes the last step.
        fit: What becomes of a picture that is not square: `"crop"` keeps a square around `focus`, `"pad"` adds white,
            `"stretch"` distorts, `"tile"` shows several squares, each acting in its own part of the new picture.
        adapter: Which of the attached adapters it speaks to, counted from 0.
        blocks: How strongly in each block: a preset of `blocks.PRESETS`, `"3:1.0, 6:0.8"`, a list with a factor for
            each block, or a mapping from numbers, names or patterns, or as diffusers nests them; alike in all if None.
        second_weight: The weight of what a preset handles apart, as layout beside style; that of `weight` if None.
        unit: What `start` and `end` are fractions of: `"steps"`, or `"noise"`, the training schedule's levels of it.
        curve: A factor on the weight from start to end: a name of `schedule.CURVES`, a list (entry i for step i where
            it has as many as there are steps), or a function of the position from 0 to 1.
        combine: What becomes of several pictures: `"concat"` shows them all, their tokens sharing one softmax;
            `"average"`, `"normalised average"`, `"add"` and `"subtract"` (the others from the first) make one of them.
        image_weights: How strongly each picture acts beside the others.
        negative: What the negative half of guidance sees in place of no picture: another picture, or `Noise`, which is
            made of the reference.
        feather: How soft the mask's edges become, as a fraction of its shorter side.
        focus: The point `(x, y)` that a crop keeps in its middle, in fractions of the picture.
        detail: Number of crops a side that are looked at beside the whole, for details that the encoder's small square
            loses; 1 for none.
        detail_weight: How much of the features they make up, from 0 to 1.
        attention: What the weight multiplies: `"values"`, as published; `"keys and values"`, so that it also sharpens;
            `"channel penalty"`, the same, and less in narrow blocks; `"norm matched"` brings the image's part to the
            length of the text's first; `"joint softmax"` has image and text share one softmax, in which the weight,
            from 0, multiplies the image's part: `log weight` is added to its logits.
        origin: What made `features`, where it is known; another encoder's are refused.
        face: Whose face, for adapters of faces: `"largest"`, a number counted from 0 at the left, or an embedding that
            it is to be like; as the face encoder says if None.
        crop_features: Beside `features`, for FaceID-Plus: what its image encoder made of the aligned faces,
            `[length, width]` or `[pictures, length, width]`.
        subtract: A text whose features are taken from each picture's, as InstantStyle does to keep a style without its
            content; for adapters of pooled features, beside the text tower of the same CLIP.
        subtract_weight: How much of them.
        compat: `"comfy-ipadapter-plus"` leaves out a UNet's middle block, as that program has done since 2024-09, to
            make again what was made with it.
        structure: For FaceID-Plus version 2: how strongly the face's picture counts beside the identity (`s_scale`).

    Raises:
        PromptError: A value makes no sense; the message names the field.
    """

    image: ImageSource | Sequence[ImageSource] | None = None
    _: KW_ONLY
    features: Tensor | None = None
    weight: float = 1.0
    mask: Mask | Sequence[Mask] | None = None
    start: float = 0.0
    end: float = 1.0
    fit: Framing = "crop"
    adapter: int = 0
    blocks: BlockWeights | None = None
    second_weight: float | None = None
    unit: Unit = "steps"
    curve: Curve = "constant"
    combine: Combine = "concat"
    image_weights: Sequence[float] | None = None
    negative: ImageSource | Noise | None = None
    feather: float = 0.0
    focus: tuple[float, float] = (0.5, 0.5)
    detail: int = 1
    detail_weight: float = 0.5
    attention: AttentionMode = "values"
    origin: FeatureOrigin | None = None
    face: FaceChoice | None = None
    crop_features: Tensor | None = None
    structure: float = 1.0
    subtract: str | None = None
    subtract_weight: float = 1.0
    compat: Compat | None = None

    def __post_init__(self) -> None:
        if (self.image is None) == (self.features is None):
            given = "neither" if self.image is None else "both"
            raise PromptError(f"An image prompt needs either image or features; got {given}.")
        self._check_images()
        self._check_features()
        self._check_strength()
        check_window(self.start, self.end, self.unit, self.curve)
        self._check_masks()
        self._check_framing()
        self._check_several()
        self._check_joint()
        self._check_face()
        if not is_index(self.adapter):
            raise PromptError(f"adapter must be an attached adapter's number, counted from 0; got {self.adapter!r}.")

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """Every picture of this prompt; none where features were given."""
        if self.image is None:
            return ()
        if isinstance(self.image, _SOURCES):
            return (self.image,)
        return tuple(self.image)

    @property
    def masks(self) -> tuple[Mask, ...]:
        """Every mask; none if it acts everywhere."""
        if self.mask is None:
            return ()
        if isinstance(self.mask, _MASKS):
            return (self.mask,)
        return tuple(self.mask)

    @property
    def has_mask_each(self) -> bool:
        """Whether every picture has a mask of its own."""
        return self.mask is not None and not isinstance(self.mask, _MASKS)

    def _check_images(self) -> None:
        image: Any = self.image
        if image is None or isinstance(image, _SOURCES):
            return
        if not isinstance(image, list | tuple):
            raise PromptError(f"image must be {_WANTED} or a list of them; got {kind_of(image)}.")
        if not image:
            raise PromptError("image is an empty list; give at least one picture, or leave the whole prompt out.")
        for place, item in enumerate(cast(Sequence[object], image)):
            if not isinstance(item, _SOURCES):
                raise PromptError(f"image[{place}] must be {_WANTED}; got {kind_of(item)}.")

    def _check_features(self) -> None:
        features: Any = self.features
        if features is None:
            return
        if not isinstance(features, Tensor):
            raise PromptError(f"features must be a tensor; got {kind_of(features)}.")
        if not 1 <= features.ndim <= 3 or features.numel() == 0:
            raise PromptError(
                "features must have the shape [width], [pictures, width] or [pictures, length, width]; "
                f"got {list(features.shape)}."
            )
        if not bool(features.isfinite().all()):
            raise PromptError("features hold NaN or infinite values; encode the picture again.")

    def _check_strength(self) -> None:
        check_number("weight", self.weight)
        if self.second_weight is not None:
            check_number("second_weight", self.second_weight)
        if self.blocks is not None:
            check_blocks(self.blocks)
        if self.compat is not None and self.compat not in COMPAT:
            raise PromptError(f"compat must be one of {', '.join(map(repr, COMPAT))}; got {self.compat!r}.")
        if self.attention not in ATTENTIONS:
            raise PromptError(f"attention must be one of {', '.join(map(repr, ATTENTIONS))}; got {self.attention!r}.")

    def _check_masks(self) -> None:
        mask: Any = self.mask
        if mask is not None and not isinstance(mask, (*_MASKS, list, tuple)):
            raise PromptError(f"mask must be {_WANTED}, a Box or a Polygon; got {kind_of(mask)}.")
        for place, item in enumerate(cast(Sequence[object], self.masks)):
            if not isinstance(item, _MASKS):
                raise PromptError(f"mask[{place}] must be {_WANTED}, a Box or a Polygon; got {kind_of(item)}.")
        if self.has_mask_each and self.image is not None and len(self.masks) != len(self.images):
            raise PromptError(f"{len(self.masks)} masks for {len(self.images)} pictures; give one for each.")
        check_between("feather", self.feather, 0.0, 1.0)

    def _check_framing(self) -> None:
        if self.fit not in FRAMINGS:
            raise PromptError(f"fit must be one of {', '.join(map(repr, FRAMINGS))}; got {self.fit!r}.")
        if len(cast(Sequence[Any], self.focus)) != 2:
            raise PromptError(f"focus must be a point (x, y) in fractions of the picture; got {self.focus!r}.")
        for value in self.focus:
            check_between("focus", value, 0.0, 1.0)
        if not is_index(self.detail) or not 1 <= self.detail <= MAX_DETAIL:
            raise PromptError(f"detail must be a whole number from 1 to {MAX_DETAIL}; got {self.detail!r}.")
        check_between("detail_weight", self.detail_weight, 0.0, 1.0)
        negative: Any = self.negative
        if negative is not None and not isinstance(negative, (*_SOURCES, Noise)):
            raise PromptError(f"negative must be {_WANTED}, or Noise; got {kind_of(negative)}.")
        if self.features is not None:
            for name, is_for_pictures in (
                ("fit='tile'", self.fit == "tile"),
                ("detail", self.detail > 1 and negative is None),
                ("negative=Noise(...)", isinstance(negative, Noise)),
            ):
                if is_for_pictures:
                    raise PromptError(f"{name} needs a picture to work on; this prompt has features.")

    def _check_several(self) -> None:
        check_combine(self.combine)
        text: Any = self.subtract
        if not isinstance(text, str | None) or text == "":
            raise PromptError(f"subtract must be a text; got {kind_of(text)}.")
        check_number("subtract_weight", self.subtract_weight)
        if self.combine != "concat" and (self.has_mask_each or self.fit == "tile"):
            what = "masks for each picture" if self.has_mask_each else "fit='tile'"
            raise PromptError(
                f"{what} keeps pictures apart, and combine={self.combine!r} makes one of them; choose one."
            )
        weights: Any = self.image_weights
        if weights is None:
            return
        if not isinstance(weights, list | tuple):
            raise PromptError(f"image_weights must be a list with a number for each picture; got {kind_of(weights)}.")
        for place, value in enumerate(cast(Sequence[object], weights)):
            check_number(f"image_weights[{place}]", value)
        if self.image is not None and len(cast(Sequence[object], weights)) != len(self.images):
            raise PromptError(f"{len(self.image_weights or ())} image_weights for {len(self.images)} pictures.")

    def _check_joint(self) -> None:
        least = min(self.weight, self.second_weight or 0.0, *(self.image_weights or ()))
        if self.attention == "joint softmax" and least < 0.0:
            raise PromptError(f"attention='joint softmax' shares attention out, so weights start at 0; got {least!r}.")

    def _check_face(self) -> None:
        face: Any = self.face
        if not (face is None or isinstance(face, Tensor) or face == "largest" or is_index(face)):
            raise PromptError(f"face must be 'largest', a number counted from 0, or an embedding; got {kind_of(face)}.")
        if face is not None and self.image is None:
            raise PromptError("face chooses among the faces of a picture; this prompt has features.")
        crop: Any = self.crop_features
        if crop is not None and (not isinstance(crop, Tensor) or crop.ndim not in (2, 3) or self.features is None):
            raise PromptError(
                "crop_features must be a tensor [length, width] or [pictures, length, width] that goes with features; "
                f"got {kind_of(crop) if not isinstance(crop, Tensor) else list(crop.shape)}."
            )
        check_number("structure", self.structure)
