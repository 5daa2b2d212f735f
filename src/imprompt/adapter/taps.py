"""The two taps of a site, and the processor that does both taps' work at once where the host's own is the stock one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from imprompt.adapter.attention import Share, joined, log_sum_exp, merge_heads, split_heads
from imprompt.adapter.bound import BoundBranch
from imprompt.adapter.own import OwnKeys
from imprompt.adapter.places import layers_at, place_of
from imprompt.adapter.sites import Layout, Site, Span, submodule
from imprompt.adapter.text_cache import TextCache
from imprompt.core.errors import HostMismatch


@dataclass
class Frame:
    """What all sites of a host read during one call of it.

    Attributes:
        branches: the image branches, bound to the rows of this call.
        size: height and width of what regions are placed on; None where the call does not tell.
        num_queries: tokens of the picture in a sequence that holds others too.
        index: their places in each row [batch, tokens], where rows differ; or a mark for every place [batch, length].
        run: an object that lasts as long as the run; None if there is no pipeline to tell.
        reads_own: whether sites read the host's own keys too: from the first image on that shares their softmax.
        is_live: whether the attachment is; its processors may outlive it where somebody else had kept them.
    """

    branches: tuple[BoundBranch, ...] = ()
    size: tuple[int, int] | None = None
    num_queries: int | None = None
    index: Tensor | None = None
    run: object | None = None
    reads_own: bool = False
    is_live: bool = True

    @property
    def has_joint(self) -> bool:
        """Whether an image shares one softmax with what the host attends to."""
        return any(branch.joint is not None for branch in self.branches)

    @property
    def needs_own(self) -> bool:
        """Whether what the host attends to makes a difference to a branch."""
        return any(branch.match is not None or branch.joint is not None or branch.is_text for branch in self.branches)


class SiteTap:
    """Reads the query where the host makes it and adds the image branches where the host projects out.

    Whatever the host does in between, by whichever attention processor, stays the host's.
    """

    def __init__(self, site: Site, position: int, host: nn.Module, frame: Frame) -> None:
        self.site = site
        self.position = position
        self.attention: Any = submodule(host, site.name)
        self.frame = frame
        self.reads: list[Tensor | None] = [None] * len(site.reads)
        self.is_fused = False  # whether a `FusedProcessor` does the taps' work
        self.own_keys = OwnKeys(site, host, lambda: frame.has_joint)
        self._places = [place_of(host, path) for path in (*site.reads, site.sink)]
        self._tapped: list[nn.Module] = []
        self._hooks: list[Any] = []

    def install(self) -> None:
        """Hook the layers that are in place now."""
        *sources, sink = self._tapped = self._layers()
        for number, source in enumerate(sources):  # one by one, so that `remove` knows them if the next cannot be made
            self._hooks.append(source.register_forward_hook(self._take(number)))
        give = sink.register_forward_hook(self._give_after) if self.site.after else None
        self._hooks.append(give or sink.register_forward_pre_hook(self._give))
        if self._reads_own:
            self.own_keys.install()

    def remove(self) -> None:
        """Unhook."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._tapped = [], []
        self.own_keys.remove()
        self.forget()

    def forget(self) -> None:
        """Drop what was read."""
        self.reads = [None] * len(self.site.reads)
        self.own_keys.forget()

    @property
    def is_current(self) -> bool:
        """Whether the hooked layers are still the host's: loading a LoRA puts others in their place."""
        is_same = bool(self._tapped) and all(a is b for a, b in zip(self._tapped, self._layers(), strict=True))
        return is_same and (self.own_keys.is_current or not self._reads_own)

    @property
    def _reads_own(self) -> bool:
        return self.frame.reads_own and bool(self.site.own_keys)

    def _layers(self) -> list[nn.Module]:
        return layers_at(self._places)

    def _take(self, number: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def take(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if self.frame.branches:
                self.reads[number] = output.clone() if self.site.is_overwritten else output

        return take

    def _give(self, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden, *rest = inputs
        image = self._image_of_reads(hidden)
        if image is None:
            return None
        return self._add(hidden, image), *rest

    def _give_after(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not self.frame.branches:
            return None
        parts = list(output) if isinstance(output, tuple) else [output]
        item = self.site.item if len(parts) > 1 else 0
        if not self.site.reads:
            self.reads = [_cut(parts[item], self.site.sink_span, self.frame)]
        image = self._image_of_reads()
        if image is None:
            return None
        parts[item] = self._add(parts[item], image)
        return tuple(parts) if isinstance(output, tuple) else parts[0]

    def _image_of_reads(self, hidden: Tensor | None = None) -> Tensor | None:
        reads = [read for read in self.reads if read is not None]
        self.reads = [None] * len(self.site.reads)
        if not self.frame.branches or (self.is_fused and not reads):
            return None
        site = self.site
        if len(reads) != max(1, len(site.reads)):
            raise HostMismatch(
                f"{site.name} made {len(reads)} of the {len(site.reads)} outputs that its adapter reads "
                f"({', '.join(site.reads)}); do not fuse its projections, and use diffusers' own attention processor"
            )
        heads = [self._heads(read) for read in reads]
        if hidden is None or not self.frame.needs_own:
            return self.image(*heads)
        mass = partial(self.own_keys.log_mass, heads[0], self._laid_out, self._cut)
        return self.image(*heads, own=self._own(hidden), own_mass=mass)

    def _own(self, hidden: Tensor) -> Tensor:
        """The host's own part of what reaches the sink, as the image's is laid out."""
        own = _cut(hidden if hidden.ndim == 3 else hidden[None], self.site.sink_span, self.frame)
        return split_heads(own.narrow(-1, self.site.start, self.site.query_width), self.site.num_heads)

    def _heads(self, read: Tensor) -> Tensor:
        """What was read, as [batch, heads, length, head] and of the picture's tokens alone."""
        return self._cut(self._laid_out(read), 2)

    def _cut(self, sequence: Tensor, dim: int) -> Tensor:
        return _cut(sequence, self.site.query_span, self.frame, dim)

    def _laid_out(self, read: Tensor) -> Tensor:
        layout: Layout = self.site.layout if read.ndim == 4 or self.site.layout == "packed" else "merged"
        if layout == "packed":
            read = read.transpose(0, 1)[None]
        elif layout == "merged":
            read = split_heads(read.flatten(2), self.site.num_heads)
        elif layout == "length_first":
            read = read.transpose(1, 2)
        return read

    def _add(self, hidden: Tensor, image: Tensor) -> Tensor:
        """The image branches added to their part of a sequence and of its features."""
        merged = merge_heads(image).to(hidden.dtype)
        if hidden.ndim == 2:
            return self._add(hidden[None], image)[0]
        start, rest = self.site.start, hidden.shape[-1] - merged.shape[-1] - self.site.start
        missing = hidden.shape[1] - merged.shape[1]
        before, after = (missing, 0) if self.site.sink_span == "last" else (0, missing)
        index = self.frame.index if self.site.sink_span == "indexed" else None
        if index is not None and _is_marked(self.frame):
            merged = merged * index[..., None]
        elif index is not None and missing:
            empty = merged.new_zeros(len(merged), hidden.shape[1], merged.shape[-1])
            merged, after = empty.scatter(1, index[..., None].expand_as(merged), merged), 0
        if before or after or start or rest:
            merged = functional.pad(merged, (start, rest, before, after))
        return hidden + merged

    def image(
        self, *reads: Tensor, own: Tensor | None = None, own_mass: Callable[[], Tensor] | None = None
    ) -> Tensor | None:
        """The sum of all branches [batch, heads, length, head], before the heads are merged; None without any.

        Texts of regions change the host's own part, and images are held against that which is changed. All that share
        one softmax with it share the same one, a text's as the host's.

        Args:
            reads: what the site reads, heads split; as a rule the queries alone.
            own: what the host itself attends to here, where a branch asks for it.
            own_mass: makes the logarithm of what its softmax divides by.
        """
        texts = [branch for branch in self.frame.branches if branch.is_text]
        others = [branch for branch in self.frame.branches if not branch.is_text]
        joint = [branch for branch in others if branch.joint is not None]
        # Where there are texts, before them: the same layers make theirs.
        mass = own_mass() if joint and texts and own_mass is not None else None
        changed = self._sum(reads, own, texts)
        mixed = own if own is None or changed is None else own + changed
        images = self._sum(reads, mixed, [branch for branch in others if branch.joint is None])
        shares = self._shares(reads, mixed, joint)
        if shares:
            assert own is not None and own_mass is not None
            with_own = joined(shares, own, own_mass() if mass is None else mass)
            images = _added(images, self._joined(shares, reads[0], with_own, texts))
        return _added(changed, images)

    def _joined(self, shares: list[Share], query: Tensor, with_own: Tensor, texts: Sequence[Any]) -> Tensor:
        """What images add that have one softmax with the host's own part; with each region's text, in its share."""
        added = with_own
        for text in texts:
            with_text, share = text.joined_apart(shares, query, self.position, self.frame.size, self.frame.num_queries)
            added = added + share * (with_text - with_own)
        self.own_keys.forget()  # those of the last text
        return added

    def _sum(self, reads: tuple[Tensor, ...], own: Tensor | None, branches: Sequence[BoundBranch]) -> Tensor | None:
        total: Tensor | None = None
        for branch in branches:
            attended = branch.attend(reads, self.position, self.frame.size, self.frame.num_queries, own)
            total = _added(total, attended)
        return total

    def _shares(self, reads: tuple[Tensor, ...], own: Tensor | None, branches: Sequence[BoundBranch]) -> list[Share]:
        frame = self.frame
        shares = [branch.share(reads[0], self.position, frame.size, frame.num_queries, own) for branch in branches]
        return [share for share in shares if share is not None]


def _added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum of what is there."""
    return other if one is None else one if other is None else one + other


def _cut(sequence: Tensor, span: Span, frame: Frame, dim: int = 1) -> Tensor:
    """The picture's part of a sequence."""
    length, index = frame.num_queries, frame.index
    if span == "indexed" and index is not None:
        if _is_marked(frame) or sequence.shape[dim] == index.shape[1]:
            return sequence
        shape = [1] * sequence.ndim
        shape[0], shape[dim] = index.shape
        return sequence.take_along_dim(index.view(shape), dim)
    if span == "all" or length is None or sequence.shape[dim] == length:
        return sequence
    return sequence.narrow(dim, 0 if span == "first" else sequence.shape[dim] - length, length)


def _is_marked(frame: Frame) -> bool:
    return frame.index is not None and frame.index.dtype == torch.bool


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
        is_odd = attention_mask is not None or args or kwargs or hidden_states.ndim != 3 or not _is_usual(attn)
        if encoder_hidden_states is None or is_odd or not self.tap.frame.is_live:
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)
        query = split_heads(attn.to_q(hidden_states), attn.heads)
        self.tap.forget()  # taken here, so the taps have nothing to add
        text = self.text_cache.get(attn, encoder_hidden_states, self.tap.frame.run)
        keys, values = (split_heads(x, attn.heads) for x in text)
        attended = functional.scaled_dot_product_attention(query, keys, values)
        image = self.tap.image(query, own=attended, own_mass=partial(log_sum_exp, query, keys))
        if image is not None:
            attended = attended + image if torch.is_grad_enabled() else attended.add_(image)
        return attn.to_out[1](attn.to_out[0](merge_heads(attended).to(query.dtype)))


def is_stock(attention: Any) -> bool:
    """Whether an attention's processor is diffusers' default one."""
    kind = type(getattr(attention, "processor", None))
    return kind.__name__ == "AttnProcessor2_0" and kind.__module__.startswith("diffusers.")


def _is_usual(attn: Any) -> bool:
    norms = (attn.norm_q, attn.norm_k, attn.norm_cross, attn.group_norm, attn.spatial_norm)
    return all(norm is None for norm in norms) and not attn.residual_connection and attn.rescale_output_factor == 1.0
