"""Image tokens to keys and values, one module a site; and how a site attends to them where that is not plain attention.

Parameter names are those of the published checkpoints.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from imprompt.adapter.attention import image_attention, merge_heads, split_heads
from imprompt.adapter.spec import KeyValueSpec, LinearKVSpec, NormedKVSpec, PerceiverKVSpec, TimedKVSpec

Tokens = Float[Tensor, "rows tokens token_width"]
Pair = tuple[Float[Tensor, "rows tokens width"], Float[Tensor, "rows tokens width"]]


class SiteProjection(nn.Module):
    """`W'_k` and `W'_v` of one site (equation 4): image tokens to keys and values."""

    def __init__(self, spec: LinearKVSpec | NormedKVSpec | TimedKVSpec, token_width: int, width: int) -> None:
        super().__init__()
        bias = isinstance(spec, LinearKVSpec) and spec.bias
        self.to_k_ip = nn.Linear(token_width, width, bias=bias)
        self.to_v_ip = nn.Linear(token_width, width, bias=bias)

    def forward(self, tokens: Tokens) -> Pair:
        """Keys and values of the tokens."""
        return self.to_k_ip(tokens), self.to_v_ip(tokens)


class NormedProjection(SiteProjection):
    """Keys, or keys and values, with every head brought to root mean square 1; see `NormedKVSpec`."""

    def __init__(self, spec: NormedKVSpec, token_width: int, width: int) -> None:
        super().__init__(spec, token_width, width)
        self.head_width = spec.head_width
        self.with_values = spec.with_values

    def forward(self, tokens: Tokens) -> Pair:
        """Keys and values of the tokens, normalised a head."""
        keys, values = super().forward(tokens)
        return self._norm(keys), self._norm(values) if self.with_values else values

    def _norm(self, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (-1, self.head_width))
        return functional.rms_norm(heads, (self.head_width,), eps=1e-5).flatten(-2)


class TimeModulation(nn.Module):
    """Shift and scale of normalised tokens by the timestep (diffusers' `AdaLayerNorm` with `chunk_dim=1`)."""

    def __init__(self, time_width: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(time_width, 2 * width)

    def forward(self, tokens: Tokens, time: Float[Tensor, "rows time"]) -> Tokens:
        """Modulate."""
        shift, scale = self.linear(functional.silu(time)).chunk(2, dim=1)
        normalised = functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
        return normalised * (1 + scale[:, None]) + shift[:, None]


class HeadNorm(nn.Module):
    """Root mean square norm of each head, with weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*batch head"]) -> Float[Tensor, "*batch head"]:
        """Normalise."""
        return functional.rms_norm(x, x.shape[-1:], self.weight, eps=1e-6)


class TimedProjection(SiteProjection):
    """InstantX's SD3.5: the picture attends, by norms of its own, to itself and to the image tokens in one softmax."""

    def __init__(self, spec: TimedKVSpec, token_width: int, width: int) -> None:
        super().__init__(spec, token_width, width)
        self.norm_ip = TimeModulation(spec.time_width, token_width)
        self.norm_q = HeadNorm(spec.head_width)
        self.norm_k = HeadNorm(spec.head_width)
        self.norm_ip_k = HeadNorm(spec.head_width)

    def forward(self, tokens: Tokens, time: Float[Tensor, "rows time"] | None = None) -> Pair:
        """Keys and values of the tokens at a timestep's embedding."""
        assert time is not None
        return super().forward(self.norm_ip(tokens, time))

    def attend(
        self,
        reads: tuple[Float[Tensor, "batch heads length head"], ...],
        keys: Float[Tensor, "batch heads tokens head"],
        values: Float[Tensor, "batch heads tokens head"],
        token_mask: Tensor | None,
    ) -> Float[Tensor, "batch heads length head"]:
        """Attention of the picture's queries over its own keys and the image's.

        Args:
            reads: queries, keys and values of the picture as the host's layers give them.
            keys: of the image tokens.
            values: of the image tokens.
            token_mask: which image tokens are real [batch, 1, 1, tokens]; None if all are.
        """
        query, own_keys, own_values = reads
        keys = torch.cat([self.norm_k(own_keys), self.norm_ip_k(keys)], dim=2)
        values = torch.cat([own_values, values], dim=2)
        if token_mask is not None:
            token_mask = functional.pad(token_mask, (own_keys.shape[2], 0), value=True)
        return image_attention(self.norm_q(query), keys, values, token_mask=token_mask)


class PerceiverProjection(nn.Module):
    """PuLID's cross-attention on FLUX: queries and an output layer of its own, so the host's are not asked."""

    def __init__(self, spec: PerceiverKVSpec, token_width: int, width: int) -> None:
        super().__init__()
        inner = spec.num_heads * spec.head_width
        self.num_heads = spec.num_heads
        self.norm1 = nn.LayerNorm(token_width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(token_width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Keys and values of the tokens, [rows, tokens, heads * head] each."""
        keys, values = self.to_kv(self.norm1(tokens)).chunk(2, dim=-1)
        return keys, values

    def attend(
        self, reads: tuple[Tensor, ...], keys: Tensor, values: Tensor, token_mask: Tensor | None
    ) -> Float[Tensor, "batch heads length head"]:
        """What is added to the block's output; see `TimedProjection.attend`. The only thing read is that output."""
        (hidden,) = reads
        query = split_heads(self.to_q(self.norm2(merge_heads(hidden))), self.num_heads)
        attended = image_attention(query, keys, values, token_mask=token_mask)
        return split_heads(self.to_out(merge_heads(attended)), hidden.shape[1])


def build_key_values(spec: KeyValueSpec, token_width: int, width: int) -> Any:
    """The module that a spec describes, with fresh weights.

    Args:
        spec: its kind.
        token_width: width of an image token.
        width: width of the site.
    """
    match spec:
        case LinearKVSpec():
            return SiteProjection(spec, token_width, width)
        case NormedKVSpec():
            return NormedProjection(spec, token_width, width)
        case TimedKVSpec():
            return TimedProjection(spec, token_width, width)
        case PerceiverKVSpec():
            return PerceiverProjection(spec, token_width, width)
