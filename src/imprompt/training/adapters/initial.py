"""The adapter that a run begins with: a new one of a kind, shaped as published ones are, or any that can be loaded."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from imprompt.adapter.adapter import Adapter, new_adapter, token_width
from imprompt.adapter.checkpoint import load_adapter
from imprompt.adapter.families import family_of
from imprompt.adapter.families.unet import attentions
from imprompt.adapter.spec import (
    AdapterSpec,
    FacePlusSpec,
    FeatureSpec,
    LinearSpec,
    LoraSpec,
    MLPSpec,
    NullImage,
    PooledMLPSpec,
    ProjectorSpec,
    ResamplerSpec,
)
from imprompt.core.errors import EncoderMismatch, HostMismatch
from imprompt.encoders.base import EncoderSpec
from imprompt.training.config import AdapterConfig, AdapterKind

# Sizes that all published variants share, and that other programs take for granted.
HEAD_WIDTH = 64
DEPTH = 4
WIDEST = 1280
FACE_WIDTH = 512
LAYER = -2

ARCFACE = "ArcFace (buffalo_l)"


@dataclass(frozen=True)
class Variant:
    """A kind of adapter, as `AdapterConfig.kind` names it.

    Attributes:
        suffix: What its name has behind "ip-adapter".
        num_tokens: As published; None for one a token of the encoder.
        features: What it reads: of the image encoder, or "face_embeds".
        null_image: How "no image" is expressed (section 1.6 of the facts: it must match, or quality changes).
        projector: Shape of its projector, of tokens' width, their number, encoder and configuration.
    """

    suffix: str
    num_tokens: int | None
    features: str
    null_image: NullImage
    projector: Callable[[int, int, EncoderSpec | None, AdapterConfig], ProjectorSpec]

    @property
    def reads_faces(self) -> bool:
        """Whether face networks make its features."""
        return self.features == "face_embeds"


def _linear(width: int, num_tokens: int, encoder: EncoderSpec | None, _: AdapterConfig) -> ProjectorSpec:
    return LinearSpec(feature_width=_known(encoder).projection_dim, num_tokens=num_tokens, width=width)


def _resampler(width: int, num_tokens: int, encoder: EncoderSpec | None, config: AdapterConfig) -> ProjectorSpec:
    inner = config.inner_width or min(WIDEST, max(HEAD_WIDTH, width - width % HEAD_WIDTH))
    return ResamplerSpec(
        feature_width=_known(encoder).width,
        inner_width=inner,
        depth=DEPTH,
        num_heads=max(1, inner // HEAD_WIDTH),
        head_width=HEAD_WIDTH,
        num_tokens=num_tokens,
        width=width,
    )


def _mlp(width: int, num_tokens: int, encoder: EncoderSpec | None, _: AdapterConfig) -> ProjectorSpec:
    read = _known(encoder).width
    return MLPSpec(feature_width=read, hidden_width=read, num_tokens=num_tokens, width=width)


def _face(width: int, num_tokens: int, _encoder: EncoderSpec | None, _: AdapterConfig) -> ProjectorSpec:
    return PooledMLPSpec(feature_width=FACE_WIDTH, hidden_width=2 * FACE_WIDTH, num_tokens=num_tokens, width=width)


def _face_plus(width: int, num_tokens: int, encoder: EncoderSpec | None, _: AdapterConfig) -> ProjectorSpec:
    return FacePlusSpec(
        feature_width=FACE_WIDTH,
        hidden_width=2 * FACE_WIDTH,
        crop_width=_known(encoder).width,
        depth=DEPTH,
        head_width=min(HEAD_WIDTH, width),
        num_tokens=num_tokens,
        width=width,
    )


VARIANTS: dict[AdapterKind, Variant] = {
    "global": Variant("", 4, "image_embeds", "zero_features", _linear),
    "plus": Variant("-plus", 16, "hidden_states", "zero_pixels", _resampler),
    "full": Variant("-full", None, "hidden_states", "zero_pixels", _mlp),
    "faceid": Variant("-faceid", 4, "face_embeds", "zero_features", _face),
    "faceid-plus": Variant("-faceid-plusv2", 4, "face_embeds", "zero_features", _face_plus),
}


def initial_adapter(config: AdapterConfig, host: nn.Module, encoder: EncoderSpec | None, recipe: str) -> Adapter:
    """The adapter to train, in single precision, all of it trainable.

    Args:
        config: What is trained.
        host: The denoiser.
        encoder: The image encoder; None where only faces are read.
        recipe: Name of the base in the adapter's name.

    Raises:
        CheckpointError: The adapter to go on from cannot be read.
        HostMismatch: It is for another base, or the host is of no family.
        EncoderMismatch: The kind reads an image encoder, and there is none.
    """
    if config.initial is not None:
        adapter = load_adapter(config.initial, dtype=torch.float32)
        _check_base(adapter.spec, host)
    else:
        adapter = fresh_adapter(config, host, encoder, recipe)
    return adapter.train().requires_grad_(True)


def fresh_adapter(config: AdapterConfig, host: nn.Module, encoder: EncoderSpec | None, recipe: str) -> Adapter:
    """A new adapter, keys and values copied from the text's where the host's have the tokens' width."""
    variant = VARIANTS[config.kind]
    width = token_width(host)
    num_tokens = config.num_tokens or variant.num_tokens or _known(encoder).num_tokens
    adapter = new_adapter(
        host,
        variant.projector(width, num_tokens, encoder, config),
        _features(variant, encoder),
        null_image=variant.null_image,
        name=config.name or f"ip-adapter{variant.suffix}_{recipe}",
    )
    return _with_face_parts(adapter, variant, host, encoder, config) if variant.reads_faces else adapter


