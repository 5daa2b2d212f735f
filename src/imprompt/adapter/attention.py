"""The arithmetic of decoupled cross-attention: small pure functions, no module, no state.

`Z = Attn(Q, K_text, V_text) + scale * Attn(Q, K_image, V_image)` (arXiv 2308.06721, equation 5).

Where an image shares one softmax with the text, with the masses `M = sum exp(Q K^T / sqrt d)` of both,
`Z = (M_text Attn(Q, K_text, V_text) + scale M_image Attn(Q, K_image, V_image)) / (M_text + scale M_image)`: attention
over all keys at once, `log scale` added to the logits of the image's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional


def split_heads(x: Float[Tensor, "batch length width"], num_heads: int) -> Float[Tensor, "batch heads length head"]:
    """Cut the last axis into heads and bring them before the length."""
    batch, length, width = x.shape
    return x.view(batch, length, num_heads, width // num_heads).transpose(1, 2)


def merge_heads(x: Float[Tensor, "batch heads length head"]) -> Float[Tensor, "batch length width"]:
    """Inverse of `split_heads`."""
    return x.transpose(1, 2).flatten(2)


def image_attention(
    query: Float[Tensor, "batch heads length head"],
    keys: Float[Tensor, "batch heads tokens head"],
    values: Float[Tensor, "batch heads tokens head"],
    *,
    token_mask: Bool[Tensor, "batch 1 1 tokens"] | Float[Tensor, "batch 1 1 tokens"] | None = None,
    weight: Float[Tensor, "batch 1 #length 1"] | None = None,
) -> Float[Tensor, "batch heads length head"]:
    """One image branch: attention over the image's tokens alone, times its weight where that is not in the values."""
    attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=token_mask)
    return attended if weight is None else attended * weight


def matched_length(
    attended: Float[Tensor, "batch heads length head"],
    own: Float[Tensor, "batch heads length head"],
    amount: Float[Tensor, "batch 1 1 1"],
) -> Float[Tensor, "batch heads length head"]:
    """An image's part of an attention, brought to the length of the host's own part at every query.

    `attended * (|own| / |attended|) ** amount`, lengths over all heads: 0 leaves it as it is, 1 makes them equal.
    """
    lengths = (x.float().square().sum(dim=(1, 3), keepdim=True).clamp(min=1e-12) for x in (own, attended))
    own_length, length = lengths
    return attended * ((own_length / length) ** (amount.float() / 2)).to(attended.dtype)


# Of how many logits a part of the queries may have at once where their sum is taken.
MOST_LOGITS = 2**24


def log_sum_exp(
    query: Float[Tensor, "batch heads length head"],
    keys: Float[Tensor, "batch some_heads tokens head"],
    mask: Tensor | None = None,
) -> Float[Tensor, "batch heads length 1"]:
    """Logarithm of what a softmax over the keys divides by, in single precision at least.

    Args:
        query: queries.
        keys: keys; each of their heads may serve several neighbours.
        mask: which keys are real, or what is added to logits: [batch, 1 or heads, 1 or length, tokens].
    """
    batch, heads, length, width = query.shape
    keys = keys.repeat_interleave(heads // keys.shape[1], dim=1).transpose(-1, -2)
    keys = keys.to(torch.promote_types(keys.dtype, torch.float32)) * width**-0.5
    most = max(1, MOST_LOGITS // (batch * heads * keys.shape[-1]))
    found: list[Tensor] = []
    for start in range(0, length, most):
        logits = query[:, :, start : start + most].to(keys.dtype) @ keys
        if mask is not None:
            here = mask if mask.shape[2] == 1 else mask[:, :, start : start + most]
            logits = logits + here if here.is_floating_point() else logits.masked_fill(~here, -math.inf)
        found.append(logits.logsumexp(dim=-1, keepdim=True))
    return torch.cat(found, dim=2)


def turned(
    x: Float[Tensor, "batch heads length head"],
    cosines: Float[Tensor, "#batch 1 length head"],
    sines: Float[Tensor, "#batch 1 length head"],
) -> Float[Tensor, "batch heads length head"]:
    """Every two neighbouring features turned by the angle of their place, as rotary embeddings do."""
    pairs = x.float().view(*x.shape[:-1], -1, 2)
    across = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    return (x.float() * cosines + across * sines).to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class Share:
    """An image's part in a softmax that it shares with what the host attends to.

    Attributes:
        attended: attention over the image's tokens alone.
        log_mass: logarithm of its mass times its weight; minus infinity where it has no part.
        apart: weight of its own attention beside that softmax, in rows that do not share it.
    """

    attended: Float[Tensor, "batch heads length head"]
    log_mass: Float[Tensor, "batch heads length 1"]
    apart: Float[Tensor, "batch 1 #length 1"]


def joined(
    shares: Sequence[Share],
    own: Float[Tensor, "batch heads length head"],
    own_log_mass: Float[Tensor, "batch heads length 1"],
) -> Float[Tensor, "batch heads length head"]:
    """What is added to the host's own attention, so that it and all shares have one softmax together."""
    masses = [share.log_mass for share in shares]
    whole = torch.cat([own_log_mass, *masses], dim=-1).logsumexp(dim=-1, keepdim=True)
    parts = [(mass - whole).exp().to(own.dtype) for mass in masses]
    added = -own * torch.stack(parts).sum(dim=0)
    for share, part in zip(shares, parts, strict=True):
        added = added + share.attended * (part + share.apart)
    return added


def per_frame(x: Any, frames: int) -> Any:
    """Every row as often as a host has frames, which it keeps together; None stays None."""
    return x if x is None or frames == 1 else x.repeat_interleave(frames, dim=0)


def level_size(size: tuple[int, int], num_queries: int) -> tuple[int, int] | None:
    """Height and width of the feature map that has `num_queries` cells, given the latent's height and width.

    A UNet halves by strided convolutions, which round up: 65 becomes 33. None if no level has that many cells.
    """
    height, width = size
    while height * width > num_queries and height * width > 1:
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    return (height, width) if height * width == num_queries else None


def frames_of(size: tuple[int, int], num_queries: int) -> int | None:
    """How many frames of a size have `num_queries` cells together; None if no whole number of them does."""
    frames, rest = divmod(num_queries, size[0] * size[1])
    return None if rest or not frames else frames


def region_weight(
    region: Float[Tensor, "batch height width"], size: tuple[int, int]
) -> Float[Tensor, "batch 1 length 1"]:
    """A mask averaged over the cells of a feature map, as a factor for every query of that map."""
    cells = functional.adaptive_avg_pool2d(region[:, None], size)
    return cells.flatten(2).unsqueeze(-1)
