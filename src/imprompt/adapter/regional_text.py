"""Texts of regions: in parts of the picture, attentions read another text in place of the host's own.

At a site with the query Q whose host attends to its text with `A = Attn(Q, K(text), V(text))`, it becomes
`(1 - sum s_r) A + sum s_r Attn(Q, K(text_r), V(text_r))`, with s_r the share that region r has of each cell, and K, V
the host's own layers. The negative half of guidance keeps A. An image that has one softmax with the text has one with
each of them, which are mixed in the same shares.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from imprompt.adapter.attention import Share, image_attention, joined, log_sum_exp, per_frame, split_heads
from imprompt.adapter.bound import BoundBranch
from imprompt.adapter.conditioning import TextBranch
from imprompt.adapter.devices import floating_dtype
from imprompt.adapter.families import Family
from imprompt.adapter.sites import Site
from imprompt.adapter.strengths import Strengths
from imprompt.adapter.taps import Frame, SiteTap
from imprompt.adapter.text_cache import TextCache
from imprompt.core.errors import ConditioningError, HostMismatch


@dataclass(frozen=True, kw_only=True)
class TextBank:
    """A text of its own for a region of every row; see `Bank`, beside which it stands.

    Keys and values are made by the host when it is called, as those of its own text are: so its LoRAs act on them.
    """

    states: Float[Tensor, "rows tokens text_width"]
    token_mask: Bool[Tensor, "rows 1 1 tokens"] | None
    region: Float[Tensor, "bank height width"]
    strengths: Strengths
    rows: int
    taps: Sequence[SiteTap]
    frame: Frame
    text_layer: nn.Module | None

    has_null = True  # the negative half is the host's own text's, everywhere
    is_timed = False

    @property
    def schedule(self) -> Tensor | None:
        """Factors on the share that are looked up at every step; None where it is constant."""
        return self.strengths.scale

    def bind(
        self,
        index: Int[Tensor, " batch"],
        schedule: Float[Tensor, "sites batch"] | None,
        timestep: Any = None,
        *,
        rows: tuple[int, ...] | None = None,
    ) -> "BoundText":
        """The rows of the denoiser's batch; see `Bank.bind`."""
        place = index % self.rows
        states = self.states.to(index.device).index_select(0, place)
        mask = None if self.token_mask is None else self.token_mask.to(index.device).index_select(0, place)
        return BoundText(
            keys=[],
            values=[],
            attentions=[],
            states=states if self.text_layer is None else self.text_layer(states),
            token_mask=mask,
            region=self.region.to(index.device).index_select(0, index),
            schedule=schedule,
            taps=self.taps,
            frame=self.frame,
        )


