"""The two taps of a site, and the processor that does both taps' work at once where the host's own is the stock one."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from imprompt.adapter.attention import merge_heads, split_heads
from imprompt.adapter.bank import BoundBranch
from imprompt.adapter.sites import Site
from imprompt.adapter.text_cache import TextCache


@dataclass
class Frame:
    """What all sites of a host read during one call of it.

    Attributes:
        branches: the image branches, bound to the rows of this call.
        size: height and width of the latent.
        run: an object that lasts as long as the run; None if there is no pipeline to tell.
        is_live: whether the attachment is; its processors may outlive it where somebody else had kept them.
    """

    branches: tuple[BoundBranch, ...] = ()
    size: tuple[int, int] = (0, 0)
    run: object | None = None
    is_live: bool = True


class SiteTap:
    """Reads the query where the host makes it and adds the image branches where the host projects out.

    Whatever the host does in between, by whichever attention processor, stays the host's.
    """

    def __init__(self, site: Site, position: int, attention: Any, frame: Frame) -> None:
        self.site = site
        self.position = position
        self.attention = attention
        self.frame = frame
        self.query: Tensor | None = None
        self._tapped: tuple[nn.Module, nn.Module] | None = None
        self._hooks: list[Any] = []

    def install(self) -> None:
        """Hook the layers that are in place now."""
        source, sink = self._layers()
        self._hooks = [source.register_forward_hook(self._take), sink.register_forward_pre_hook(self._give)]
        self._tapped = (source, sink)

    def remove(self) -> None:
        """Unhook."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._tapped, self.query = [], None, None

    @property
    def is_current(self) -> bool:
        """Whether the hooked layers are still the host's: loading a LoRA puts others in their place."""
        return self._tapped is not None and all(a is b for a, b in zip(self._tapped, self._layers(), strict=True))

    def _layers(self) -> tuple[nn.Module, nn.Module]:
        norm = getattr(self.attention, "norm_q", None)
        return (self.attention.to_q if norm is None else norm), self.attention.to_out[0]

    def _take(self, _module: nn.Module, _inputs: Any, query: Tensor) -> None:
        if self.frame.branches:
            self.query = query

    def _give(self, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        query, self.query = self.query, None
        if query is None:
            return None
        image = self.image(query if query.ndim == 4 else split_heads(query, self.site.num_heads))
        hidden, *rest = inputs
        return hidden if image is None else (hidden + merge_heads(image).to(hidden.dtype)), *rest

    def image(self, query: Tensor) -> Tensor | None:
        """The sum of all image branches [batch, heads, length, head], before the heads are merged; None without any."""
        total: Tensor | None = None
        for branch in self.frame.branches:
            attended = branch.attend(query, self.position, self.frame.size)
            total = attended if total is None else total + attended
        return total


class FusedProcessor:
    """Stands in for diffusers' stock `AttnProcessor2_0` at a cross-attention.

    Does the same arithmetic in the same order, with the image branches added before the heads are merged, text keys and
    values kept for a run, and no division by a factor of one: fewer kernels than the stock one without an adapter.
    Anything unusual goes to the stock processor, which the taps then serve.
    """

    def __init__(self, tap: SiteTap, stock: Any) -> None:
        self.tap = tap
        self.stock = stock
        self.text_cache = TextCache()

    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The stock processor's: diffusers asks by `__class__` whether processors may be replaced, and by what."""
        return type(self.stock)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Attend to the text and to the images; the signature is the stock processor's."""
        is_odd = attention_mask is not None or args or kwargs or not _is_usual(attn)
        if encoder_hidden_states is None or is_odd or not self.tap.frame.is_live:
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)
        query = split_heads(attn.to_q(hidden_states), attn.heads)
        self.tap.query = None  # taken here, so the taps have nothing to add
        text = self.text_cache.get(attn, encoder_hidden_states, self.tap.frame.run)
        keys, values = (split_heads(x, attn.heads) for x in text)
        attended = functional.scaled_dot_product_attention(query, keys, values)
        image = self.tap.image(query)
        if image is not None:
            attended = attended + image if torch.is_grad_enabled() else attended.add_(image)
        return attn.to_out[1](attn.to_out[0](merge_heads(attended).to(query.dtype)))


def is_stock(processor: Any) -> bool:
    """Whether a processor is diffusers' default one."""
    kind = type(processor)
    return kind.__name__ == "AttnProcessor2_0" and kind.__module__.startswith("diffusers.")


def _is_usual(attn: Any) -> bool:
    norms = (attn.norm_q, attn.norm_k, attn.norm_cross, attn.group_norm, attn.spatial_norm)
    return all(norm is None for norm in norms) and not attn.residual_connection and attn.rescale_output_factor == 1.0
