"""Projectors: image features to image tokens. Parameter names are those of the published checkpoints.

Structure after tencent-ailab/IP-Adapter at 62e4af9 (`ip_adapter/ip_adapter.py`, `ip_adapter/resampler.py`,
`ip_adapter/ip_adapter_faceid.py`); that of the resampler with a timestep after diffusers 0.42
(`models/embeddings.py`, `IPAdapterTimeImageProjection`).
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from imprompt.adapter.attention import merge_heads, split_heads
from imprompt.adapter.spec import (
    FacePlusSpec,
    LinearSpec,
    MLPSpec,
    PooledMLPSpec,
    ProjectorSpec,
    ResamplerSpec,
    TimeResamplerSpec,
    TokensSpec,
)


class LinearProjector(nn.Module):
    """One linear layer, cut into tokens, then a LayerNorm: the paper's global adapter (section 3.2.1)."""

    def __init__(self, spec: LinearSpec) -> None:
        super().__init__()
        self.num_tokens = spec.num_tokens
        self.proj = nn.Linear(spec.feature_width, spec.num_tokens * spec.width)
        self.norm = nn.LayerNorm(spec.width)

    def forward(self, features: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch tokens width"]:
        """Project pooled features."""
        return self.norm(self.proj(features).unflatten(-1, (self.num_tokens, -1)))


class MLPProjector(nn.Module):
    """The same two-layer MLP for every feature token: the "full" adapter."""

    def __init__(self, spec: MLPSpec) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Linear(spec.feature_width, spec.hidden_width),
            nn.GELU(),
            nn.Linear(spec.hidden_width, spec.width),
            nn.LayerNorm(spec.width),
        )

    def forward(self, features: Float[Tensor, "batch tokens feature"]) -> Float[Tensor, "batch tokens width"]:
        """Project feature tokens one by one."""
        return self.proj(features)


