"""Projectors: image features to image tokens. Parameter names are those of the published checkpoints.

Structure after tencent-ailab/IP-Adapter at 62e4af9 (`ip_adapter/ip_adapter.py`, `ip_adapter/resampler.py`).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from imprompt.adapter.attention import merge_heads, split_heads
from imprompt.adapter.spec import LinearSpec, MLPSpec, ProjectorSpec, ResamplerSpec


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
        self, features: Float[Tensor, "batch length width"], latents: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """One cross-attention, without the residual."""
        latents = self.norm2(latents)
        query = self.to_q(latents)
        keys, values = self.to_kv(torch.cat([self.norm1(features), latents], dim=1)).chunk(2, dim=-1)
        query, keys, values = (split_heads(x, self.num_heads) for x in (query, keys, values))
        return self.to_out(merge_heads(functional.scaled_dot_product_attention(query, keys, values)))


def feed_forward(width: int, mlp_ratio: int) -> nn.Sequential:
    """LayerNorm, widen, GELU, narrow; without biases in the linear layers."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, width * mlp_ratio, bias=False),
        nn.GELU(),
        nn.Linear(width * mlp_ratio, width, bias=False),
    )


class Resampler(nn.Module):
    """A perceiver that reads feature tokens into `num_tokens` latents: the "plus" adapter (section 4.4.2)."""

    def __init__(self, spec: ResamplerSpec) -> None:
        super().__init__()
        inner = spec.inner_width
        self.latents = nn.Parameter(torch.randn(1, spec.num_tokens, inner) / inner**0.5)
        self.proj_in = nn.Linear(spec.feature_width, inner)
        self.proj_out = nn.Linear(inner, spec.width)
        self.norm_out = nn.LayerNorm(spec.width)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(width=inner, num_heads=spec.num_heads, head_width=spec.head_width),
                    feed_forward(inner, spec.mlp_ratio),
                ]
            )
            for _ in range(spec.depth)
        )

    def forward(self, features: Float[Tensor, "batch length feature"]) -> Float[Tensor, "batch tokens width"]:
        """Read any number of feature tokens into the latents."""
        latents = self.latents.expand(features.shape[0], -1, -1)
        features = self.proj_in(features)
        for attention, mlp in self.layers:  # pyright: ignore[reportGeneralTypeIssues]  (a ModuleList of pairs)
            latents = attention(features, latents) + latents
            latents = mlp(latents) + latents
        return self.norm_out(self.proj_out(latents))


def build_projector(spec: ProjectorSpec) -> nn.Module:
    """The projector that a spec describes, with fresh weights."""
    match spec:
        case LinearSpec():
            return LinearProjector(spec)
        case MLPSpec():
            return MLPProjector(spec)
        case ResamplerSpec():
            return Resampler(spec)
