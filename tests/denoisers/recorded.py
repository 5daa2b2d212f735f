"""What passes through a site of a tiny denoiser, recorded by hooks of the tests' own."""

import dataclasses
import re
from typing import Any

import torch
from torch import Tensor

from imprompt.adapter.attach import attach
from imprompt.adapter.conditioning import Branch, Conditioning
from imprompt.adapter.sites import Site, submodule
from tests.denoisers.attached import Attachable


def first_of_every_place(sites: tuple[Site, ...]) -> list[Site]:
    """One site for every path that differs in numbers alone."""
    return list({re.sub(r"\d+", "{}", site.name): site for site in reversed(sites)}.values())


def record(host: Attachable, site: Site, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The query and what the sink is given, by hooks of the test's own, which come after the adapter's."""
    seen: dict[str, Tensor] = {}

    def query(_module: Any, _inputs: Any, output: Tensor) -> None:
        seen["query"] = output.clone()

    def sink(_module: Any, given: tuple[Tensor, ...]) -> None:
        seen["sink"] = given[0].clone()

    hooks = (
        submodule(host.model, site.reads[0]).register_forward_hook(query),
        submodule(host.model, site.sink).register_forward_pre_hook(sink),
    )
    host.entry.call(host.model, inputs)
    for hook in hooks:
        hook.remove()
    return seen


def with_and_without(host: Attachable, site: Site, seed: int, **fields: Any) -> tuple[Any, Any, Any]:
    """What is recorded without an image, and with one at this site alone; and the image, with fields of its own."""
    plain = record(host, site, host.inputs(seed=seed))
    branch = at_site(dataclasses.replace(host.branch(), **fields), host, site)
    return plain, recorded_with(host, site, seed, branch), branch


def at_site(branch: Branch, host: Attachable, site: Site) -> Branch:
    """The same image, acting at one site alone."""
    here = torch.tensor([float(each.index == site.index) for each in host.sites])
    return dataclasses.replace(branch, scale=branch.scale * here[None, :, None])


def recorded_with(host: Attachable, site: Site, seed: int, *branches: Branch) -> dict[str, Tensor]:
    """What is recorded with images."""
    with attach(host.model, host.adapter) as attachment:
        attachment.set(Conditioning(branches=branches, rows=host.rows))
        return record(host, site, host.inputs(seed=seed))


def rows_of(sequence: Tensor) -> Tensor:
    """[batch, length, width], also of a single packed row."""
    return sequence if sequence.ndim == 3 else sequence[None]


def merged(query: Tensor, site: Site) -> Tensor:
    """[batch, length, heads * head], told by the shape: no tiny host has as many tokens as heads."""
    heads = site.num_heads
    if query.ndim == 3:
        return query if query.shape[-1] == site.query_width else query.flatten(1)[None]
    assert (query.shape[1] == heads) != (query.shape[2] == heads)
    return (query.transpose(1, 2) if query.shape[1] == heads else query).flatten(2)
