"""Sites: the places of a host where image tokens are attended to, read off its module tree."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import nn

from imprompt.core.errors import HostMismatch

# How a host hands over its queries: [batch, length, heads * head], [batch, length, heads, head],
# [batch, heads, length, head] or, of a single row, [length, heads, head].
Layout = Literal["merged", "length_first", "heads_first", "packed"]

# Layers of an attention that brings more than attention to the keys that a place names: further keys, or a gate.
FURTHER = ("add_k_proj", "to_gate_logits")

# Which tokens of a sequence are the picture's: all of it, those before the others, those after them, or those that the
# call's `index` names, or marks, row by row.
Span = Literal["all", "first", "last", "indexed"]


@dataclass(frozen=True, kw_only=True)
class Tapping:
    """What a site has of its place.

    Attributes:
        after: add to the output of the sink in place of its input; where that is a tuple, to its item `item`.
        item: see `after`.
        query_span: which part of the queries is the picture's.
        sink_span: which part of the sink's sequence is the picture's.
        start: first feature of the sink's input that the attention's output takes, where others stand beside it.
        is_overwritten: whether the host writes into what is read before it is used here, so that a copy is kept.
        fused_at: which part of the output of the text's layer the keys are, where it makes more than them; values are
            the next.
        rotations: name of the argument of the attention's call that holds cosines and sines, by which the host turns
            neighbouring features of queries and keys; None where it turns none.
        own_part: which of the parts in `own_keys` is that whose queries are read.
    """

    after: bool = False
    item: int = 0
    query_span: Span = "all"
    sink_span: Span = "all"
    start: int = 0
    is_overwritten: bool = False
    fused_at: int | None = None
    rotations: str | None = None
    own_part: int = -1


@dataclass(frozen=True, kw_only=True)
class Site(Tapping):
    """One attention place of a host: its two taps, and what the keys and values made for it must be.

    Attributes:
        name: the attention's path in the host.
        index: its number in checkpoints.
        block: what per-block strengths call it, e.g. `up_blocks.1.attentions.0`.
        query_width: width of its queries, which is that of the adapter's keys and values.
        key_width: width of the tokens that it attends to.
        num_heads: number of heads.
        text_keys: path of the layer that makes the host's own keys of such tokens; values have their name with a v.
        reads: paths of the layers whose outputs are read, the query's first; none to read what `sink` is given.
        layout: how those outputs are laid out.
        sink: path of the layer at which the image branch is added: to its input, or with `after` to its output.
        own_keys: paths of the layers whose outputs are the keys of all that the host itself attends to here, one a part
            of the sequence; none where that is not known.
    """

    name: str
    index: int
    block: str
    query_width: int
    key_width: int
    num_heads: int
    text_keys: str
    reads: tuple[str, ...]
    layout: Layout
    sink: str
    own_keys: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Place(Tapping):
    """A kind of site: one row of a family's table, from which the sites of a host are read.

    Attributes:
        attention: template of the attentions' paths, `{}` for a number: `transformer_blocks.{}.attn`.
        query: paths, inside the attention, of the layers that may make the query; the first that is there is read.
            None to read what the sink gives.
        sink: path of the layer that takes the attention's output, inside the attention; with a leading `^` inside the
            block that holds the attention, and `^` alone for that block.
        every: only every so many-th attention.
        layout: how the query's layer hands it over.
        also_reads: paths of further layers that are read, inside the attention.
        heads: names under which the attention may keep its number of heads.
        keys: path of the layer whose input has the width of the tokens attended to, inside the attention.
        block: how many parts of an attention's path name its block.
        own: paths, inside the attention, of the layers that may make the host's own keys, for each part of the sequence
            that it attends to; the first that is there is read. None where they cannot be read off, or where `sink` is
            given more than attention to them.
    """

    attention: str
    query: Sequence[str] = ("norm_q", "to_q")
    sink: str = "to_out.0"
    layout: Layout = "length_first"
    also_reads: Sequence[str] = ()
    heads: Sequence[str] = ("heads", "num_heads", "num_attention_heads", "n_heads")
    keys: str = "to_k"
    block: int = 2
    every: int = 1
    own: Sequence[Sequence[str]] = ()


def submodule(host: nn.Module, path: str) -> Any:
    """The module at a path, the host itself at an empty one; None if it is not there."""
    module: Any = host
    for name in path.split(".") if path else ():
        module = getattr(module, "_modules", {}).get(name)
        if module is None:
            return None
    return module


def find_places(host: nn.Module, places: Sequence[Place]) -> tuple[Site, ...]:
    """The sites of a host in the order of the places, those of one place in the order of their numbers.

    Raises:
        HostMismatch: the host has none of them.
    """
    found = [
        (path, attention, place)
        for place in places
        for path, attention in _matches(host, place.attention)[:: place.every]
    ]
    sites = tuple(site_at(host, path, attention, place, index) for index, (path, attention, place) in enumerate(found))
    if not sites:
        wanted = ", ".join(place.attention for place in places)
        raise HostMismatch(f"{type(host).__name__} has no attention to attach to: expected modules {wanted}")
    return sites


def _matches(host: nn.Module, template: str) -> list[tuple[str, Any]]:
    pattern = re.compile(re.escape(template).replace(r"\{\}", r"(\d+)"))
    found = ((pattern.fullmatch(name), name, module) for name, module in host.named_modules())
    numbered = [(tuple(map(int, match.groups())), name, module) for match, name, module in found if match]
    return [(name, module) for _, name, module in sorted(numbered, key=lambda each: each[0])]


def site_at(host: nn.Module, path: str, attention: Any, place: Place, index: int) -> Site:
    """The site that an attention of a host is.

    Raises:
        HostMismatch: nothing in it makes its queries.
    """
    queries = [name for name in place.query if submodule(attention, name) is not None]
    if place.query and not queries:
        raise HostMismatch(f"{path} of {type(host).__name__} has no {' or '.join(place.query)} to read queries from")
    heads = next(getattr(attention, name) for name in place.heads if hasattr(attention, name))
    width = query_width(attention, heads)
    is_outside = place.sink.startswith("^")
    parent = path.rpartition(".")[0] if is_outside else path
    # A layer that all heads share is told by its place: what it is given has the heads in an axis of their own.
    layout = "merged" if queries and queries[0].startswith("to_q") else place.layout
    keys = submodule(attention, place.keys)
    return Site(
        name=path,
        index=index,
        block=".".join(path.split(".")[: place.block]),
        query_width=width,
        key_width=keys.in_features if keys is not None else width,
        num_heads=heads,
        text_keys=f"{path}.{place.keys}",
        reads=tuple(f"{path}.{name}" for name in (*queries[:1], *place.also_reads)),
        layout=layout,
        sink=f"{parent}.{place.sink.lstrip('^')}".rstrip("."),
        own_keys=tuple(f"{path}.{name}" for name in _own_keys(attention, place)),
        **{field.name: getattr(place, field.name) for field in fields(Tapping)},
    )


def _own_keys(attention: Any, place: Place) -> list[str]:
    """The layers that make the host's own keys; none where one is missing, or where they do not tell all."""
    there = [[name for name in names if submodule(attention, name) is not None] for names in place.own]
    known = {name for names in place.own for name in names}
    has_more = any(submodule(attention, name) is not None for name in {*FURTHER} - known)
    return [names[0] for names in there] if all(there) and not has_more else []


def query_width(attention: Any, num_heads: int) -> int:
    """Width of an attention's queries, all heads together."""
    layers = (submodule(attention, name) for name in ("to_q", "to_query"))
    layer = next((layer for layer in layers if layer is not None), None)
    if layer is not None:
        return layer.out_features
    inner = getattr(attention, "inner_dim", None)
    return inner if inner is not None else attention.head_dim * num_heads