def _features(variant: Variant, encoder: EncoderSpec | None) -> FeatureSpec:
    if variant.reads_faces:
        return FeatureSpec(layer="face_embeds", width=FACE_WIDTH, encoder=ARCFACE)
    return image_features(variant.features, _known(encoder))


def image_features(layer: Any, encoder: EncoderSpec) -> FeatureSpec:
    """Features of an image encoder, as published adapters read them."""
    index = LAYER if layer == "hidden_states" else None
    return FeatureSpec(layer=layer, index=index, width=encoder.feature_width(layer), encoder=encoder.name)


def _with_face_parts(
    adapter: Adapter, variant: Variant, host: nn.Module, encoder: EncoderSpec | None, config: AdapterConfig
) -> Adapter:
    """The same adapter with what only FaceID has: the aligned face's features, and a low-rank change of the host."""
    reads_crop = isinstance(adapter.spec.projector, FacePlusSpec)
    crop = image_features("hidden_states", _known(encoder)) if reads_crop else None
    spec = replace(adapter.spec, face_crop=crop, lora=_lora(host, config.lora_rank))
    made = Adapter(spec)
    made.load_state_dict(adapter.state_dict(), strict=False)
    for name, weight in made.named_parameters():
        if "_lora." in name:
            _start_lora(name, weight, config.lora_rank)
    return made


def _lora(host: nn.Module, rank: int) -> LoraSpec | None:
    """The change of every attention of a UNet; other families have none."""
    if not rank or family_of(host).lora_names is None:
        return None
    places: list[Any] = [module for _, module in attentions(host)]
    return LoraSpec(
        rank=rank,
        indices=tuple(range(len(places))),
        widths=tuple(module.to_q.out_features for module in places),
        key_widths=tuple(module.to_k.in_features for module in places),
    )


def _start_lora(name: str, weight: nn.Parameter, rank: int) -> None:
    """As diffusers' `LoRALinearLayer` starts: no change at first."""
    if name.endswith("up.weight"):
        nn.init.zeros_(weight)
    else:
        nn.init.normal_(weight, std=1 / rank)


def _check_base(spec: AdapterSpec, host: nn.Module) -> None:
    from imprompt.adapter.families import family_named

    if not family_named(spec.family).fits(host):
        raise HostMismatch(
            f"'{spec.name}' is for {family_named(spec.family).title}, the base is a {type(host).__name__}; start from "
            "an adapter of this base, or without one (adapter.initial=none)"
        )


def _known(encoder: EncoderSpec | None) -> EncoderSpec:
    if encoder is None:
        raise EncoderMismatch(
            "the base has no image encoder of its own; name one, as adapter.image_encoder=h94/IP-Adapter/models/"
            "image_encoder"
        )
    return encoder