class PerceiverAttention(nn.Module):
    """Learned latents attend to the features and to themselves, in one softmax."""

    def __init__(self, *, width: int, num_heads: int, head_width: int) -> None:
        super().__init__()
        inner = num_heads * head_width
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(
        self,
        features: Float[Tensor, "batch length width"],
        latents: Float[Tensor, "batch tokens width"],
        shift: Float[Tensor, "batch 1 width"] | float = 0.0,
        scale: Float[Tensor, "batch 1 width"] | float = 0.0,
        mask: Bool[Tensor, "batch 1 1 length"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """One cross-attention, without the residual.

        The normalised latents may be shifted and scaled by a timestep; a mask tells which features are real.
        """
        latents = _modulate(self.norm2(latents), shift, scale)
        query = self.to_q(latents)
        keys, values = self.to_kv(torch.cat([self.norm1(features), latents], dim=1)).chunk(2, dim=-1)
        query, keys, values = (split_heads(x, self.num_heads) for x in (query, keys, values))
        if mask is not None:
            mask = functional.pad(mask, (0, latents.shape[1]), value=True)
        return self.to_out(merge_heads(functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)))


def _modulate(x: Tensor, shift: Tensor | float, scale: Tensor | float) -> Tensor:
    return x if isinstance(shift, float) else x * (1 + scale) + shift


def feed_forward(width: int, mlp_ratio: int) -> nn.Sequential:
    """LayerNorm, widen, GELU, narrow; without biases in the linear layers."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, width * mlp_ratio, bias=False),
        nn.GELU(),
        nn.Linear(width * mlp_ratio, width, bias=False),
    )


def perceiver_layers(*, width: int, depth: int, num_heads: int, head_width: int, mlp_ratio: int) -> nn.ModuleList:
    """Pairs of an attention and an MLP."""
    return nn.ModuleList(
        nn.ModuleList(
            [
                PerceiverAttention(width=width, num_heads=num_heads, head_width=head_width),
                feed_forward(width, mlp_ratio),
            ]
        )
        for _ in range(depth)
    )


def read_into(
    latents: Float[Tensor, "batch tokens width"], features: Float[Tensor, "batch length width"], layers: nn.ModuleList
) -> Float[Tensor, "batch tokens width"]:
    """Latents that have read features through `perceiver_layers`, one after another."""
    for attention, mlp in layers:  # pyright: ignore[reportGeneralTypeIssues]  (a ModuleList of pairs)
        latents = attention(features, latents) + latents
        latents = mlp(latents) + latents
    return latents


class Resampler(nn.Module):
    """A perceiver that reads feature tokens into `num_tokens` latents: the "plus" adapter (section 4.4.2).

    A single vector, as a face embedding is, counts as a sequence of one.
    """

    def __init__(self, spec: ResamplerSpec) -> None:
        super().__init__()
        inner = spec.inner_width
        self.latents = nn.Parameter(torch.randn(1, spec.num_tokens, inner) / inner**0.5)
        self.proj_in = nn.Linear(spec.feature_width, inner)
        self.proj_out = nn.Linear(inner, spec.width)
        self.norm_out = nn.LayerNorm(spec.width)
        self.layers = perceiver_layers(
            width=inner,
            depth=spec.depth,
            num_heads=spec.num_heads,
            head_width=spec.head_width,
            mlp_ratio=spec.mlp_ratio,
        )

    def forward(self, features: Float[Tensor, "batch *length feature"]) -> Float[Tensor, "batch tokens width"]:
        """Read any number of feature tokens into the latents."""
        latents = self.latents.expand(features.shape[0], -1, -1)
        features = self.proj_in(features[:, None] if features.ndim == 2 else features)
        latents = read_into(latents, features, self.layers)
        return self.norm_out(self.proj_out(latents))


def widening(spec: PooledMLPSpec | FacePlusSpec) -> nn.Sequential:
    """From one vector to all numbers of `num_tokens` tokens."""
    return nn.Sequential(
        nn.Linear(spec.feature_width, spec.hidden_width),
        nn.GELU(),
        nn.Linear(spec.hidden_width, spec.num_tokens * spec.width),
    )


class PooledMLPProjector(nn.Module):
    """A two-layer MLP from one vector to `num_tokens` tokens, then a LayerNorm."""

    def __init__(self, spec: PooledMLPSpec) -> None:
        super().__init__()
        self.num_tokens = spec.num_tokens
        self.proj = widening(spec)
        self.norm = nn.LayerNorm(spec.width)

    def forward(self, features: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch tokens width"]:
        """Project one vector an image."""
        return self.norm(self.proj(features).unflatten(-1, (self.num_tokens, -1)))


class FaceResampler(nn.Module):
    """Reads the features of a face's picture into tokens that are given (official `FacePerceiverResampler`)."""

    def __init__(self, spec: FacePlusSpec) -> None:
        super().__init__()
        self.proj_in = nn.Linear(spec.crop_width, spec.width)
        self.proj_out = nn.Linear(spec.width, spec.width)
        self.norm_out = nn.LayerNorm(spec.width)
        self.layers = perceiver_layers(
            width=spec.width,
            depth=spec.depth,
            num_heads=spec.width // spec.head_width,
            head_width=spec.head_width,
            mlp_ratio=spec.mlp_ratio,
        )

    def forward(
        self, latents: Float[Tensor, "batch tokens width"], features: Float[Tensor, "batch length feature"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Read the features into the tokens."""
        features = self.proj_in(features)
        latents = read_into(latents, features, self.layers)
        return self.norm_out(self.proj_out(latents))


class FacePlusProjector(nn.Module):
    """FaceID-Plus: tokens of the identity that read the face's picture; version 2 keeps the identity beside it."""

    def __init__(self, spec: FacePlusSpec) -> None:
        super().__init__()
        self.num_tokens = spec.num_tokens
        self.proj = widening(spec)
        self.norm = nn.LayerNorm(spec.width)
        self.shortcut = spec.shortcut
        self.perceiver_resampler = FaceResampler(spec)

    def forward(
        self,
        features: Float[Tensor, "batch feature"],
        crop: Float[Tensor, "batch length crop_feature"],
        structure: float = 1.0,
    ) -> Float[Tensor, "batch tokens width"]:
        """Project.

        Args:
            features: face embeddings.
            crop: features of the aligned faces' pictures.
            structure: how strongly the picture counts beside the identity (`s_scale`); of no effect in version 1.
        """
        identity = self.norm(self.proj(features).unflatten(-1, (self.num_tokens, -1)))
        read = self.perceiver_resampler(identity, crop)
        return identity + structure * read if self.shortcut else read


class TimeEmbedding(nn.Module):
    """Two layers over sines of the timestep."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, timestep: Float[Tensor, " batch"] | Int[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        """Embed; timesteps run from 0 to 1000."""
        half = self.linear_1.in_features // 2
        rates = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half)
        angles = timestep[:, None].float() * rates
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(functional.silu(self.linear_1(waves)))


class TimeResampler(nn.Module):
    """A resampler that reads the features anew at every timestep."""

    def __init__(self, spec: TimeResamplerSpec) -> None:
        super().__init__()
        inner = spec.inner_width
        self.latents = nn.Parameter(torch.randn(1, spec.num_tokens, inner) / inner**0.5)
        self.proj_in = nn.Linear(spec.feature_width, inner)
        self.proj_out = nn.Linear(inner, spec.width)
        self.norm_out = nn.LayerNorm(spec.width)
        self.layers = perceiver_layers(
            width=inner,
            depth=spec.depth,
            num_heads=spec.num_heads,
            head_width=spec.head_width,
            mlp_ratio=spec.mlp_ratio,
        )
        for layer in self.layers:
            layer.append(nn.Sequential(nn.SiLU(), nn.Linear(inner, 4 * inner)))  # pyright: ignore
        self.time_embedding = TimeEmbedding(spec.time_width, inner)

    def forward(
        self,
        features: Float[Tensor, "batch length feature"],
        timestep: Float[Tensor, " batch"] | Int[Tensor, " batch"],
        mask: Bool[Tensor, "batch 1 1 length"] | None = None,
    ) -> tuple[Float[Tensor, "batch tokens width"], Float[Tensor, "batch time"]]:
        """Tokens at a timestep, and the timestep's embedding, which the sites want too; a mask tells real features."""
        time = self.time_embedding(timestep)
        features = self.proj_in(features) + time[:, None]
        latents = self.latents.expand(features.shape[0], -1, -1)
        for attention, mlp, modulation in self.layers:  # pyright: ignore[reportGeneralTypeIssues]
            shift, scale, mlp_shift, mlp_scale = modulation(time)[:, None].chunk(4, dim=-1)
            latents = latents + attention(features, latents, shift, scale, mask)
            latents = latents + mlp[1:](_modulate(mlp[0](latents), mlp_shift, mlp_scale))
        return self.norm_out(self.proj_out(latents)), time


class GivenTokens(nn.Module):
    """No projector: what is given are tokens."""

    def forward(self, features: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """Nothing to do."""
        return features


def build_projector(spec: ProjectorSpec) -> nn.Module:
    """The projector that a spec describes, with fresh weights."""
    match spec:
        case LinearSpec():
            return LinearProjector(spec)
        case MLPSpec():
            return MLPProjector(spec)
        case ResamplerSpec():
            return Resampler(spec)
        case PooledMLPSpec():
            return PooledMLPProjector(spec)
        case FacePlusSpec():
            return FacePlusProjector(spec)
        case TimeResamplerSpec():
            return TimeResampler(spec)
        case TokensSpec():
            return GivenTokens()
