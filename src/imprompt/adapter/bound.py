"""One branch in one call of a denoiser: its rows in the order of the batch, and what it adds at a site."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from imprompt.adapter.attention import (
    Share,
    frames_of,
    image_attention,
    level_size,
    log_sum_exp,
    matched_length,
    per_frame,
    region_weight,
)
from imprompt.core.errors import ConditioningError

# How a site attends, where that is not plain attention: what was read, keys, values, which tokens are real.
Attention = Callable[[tuple[Tensor, ...], Tensor, Tensor, Tensor | None], Tensor]


@dataclass(kw_only=True)
class BoundBranch:
    """One branch with its rows in the order of the denoiser's batch."""

    keys: list[Float[Tensor, "batch _heads tokens _head"] | None]
    values: list[Float[Tensor, "batch _heads tokens _head"] | None]
    token_mask: Bool[Tensor, "batch 1 1 tokens"] | Float[Tensor, "batch 1 1 tokens"] | None
    region: Float[Tensor, "batch height width"] | None
    schedule: Float[Tensor, "sites batch"] | None
    attentions: list[Attention | None]
    match: Float[Tensor, " batch"] | None = None
    joint: Float[Tensor, " batch"] | None = None
    key_schedule: Float[Tensor, "sites batch"] | None = None
    placed: Float[Tensor, "batch 1 tokens 1"] | None = None
    _region_weights: dict[tuple[int, int, int, int], Tensor] = field(default_factory=dict)

    # Whether it replaces a part of the host's own, which image branches then take for it.
    is_text = False

    def attend(
        self,
        reads: tuple[Float[Tensor, "batch heads length head"], ...],
        position: int,
        size: tuple[int, int] | None,
        num_tokens: int | None = None,
        own: Float[Tensor, "batch heads length head"] | None = None,
    ) -> Float[Tensor, "batch heads length head"] | None:
        """This branch's output at one site; None where its adapter has no part.

        Args:
            reads: what the site reads, heads split; as a rule the queries alone.
            position: which site, in the order of `Attachment.sites`.
            size: height and width of what regions are placed on.
            num_tokens: how many of the queries are the picture's, where others may stand before them.
            own: what the host itself attends to here, whose length the image's part may be brought to.
        """
        parts = self._parts(reads[0], position, size, num_tokens)
        if parts is None:
            return None
        keys, values, token_mask, weight = parts
        attention = self.attentions[position]
        if attention is None and self.match is None:
            return image_attention(reads[0], keys, values, token_mask=token_mask, weight=weight)
        if attention is None:
            attended = image_attention(reads[0], keys, values, token_mask=token_mask)
        else:
            attended = attention(reads, keys, values, token_mask)
        attended = self._matched(attended, own)
        return attended if weight is None else attended * weight

    def share(
        self,
        query: Float[Tensor, "batch heads length head"],
        position: int,
        size: tuple[int, int] | None,
        num_tokens: int | None = None,
        own: Float[Tensor, "batch heads length head"] | None = None,
    ) -> Share | None:
        """This branch's part in a softmax of several, at one site; None where its adapter has no part. See `attend`."""
        parts = self._parts(query, position, size, num_tokens)
        if parts is None:
            return None
        assert self.joint is not None
        keys, values, token_mask, weight = parts
        assert weight is not None
        joint = per_frame(self.joint.view(-1, 1, 1, 1), query.shape[0] // self.joint.shape[0]).to(weight.dtype)
        mass = log_sum_exp(query, keys, token_mask)
        return Share(
            attended=self._matched(image_attention(query, keys, values, token_mask=token_mask), own),
            log_mass=mass + (weight * joint).to(mass.dtype).log(),
            apart=weight * (1 - joint),
        )

    def _matched(self, attended: Tensor, own: Tensor | None) -> Tensor:
        """The image's part in the length of the host's own, in rows that ask for it."""
        if self.match is None or own is None:
            return attended
        frames = attended.shape[0] // self.match.shape[0]
        return matched_length(attended, own, per_frame(self.match.view(-1, 1, 1, 1), frames))

    def _parts(
        self, query: Tensor, position: int, size: tuple[int, int] | None, num_tokens: int | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None] | None:
        """Keys, values, which tokens count, and the weight of every query, for each row and each of its frames."""
        keys, values, token_mask = self.keys[position], self.values[position], self.token_mask
        if keys is None or values is None:
            return None
        frames = query.shape[0] // keys.shape[0]  # more than one where a host folds its frames into the batch
        if self.key_schedule is not None:
            keys = keys * self.key_schedule[position].view(-1, 1, 1, 1).to(keys)
        if token_mask is not None and token_mask.is_floating_point():
            token_mask = token_mask.to(query.dtype)
        keys, values = (per_frame(x.to(query.dtype), frames) for x in (keys, values))
        weight = per_frame(self._weight(query, position, size, num_tokens), frames)
        return keys, values, per_frame(token_mask, frames), weight

    def _weight(
        self, query: Tensor, position: int, size: tuple[int, int] | None, num_tokens: int | None
    ) -> Tensor | None:
        weight = None if self.schedule is None else self.schedule[position].view(-1, 1, 1, 1)
        if self.region is not None:
            num_others = 0 if num_tokens is None else max(0, query.shape[2] - num_tokens)
            region = self._region_weight(query.shape[2] - num_others, num_others, size)
            weight = region if weight is None else region * weight
        return None if weight is None else weight.to(query.dtype)

    def _region_weight(self, num_queries: int, num_others: int, size: tuple[int, int] | None) -> Tensor:
        """Factor of every query. Tokens that are not the picture's, but act on all of it, have the region's mean."""
        if self.placed is not None:
            return _with_others(self.placed, num_others)
        height, width, times = _cells(num_queries, size)
        if torch.compiler.is_compiling():
            return self._placed_on(height, width, times, num_others)
        key = (height, width, times, num_others)
        if key not in self._region_weights:
            self._region_weights[key] = self._placed_on(*key)
        return self._region_weights[key]

    def _placed_on(self, height: int, width: int, times: int, num_others: int) -> Tensor:
        assert self.region is not None
        return _with_others(region_weight(self.region, (height, width)).repeat(1, 1, times, 1), num_others)


def place_regions(
    regions: Float[Tensor, "batch height width"], size: tuple[int, int] | None, num_queries: int
) -> Float[Tensor, "batch 1 tokens 1"]:
    """Factor of each of the picture's tokens, for regions of all rows.

    Raises:
        ConditioningError: the size is not known, or is not that of so many tokens.
    """
    height, width, times = _cells(num_queries, size)
    return region_weight(regions, (height, width)).repeat(1, 1, times, 1)


def _cells(num_queries: int, size: tuple[int, int] | None) -> tuple[int, int, int]:
    """Height, width and frames of what so many queries are."""
    if size is None:
        raise ConditioningError(
            "a mask cannot be placed: this denoiser's calls do not tell the height and width of the picture; "
            "leave the mask out for this pipeline"
        )
    frames, cells = frames_of(size, num_queries), level_size(size, num_queries)
    if cells is None and frames is None:
        raise ConditioningError(
            f"a mask cannot be placed: no level of a {size[0]} x {size[1]} latent has {num_queries} positions; "
            "leave the mask out for this pipeline"
        )
    return (*cells, 1) if cells is not None else (*size, frames or 1)


def _with_others(weights: Float[Tensor, "batch 1 tokens 1"], num_others: int) -> Float[Tensor, "batch 1 length 1"]:
    if not num_others:
        return weights
    return torch.cat([weights.mean(dim=2, keepdim=True).expand(-1, -1, num_others, -1), weights], dim=2)