@dataclass(kw_only=True)
class BoundText(BoundBranch):
    """A text of a region with its rows in the order of the denoiser's batch."""

    states: Float[Tensor, "batch tokens text_width"]
    taps: Sequence[SiteTap]
    frame: Frame
    caches: dict[int, TextCache] = field(default_factory=dict)

    is_text = True

    def attend(
        self,
        reads: tuple[Float[Tensor, "batch heads length head"], ...],
        position: int,
        size: tuple[int, int] | None,
        num_tokens: int | None = None,
        own: Float[Tensor, "batch heads length head"] | None = None,
    ) -> Float[Tensor, "batch heads length head"] | None:
        """What this text changes of the host's own part: the difference, times the share; see `BoundBranch.attend`."""
        assert own is not None
        query = reads[0]
        keys, values, token_mask = self._for_queries(query, position)
        attended = image_attention(query, keys, values, token_mask=token_mask)
        return (attended - own) * self._share(query, position, size, num_tokens)

    def joined_apart(
        self,
        shares: Sequence[Share],
        query: Float[Tensor, "batch heads length head"],
        position: int,
        size: tuple[int, int] | None,
        num_tokens: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What images add that have one softmax with this text, and how much of each place is this text's."""
        keys, values, token_mask = self._for_queries(query, position)
        attended = image_attention(query, keys, values, token_mask=token_mask)
        added = joined(shares, attended, log_sum_exp(query, keys, token_mask))
        return added, self._share(query, position, size, num_tokens)

    def _share(self, query: Tensor, position: int, size: tuple[int, int] | None, num_tokens: int | None) -> Tensor:
        frames = query.shape[0] // self.states.shape[0]
        return per_frame(self._weight(query, position, size, num_tokens), frames)

    def _for_queries(self, query: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values and which of them are real, for every row of queries."""
        frames = query.shape[0] // self.states.shape[0]
        keys, values = (per_frame(x.to(query.dtype), frames) for x in self._keys_values(position))
        return keys, values, per_frame(self.token_mask, frames)

    def _keys_values(self, position: int) -> tuple[Tensor, Tensor]:
        attention, states = self.taps[position].attention, self.states
        if attention.norm_cross is not None:
            states = attention.norm_encoder_hidden_states(states)
        if torch.compiler.is_compiling():
            pair = attention.to_k(states), attention.to_v(states)
        else:
            pair = self.caches.setdefault(position, TextCache()).get(attention, states, self.frame.run)
        keys, values = (split_heads(x, attention.heads) for x in pair)
        return keys, values


def build_text_bank(
    text: TextBranch,
    host: nn.Module,
    family: Family,
    taps: Sequence[SiteTap],
    frame: Frame,
    device: torch.device,
) -> TextBank:
    """What the sites of a host read of a text.

    Args:
        text: of a region of every row.
        host: the denoiser.
        family: the host's.
        taps: its sites.
        frame: what they read during a call.
        device: where the host computes.

    Raises:
        HostMismatch: the host does not read its text apart from the picture.
        ConditioningError: the states have another width than the host's text.
    """
    layer = text_layer_of(family, host)
    check_width(text, layer, taps[0].site, host)
    dtype = floating_dtype(host)
    mask = None if text.token_mask is None else (text.token_mask | ~text.token_mask.any(dim=1, keepdim=True))
    share = text.share * text.scale[0].view(-1, 1, 1) if len(text.scale) == 1 else text.share
    share = share.to(device, dtype)
    return TextBank(
        states=text.states.to(device, dtype),
        token_mask=None if mask is None else mask.to(device)[:, None, None, :],
        region=torch.cat([share, torch.zeros_like(share)]),
        strengths=_strengths(text, len(taps)).to(device, dtype),
        rows=len(share),
        taps=taps,
        frame=frame,
        text_layer=layer,
    )


def text_layer_of(family: Family, host: nn.Module) -> nn.Module | None:
    """The layer that a host's text passes before its attentions; None if it passes none.

    Raises:
        HostMismatch: the host does not read its text apart from the picture.
    """
    if family.text_layer is None:
        raise HostMismatch(
            f"texts of regions are for UNets of Stable Diffusion, SDXL and Kolors, which read the text apart from the "
            f"picture; {type(host).__name__} is none of them: leave regions out, or give image prompts with masks"
        )
    return family.text_layer(host)


def check_width(text: TextBranch, layer: Any, site: Site, host: nn.Module) -> None:
    """Refuse states of another text encoder.

    Raises:
        ConditioningError: their width is not that of the host's text.
    """
    width = site.key_width if layer is None else layer.in_features
    if text.states.shape[-1] != width:
        raise ConditioningError(
            f"a region's text has states of width {text.states.shape[-1]}, {type(host).__name__} reads {width}; encode "
            "it with this pipeline's text encoders"
        )


def _strengths(text: TextBranch, num_sites: int) -> Strengths:
    if len(text.scale) == 1:  # it is in the share
        return Strengths(scale=None, keys=None)
    both = torch.cat([text.scale, text.scale], dim=-1)[:, None].expand(-1, num_sites, -1).contiguous()
    by_noise = None if text.by_noise is None else text.by_noise.repeat(2)
    return Strengths(scale=both, keys=None, by_noise=by_noise, has_steps=by_noise is None or not bool(by_noise.all()))
