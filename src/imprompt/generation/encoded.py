"""Prompts whose pictures have been encoded: for arithmetic with features, and for files."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from imprompt.adapter.adapter import Adapter
from imprompt.core.errors import EncoderMismatch, PromptError
from imprompt.core.images import load_image
from imprompt.encoders.base import ImageEncoder
from imprompt.generation.resolve import FeatureSource, column_crops, column_features
from imprompt.prompts.image_prompt import FeatureOrigin, ImagePrompt
from imprompt.prompts.noise import Noise, noisy

# What is done to pictures before they are encoded; features have it behind them, a negative picture has not.
_FRAMING: dict[str, Any] = {"fit": "crop", "focus": (0.5, 0.5), "detail": 1, "detail_weight": 0.5}


def encode_prompt(prompt: ImagePrompt, adapter: Adapter, source: FeatureSource) -> ImagePrompt:
    """A prompt with features in place of its pictures; see `PipelineAttachment.encode`."""
    if prompt.features is not None:
        raise PromptError("this prompt has features already; encode one with pictures.")
    if prompt.fit == "tile":
        raise PromptError("fit='tile' shows several pictures in several places; encode each with fit='crop'.")
    if isinstance(prompt.negative, Noise) and len(prompt.images) > 1:
        raise PromptError("negative noise is made of each picture; encode the pictures one by one.")
    (features,) = column_features([prompt], adapter, source)
    (crops,) = column_crops([prompt], adapter, source)
    assert features is not None
    negative = prompt.negative
    if isinstance(negative, Noise):
        negative = noisy(load_image(next(iter(prompt.images))), negative)
    return replace(
        prompt,
        image=None,
        features=features.cpu(),
        crop_features=None if crops is None else crops.cpu(),
        negative=negative,
        origin=_origin(adapter, source),
        face=None,
        **(_FRAMING if negative is None else {}),
    )


def _origin(adapter: Adapter, source: FeatureSource) -> FeatureOrigin:
    wanted = adapter.spec.features
    encoders: Sequence[ImageEncoder] = list(getattr(source, "encoders", ()))
    if not encoders:
        raise EncoderMismatch(f"{adapter.spec.name!r} has no encoder attached that could say who made its features")
    spec = next(iter(encoders)).spec
    return FeatureOrigin(encoder=spec.name, fingerprint=spec.fingerprint, layer=wanted.layer, index=wanted.index)
