"""The features of adapters that read faces: whose face it is and, for FaceID-Plus, the aligned picture of it.

Several pictures in one prompt are as many groups of tokens in one softmax, as the Portrait adapters were trained with;
one person's average is `ImagePrompt(features=faces.identity(pictures))`.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imprompt.adapter.adapter import describe_features
from imprompt.adapter.spec import AdapterSpec
from imprompt.core.errors import EncoderMismatch, FaceError
from imprompt.core.images import Fit
from imprompt.encoders.base import ImageEncoder
from imprompt.encoders.cache import CachedEncoder, FeatureCache
from imprompt.encoders.face import FaceChoice, FaceEncoder
from imprompt.generation.features import EncoderFeatures, Loader, check_encoder

CELL = 112  # faces are aligned at multiples of this many pixels


class FaceFeatures:
    """The features that one adapter of faces reads.

    Whether embeddings have unit length is the adapter's say: it was trained with one of the two.
    """

    def __init__(
        self,
        spec: AdapterSpec,
        faces: FaceEncoder | None,
        crop_encoder: ImageEncoder | None,
        load: Loader,
        cache: FeatureCache,
    ) -> None:
        """Bind an adapter to a face encoder and, where it reads the face's picture too, to an image encoder.

        Args:
            spec: what the adapter reads.
            faces: what finds and embeds faces; None if only prompts with features will come.
            crop_encoder: what reads the aligned faces; None to load the published one when it is needed.
            load: how to load that.
            cache: where embeddings are kept.

        Raises:
            EncoderMismatch: one of them makes other features than the adapter reads.
        """
        self.spec = spec
        self._faces = None if faces is None else _of_length(faces, normalised=spec.features.normalised)
        if self._faces is not None:
            check_encoder(spec, self._faces.spec)
        self._crops = None
        if spec.face_crop is not None:
            crop_spec = replace(spec, features=spec.face_crop, face_crop=None)
            self._crops = EncoderFeatures(crop_spec, crop_encoder, load)
        self._cache = cache

    @property
    def encoders(self) -> tuple[ImageEncoder, ...]:
        """Those at hand."""
        return (*([self._faces] if self._faces else []), *(self._crops.encoders if self._crops else ()))

    def load_encoders(self) -> None:
        """Have the face encoder at hand, and that of crops where there is one.

        Raises:
            EncoderMismatch: there is no face encoder, or no published one of crops fits.
        """
        self._encoder()
        if self._crops is not None:
            self._crops.encoder_at_hand()

    def choosing(self, choice: FaceChoice | None) -> "FaceFeatures":
        """The same with another face of every picture; itself if None."""
        if choice is None:
            return self
        chosen = copy.copy(self)
        chosen._faces = self._encoder().choosing(choice)
        return chosen

    def features(self, images: Sequence[Image.Image], fit: Fit = "crop") -> Float[Tensor, "images width"]:
        """Embeddings of the chosen face of each picture.

        Raises:
            FaceError: a picture does not show it; the message names the picture.
        """
        faces = self._encoder()
        try:
            return CachedEncoder(faces, self._cache).encode(images, layer="face_embeds", fit="crop")
        except FaceError:
            faces.crops(images, CELL)  # where some came from the cache, this names the one among all
            raise

    def null_features(self) -> Float[Tensor, "1 width"]:
        """What FaceID adapters were trained with where there was no face."""
        return self._encoder().encode_null()

    def crop_features(self, images: Sequence[Image.Image]) -> Float[Tensor, "images length width"]:
        """What the image encoder makes of the aligned faces, at the size that it looks at."""
        assert self._crops is not None
        size = self._crops.encoder_at_hand().spec.image_size
        return self._crops.features(self._encoder().crops(images, crop_size(size)), "crop")

    def null_crop_features(self) -> Float[Tensor, "1 length width"]:
        """What the image encoder makes of no picture."""
        assert self._crops is not None
        return self._crops.null_features()

    def _encoder(self) -> FaceEncoder:
        if self._faces is None:
            raise EncoderMismatch(
                f"{self.spec.name!r} wants {describe_features(self.spec.features)} of the faces in its pictures, and "
                "there is no face encoder; pass face_encoder=FaceEncoder.from_folder(...) to attach, or features="
            )
        return self._faces


def crop_size(image_size: int) -> int:
    """Side of the aligned face for an encoder: 224 as in training, 336 for encoders that look at as many pixels."""
    return max(2, -(-image_size // CELL)) * CELL


def check_face_encoders(given: Sequence[FaceEncoder | None], specs: Sequence[AdapterSpec]) -> None:
    """Refuse face encoders that no adapter asked for.

    Raises:
        EncoderMismatch: their number is not that of the adapters, or no adapter reads faces.
    """
    if len(given) != len(specs):
        raise EncoderMismatch(
            f"{len(given)} face encoders for {len(specs)} adapters; pass one for all, or one for each"
        )
    if any(given) and not any(spec.features.layer == "face_embeds" for spec in specs):
        names = ", ".join(repr(spec.name) for spec in specs)
        raise EncoderMismatch(f"face_encoder= was given, and {names} reads no faces; leave it out")


def face_encoder_of(spec: AdapterSpec, given: Any, image_encoder: ImageEncoder | None, *, is_own: bool) -> Any:
    """The face encoder of an adapter that reads faces, and the image encoder that is left for its crops.

    Args:
        spec: what the adapter reads.
        given: the face encoder that was given, or None.
        image_encoder: the image encoder that was given or found, which may itself be a face encoder.
        is_own: whether it is the pipeline's own, which nobody meant for faces.

    Returns:
        The face encoder and the image encoder, None for what is not there.

    Raises:
        EncoderMismatch: an encoder of the wrong kind was given.
    """
    if isinstance(image_encoder, FaceEncoder):
        given, image_encoder = given or image_encoder, None
    if given is not None and not isinstance(given, FaceEncoder):
        raise EncoderMismatch(f"{type(given).__name__} is no face encoder; pass an imprompt.encoders.face.FaceEncoder")
    if given is None and image_encoder is not None and spec.face_crop is None and not is_own:
        raise EncoderMismatch(
            f"{spec.name!r} wants {describe_features(spec.features)}; the image encoder given is "
            f"{image_encoder.spec.name}, which makes none of faces. Pass face_encoder=FaceEncoder.from_folder(...)."
        )
    return given, image_encoder if spec.face_crop is not None else None


def _of_length(encoder: FaceEncoder, *, normalised: bool) -> FaceEncoder:
    if encoder.normalised == normalised:
        return encoder
    choice: Any = encoder.choice
    return FaceEncoder(encoder.detector, encoder.embedder, choice=choice, normalised=normalised, device=encoder.device)
