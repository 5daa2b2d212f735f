"""The adapter: a projector and, for every site, a pair of key and value projections. It knows no pipeline."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprompt.adapter.projectors import build_projector
from imprompt.adapter.sites import find_sites
from imprompt.adapter.spec import AdapterSpec, Family, FeatureSpec, NullImage, ProjectorSpec
from imprompt.core.errors import EncoderMismatch

# (cross_attention_dim, number of sites) -> family; every other UNet is plain "unet".
FAMILIES: dict[tuple[int, int], Family] = {(768, 16): "sd1", (1024, 16): "sd2", (2048, 70): "sdxl"}


class SiteProjection(nn.Module):
    """`W'_k` and `W'_v` of one site (equation 4): image tokens to keys and values, without biases."""

    def __init__(self, token_width: int, width: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(token_width, width, bias=False)
        self.to_v_ip = nn.Linear(token_width, width, bias=False)

    def forward(
        self, tokens: Float[Tensor, "rows tokens token_width"]
    ) -> tuple[Float[Tensor, "rows tokens width"], Float[Tensor, "rows tokens width"]]:
        """Keys and values of the tokens."""
        return self.to_k_ip(tokens), self.to_v_ip(tokens)


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
                str(index): SiteProjection(spec.cross_attention_dim, width)
                for index, width in zip(spec.site_indices, spec.site_widths, strict=True)
            }
        )

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

    def project(self, features: Float[Tensor, "batch *length feature"]) -> Float[Tensor, "batch tokens width"]:
        """Features of an image encoder to image tokens.

        Raises:
            EncoderMismatch: the features are not those that this adapter was trained on.
        """
        need = self.spec.features
        ndim = 2 if need.layer == "image_embeds" else 3
        if features.shape[-1] != need.width or features.ndim != ndim:
            raise EncoderMismatch(
                f"{self.spec.name!r} wants {describe_features(need)}; got features of shape {tuple(features.shape)}, "
                f"width {features.shape[-1]}. Load the image encoder {need.encoder}."
            )
        return self.image_proj(features.to(self.device, self.dtype))

    def keys_values(self, tokens: Float[Tensor, "rows tokens width"]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the tokens at every site, in checkpoint order."""
        return [site(tokens.to(self.device, self.dtype)) for site in self.ip_adapter.values()]

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
    host: nn.Module, projector: ProjectorSpec, features: FeatureSpec, *, null_image: NullImage, name: str
) -> Adapter:
    """A fresh adapter for a host, its keys and values initialised from the host's text keys and values (section 3.2.2).

    Args:
        host: the UNet that it will be attached to.
        projector: shape of the projector; its `width` must be the host's cross-attention width.
        features: what the image encoder delivers.
        null_image: how "no image" is expressed.
        name: the variant's name.

    Raises:
        HostMismatch: the host has no cross-attention.
    """
    sites = find_sites(host)
    width = projector.width
    spec = AdapterSpec(
        name=name,
        family=FAMILIES.get((width, len(sites)), "unet"),
        projector=projector,
        features=features,
        null_image=null_image,
        cross_attention_dim=width,
        site_indices=tuple(site.index for site in sites),
        site_widths=tuple(site.query_width for site in sites),
    )
    adapter = Adapter(spec)
    for site in sites:
        _copy_text_projection(adapter.ip_adapter[str(site.index)], host.get_submodule(site.name))
    return adapter


@torch.no_grad()
def _copy_text_projection(projection: Any, attention: Any) -> None:
    if projection.to_k_ip.weight.shape == attention.to_k.weight.shape:
        projection.to_k_ip.weight.copy_(attention.to_k.weight)
        projection.to_v_ip.weight.copy_(attention.to_v.weight)
