"""The adapter: a projector and, for every site, a pair of key and value projections. It knows no pipeline."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprompt.adapter.families import Family, family_named, family_of
from imprompt.adapter.key_values import build_key_values
from imprompt.adapter.lora import add_lora
from imprompt.adapter.projectors import build_projector
from imprompt.adapter.sites import Site, submodule
from imprompt.adapter.spec import (
    AdapterSpec,
    FacePlusSpec,
    FeatureSpec,
    KeyValueSpec,
    LinearKVSpec,
    NullImage,
    ProjectorSpec,
)
from imprompt.core.errors import EncoderMismatch


class Adapter(nn.Module):
    """An image prompt adapter. Its `state_dict` has the keys of the published files.

    Attributes:
        spec: what it is.
        source: the file it was loaded from, if it was.
    """

    source: Path | None = None

    def __init__(self, spec: AdapterSpec) -> None:
        super().__init__()
        self.spec = spec
        self.image_proj = build_projector(spec.projector)
        self.ip_adapter = nn.ModuleDict(
            {
                str(index): build_key_values(spec.key_values, spec.cross_attention_dim, width)
                for index, width in zip(spec.site_indices, spec.site_widths, strict=True)
            }
        )
        if spec.lora is not None:
            _add_lora(self.ip_adapter, spec)

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def dtype(self) -> torch.dtype:
        """Number format of its weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    @property
    def sites(self) -> list[Any]:
        """What makes keys and values, in checkpoint order."""
        return [self.ip_adapter[str(index)] for index in self.spec.site_indices]

    def project(
        self,
        features: Float[Tensor, "batch *length feature"],
        *,
        crop: Float[Tensor, "batch crop_length crop_feature"] | None = None,
        structure: float = 1.0,
    ) -> Float[Tensor, "batch tokens width"]:
        """Features of an image encoder to image tokens.

        Where the tokens depend on the timestep (`spec.is_timed`) the features are checked and given back: they become
        tokens at every step.

        Args:
            features: what `spec.features` says.
            crop: what `spec.face_crop` says, where the projector reads that too.
            structure: how strongly the crop counts beside the face embedding (FaceID-Plus version 2).

        Raises:
            EncoderMismatch: the features are not those that this adapter was trained on.
        """
        spec = self.spec
        self._check(features, spec.features)
        features = features.to(self.device, self.dtype)
        if spec.is_timed:
            return features
        if not isinstance(spec.projector, FacePlusSpec) or spec.face_crop is None:
            return self.image_proj(features)
        if crop is None:
            raise EncoderMismatch(
                f"{spec.name!r} reads, beside the face embedding, {describe_features(spec.face_crop)} of the aligned "
                "face; give both"
            )
        self._check(crop, spec.face_crop)
        return self.image_proj(features, crop.to(self.device, self.dtype), structure)

    def _check(self, features: Tensor, need: FeatureSpec) -> None:
        if features.shape[-1] != need.width or features.ndim != (3 if need.is_sequence else 2):
            raise EncoderMismatch(
                f"{self.spec.name!r} wants {describe_features(need)}; got features of shape {tuple(features.shape)}, "
                f"width {features.shape[-1]}. Load the image encoder {need.encoder}."
            )

    def keys_values(self, tokens: Float[Tensor, "rows tokens width"]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the tokens at every site, in checkpoint order."""
        return [site(tokens.to(self.device, self.dtype)) for site in self.sites]

    def timed_keys_values(
        self, features: Float[Tensor, "rows length feature"], timestep: Tensor, mask: Tensor | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Keys and values at every site, where they depend on a timestep [rows]; a mask tells real features."""
        tokens, time = self.image_proj(features.to(self.device, self.dtype), timestep.to(self.device), mask)
        return [site(tokens, time) for site in self.sites]

    def extra_repr(self) -> str:
        """The variant in one line."""
        spec = self.spec
        return (
            f"{spec.name!r}, family={spec.family}, {len(spec.site_indices)} sites, {spec.num_tokens} tokens of "
            f"{spec.cross_attention_dim}, wants {describe_features(spec.features)}, {self.num_parameters:,} parameters"
        )


def describe_features(features: FeatureSpec) -> str:
    """What an adapter reads, in words: `features of width 1280 (OpenCLIP ViT-H/14, hidden_states[-2])`."""
    layer = features.layer if features.index is None else f"{features.layer}[{features.index}]"
    return f"features of width {features.width} ({features.encoder}, {layer})"


def new_adapter(
    host: nn.Module,
    projector: ProjectorSpec,
    features: FeatureSpec,
    *,
    null_image: NullImage,
    name: str,
    family: str | None = None,
    key_values: KeyValueSpec | None = None,
) -> Adapter:
    """A fresh adapter for a host, its keys and values initialised from the host's text keys and values (section 3.2.2).

    Args:
        host: the denoiser that it will be attached to.
        projector: shape of the projector; its `width` is that of the tokens, best what `token_width` says of the host.
        features: what the image encoder delivers.
        null_image: how "no image" is expressed.
        name: the variant's name.
        family: how it acts on the host; by default the host's own family.
        key_values: how keys and values are made; by default one linear layer each.

    Raises:
        HostMismatch: the host is of no family that imprompt knows.
    """
    host = getattr(host, "_orig_mod", host)  # as it was before anybody compiled it
    kind: Family = family_of(host) if family is None else family_named(family)
    sites = kind.sites(host)
    spec = AdapterSpec(
        name=name,
        family=kind.name,
        projector=projector,
        features=features,
        null_image=null_image,
        cross_attention_dim=projector.width,
        site_indices=tuple(site.index for site in sites),
        site_widths=tuple(site.query_width for site in sites),
        key_values=LinearKVSpec() if key_values is None else key_values,
    )
    adapter = Adapter(spec)
    if isinstance(spec.key_values, LinearKVSpec):
        for site, made in zip(sites, adapter.sites, strict=True):
            _copy_text_projection(made, host, site)
    return adapter


def token_width(host: nn.Module, family: str | None = None) -> int:
    """Width of the tokens that a host's own attentions take: the projector's `width` with which keys and values start
    from the text's.

    Raises:
        HostMismatch: the host is of no family that imprompt knows.
    """
    host = getattr(host, "_orig_mod", host)
    return (family_of(host) if family is None else family_named(family)).sites(host)[0].key_width


@torch.no_grad()
def _copy_text_projection(made: Any, host: nn.Module, site: Site) -> None:
    parent, _, keys = site.text_keys.rpartition(".")
    values = keys.replace("key", "value") if "key" in keys else keys.replace("k", "v")
    names = (keys, values) if site.fused_at is None else (keys, keys)
    for number, (name, fresh) in enumerate(zip(names, (made.to_k_ip, made.to_v_ip), strict=True)):
        text: Any = submodule(host, f"{parent}.{name}")
        if text is not None and text.weight.shape[1] == fresh.weight.shape[1]:
            fresh.weight.copy_(_weight_for(site, text.weight, number))


def _weight_for(site: Site, weight: Tensor, number: int) -> Tensor:
    """What makes the text's keys (0) or values (1), for every head of the queries.

    A layer may make queries, keys and values at once; and each of its heads may serve several neighbours.
    """
    if site.fused_at is not None:
        weight = weight[(site.fused_at + number) * site.query_width :][: site.query_width]
    heads = weight.unflatten(0, (-1, site.query_width // site.num_heads))
    return heads.repeat_interleave(site.num_heads // len(heads), dim=0).flatten(0, 1)


def _add_lora(parts: nn.ModuleDict, spec: AdapterSpec) -> None:
    assert spec.lora is not None
    for index, width, key_width in zip(spec.lora.indices, spec.lora.widths, spec.lora.key_widths, strict=True):
        if str(index) not in parts:
            parts[str(index)] = nn.Module()
        add_lora(parts[str(index)], rank=spec.lora.rank, width=width, key_width=key_width)
