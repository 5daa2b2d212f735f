"""Which image encoder makes an adapter's features: the one given, the pipeline's, or the published one it names."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from imprompt.adapter.adapter import describe_features
from imprompt.adapter.spec import AdapterSpec
from imprompt.core.errors import EncoderMismatch
from imprompt.core.images import Fit
from imprompt.encoders.base import EncoderSpec, ImageEncoder, Layer
from imprompt.encoders.cache import CachedEncoder, FeatureCache
from imprompt.encoders.face_known import KNOWN_FACE_MODELS
from imprompt.encoders.kinds import KINDS, kind_of_model
from imprompt.encoders.known import KnownEncoder, encoders_of_width, known_encoder
from imprompt.encoders.vision import VisionEncoder

logger = logging.getLogger(__name__)

# An encoder, a vision tower of transformers, or the folder or hub folder of one.
EncoderSource: TypeAlias = ImageEncoder | nn.Module | str | Path

# How an attachment loads an encoder from its folder.
Loader: TypeAlias = Callable[[str | Path], ImageEncoder]


class OffloadedEncoder:
    """An encoder that is on the device only while it works."""

    def __init__(self, encoder: VisionEncoder, device: torch.device) -> None:
        self.encoder = encoder
        self.device = device

    @property
    def spec(self) -> EncoderSpec:
        """What it is."""
        return self.encoder.spec

    def encode(self, images: Sequence[Image.Image], *, layer: Layer, index: int = -2, fit: Fit = "crop") -> Tensor:
        """Features of pictures; see `ImageEncoder.encode`."""
        with self._visiting():
            return self.encoder.encode(images, layer=layer, index=index, fit=fit)

    def encode_null(self, *, layer: Layer, index: int = -2) -> Tensor:
        """Features of no picture; see `ImageEncoder.encode_null`."""
        with self._visiting():
            return self.encoder.encode_null(layer=layer, index=index)

    @contextmanager
    def _visiting(self) -> Iterator[None]:
        model = cast(nn.Module, self.encoder.model)
        model.to(self.device)
        try:
            yield
        finally:
            model.to("cpu")


class EncoderFeatures:
    """The features that one adapter reads.

    The encoder that a pipeline or a user supplies is checked at once; a published one is loaded when a picture first
    needs it, so that prompts which bring features of their own never download anything.
    """

    def __init__(self, spec: AdapterSpec, encoder: ImageEncoder | None, load: Loader) -> None:
        """Bind an adapter to an encoder.

        Args:
            spec: what the adapter reads.
            encoder: the encoder at hand; None to load the published one when it is needed.
            load: how to load that from its hub folder.

        Raises:
            EncoderMismatch: the encoder at hand makes other features than the adapter reads.
        """
        self.spec = spec
        self.encoder = encoder
        self._load = load
        if encoder is not None and spec.features.layer != "tokens":
            check_encoder(spec, encoder.spec)

    @property
    def encoders(self) -> tuple[ImageEncoder, ...]:
        """The encoder, if it is at hand."""
        return () if self.encoder is None else (self.encoder,)

    def load_encoders(self) -> None:
        """Have the encoder at hand; see `encoder_at_hand`."""
        self.encoder_at_hand()

    def features(self, images: Sequence[Image.Image], fit: Fit) -> Float[Tensor, "images *length feature"]:
        """Features of pictures."""
        layer, index = encoder_layer(self.spec), _index(self.spec.features.index)
        return self.encoder_at_hand().encode(images, layer=layer, index=index, fit=fit)

    def null_features(self) -> Float[Tensor, "1 *length feature"]:
        """Features of pixels that are zero after normalisation."""
        layer, index = encoder_layer(self.spec), _index(self.spec.features.index)
        return self.encoder_at_hand().encode_null(layer=layer, index=index)

    def encoder_at_hand(self) -> ImageEncoder:
        """The encoder, loaded now if it was not there.

        Raises:
            EncoderMismatch: there is none, and no published one fits.
        """
        if self.encoder is None:
            known = _published(self.spec)
            if known is None:
                raise EncoderMismatch(
                    f"{self.spec.name!r} wants {describe_features(self.spec.features)} for its pictures or its null "
                    "image, and the pipeline has no image encoder; pass image_encoder= to attach"
                )
            logger.info("loading the image encoder %s from %s", known.name, known.address)
            encoder = self._load(known.address)
            check_encoder(self.spec, encoder.spec)
            self.encoder = encoder
        return self.encoder


def encoder_layer(adapter: AdapterSpec) -> Layer:
    """The layer that an adapter wants of its encoder.

    Raises:
        EncoderMismatch: it reads tokens, which none makes.
    """
    layer = adapter.features.layer
    if layer == "tokens":
        raise EncoderMismatch(
            f"{adapter.name!r} reads {describe_features(adapter.features)}, which no image encoder here makes; give "
            "the tokens as ImagePrompt(features=...)"
        )
    return layer


def check_encoder(adapter: AdapterSpec, encoder: EncoderSpec) -> None:
    """Refuse an encoder whose features the adapter cannot read, before a matrix does it less kindly.

    Raises:
        EncoderMismatch: another kind, another width, or too few layers.
    """
    wanted, layer = adapter.features, encoder_layer(adapter)
    known, argument = _published(adapter), "face_encoder" if layer == "face_embeds" else "image_encoder"
    remedy = f"Pass image_encoder={known.address!r}" if known else f"Pass {argument}= with {wanted.encoder}"
    if (encoder.kind == "face") != (layer == "face_embeds"):
        raise EncoderMismatch(
            f"{adapter.name!r} wants {describe_features(wanted)}; the encoder given is {encoder.name}, which makes "
            f"{'embeddings of faces' if encoder.kind == 'face' else 'none of faces'} only. {remedy}."
        )
    width = encoder.feature_width(layer)
    if width != wanted.width:
        raise EncoderMismatch(
            f"{adapter.name!r} wants {describe_features(wanted)}; the image encoder makes {width}, which is "
            f"{encoder.name}. {remedy}."
        )
    index = _index(wanted.index)
    if wanted.layer == "hidden_states" and not -encoder.num_layers - 1 <= index <= encoder.num_layers:
        raise EncoderMismatch(
            f"{adapter.name!r} wants {describe_features(wanted)}; {encoder.name} has {encoder.num_layers} layers. "
            f"{remedy}."
        )
    if layer == "face_embeds":
        _warn_of_other_faces(adapter, encoder)
    if known and known_encoder(encoder.name) and encoder.name != known.name:
        logger.warning(
            "%r was trained on %s; %s has the same width but makes other features",
            adapter.name,
            known.name,
            encoder.name,
        )


def _warn_of_other_faces(adapter: AdapterSpec, encoder: EncoderSpec) -> None:
    names = {model.name for model in KNOWN_FACE_MODELS}
    if {encoder.name, adapter.features.encoder} <= names and encoder.name != adapter.features.encoder:
        logger.warning(
            "%r was trained on %s; %s has the same width but tells faces apart by other numbers",
            adapter.name,
            adapter.features.encoder,
            encoder.name,
        )


def find_encoders(
    given: EncoderSource | Sequence[EncoderSource | None] | None,
    pipe: Any,
    adapters: int,
    load: Loader,
) -> list[ImageEncoder | None]:
    """The encoder of every adapter, as far as it is at hand: the one given, else the pipeline's, else None.

    Args:
        given: one for all adapters, or one for each.
        pipe: the pipeline, which may have an `image_encoder`; None for a bare denoiser.
        adapters: how many adapters there are.
        load: how to load an encoder from its folder.

    Raises:
        EncoderMismatch: the number of encoders is not that of the adapters, or something is no image encoder.
    """
    several = isinstance(given, list | tuple)
    sources: Sequence[EncoderSource | None] = given if several else [given] * adapters  # pyright: ignore[reportAssignmentType]
    if len(sources) != adapters:
        raise EncoderMismatch(
            f"{len(sources)} image encoders for {adapters} adapters; pass one for all, or one for each"
        )
    own = getattr(pipe, "image_encoder", None)
    made: dict[int, ImageEncoder | None] = {}
    for source in sources:
        if id(source) not in made:
            # The pipeline's processor is for the pipeline's own encoder; any other one has what its kind wants.
            is_own = source is None or source is own
            processor = getattr(pipe, "feature_extractor", None) if is_own else None
            made[id(source)] = _encoder(own if source is None else source, processor, load)
    return [made[id(source)] for source in sources]


def cached(encoder: ImageEncoder, cache: FeatureCache) -> ImageEncoder:
    """The encoder behind a cache, if it is not behind one already."""
    return encoder if isinstance(encoder, CachedEncoder) else CachedEncoder(encoder, cache)


def _encoder(source: EncoderSource | None, processor: Any, load: Loader) -> ImageEncoder | None:
    if source is None:
        return None
    if isinstance(source, str | Path):
        return load(source)
    if isinstance(source, ImageEncoder):
        return source
    if isinstance(source, nn.Module) and kind_of_model(source) is not None:
        return VisionEncoder(source, processor)
    raise EncoderMismatch(
        f"{type(source).__name__} is no image encoder that imprompt knows; pass a "
        f"{', '.join(kind.model_class for kind in KINDS)}, its folder, or an object with the methods of "
        "imprompt.encoders.base.ImageEncoder"
    )


def load_encoder(source: str | Path, *, dtype: torch.dtype, device: torch.device, offload: bool) -> ImageEncoder:
    """Load an encoder from a folder, here or on the hub; with `offload`, it visits the device only to work."""
    if offload:
        return OffloadedEncoder(VisionEncoder.from_folder(source, dtype=dtype), device)
    return VisionEncoder.from_folder(source, dtype=dtype, device=device)


def _published(spec: AdapterSpec) -> KnownEncoder | None:
    """The published encoder that an adapter names, or the only one that has its width."""
    if spec.features.layer not in ("image_embeds", "hidden_states"):
        return None
    named = known_encoder(spec.features.encoder)
    fitting = encoders_of_width(spec.features.width, spec.features.layer)
    return named or (fitting[0] if len(fitting) == 1 else None)


def _index(index: int | None) -> int:
    return -2 if index is None else index
