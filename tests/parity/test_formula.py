"""Equation 5 of arXiv 2308.06721, written out with a softmax, against every site of a host."""

from typing import Any

import pytest
import torch
from torch import Tensor

from imprompt.adapter.attach import attach
from tests import tiny


def attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax(Q K^T / sqrt d) V, for [batch, heads, length, head]."""
    scores = query @ keys.transpose(-1, -2) / query.shape[-1] ** 0.5
    return torch.softmax(scores, dim=-1) @ values


def heads(x: Tensor, count: int) -> Tensor:
    batch, length, width = x.shape
    return x.reshape(batch, length, count, width // count).permute(0, 2, 1, 3)


def by_hand(site: Any, hidden: Tensor, text: Tensor, adapter: Any, branches: Any) -> Tensor:
    """One site's output, in float64: text and images each with their own softmax, summed before the out projection."""
    weight = {name: parameter.double() for name, parameter in site.named_parameters()}
    query = heads(hidden @ weight["to_q.weight"].T, site.heads)
    keys, values = (heads(text @ weight[f"{name}.weight"].T, site.heads) for name in ("to_k", "to_v"))
    total = attention(query, keys, values)
    for branch, scale in branches:
        keys, values = (
            heads(branch.tokens.double() @ getattr(adapter, name).weight.double().T, site.heads)
            for name in ("to_k_ip", "to_v_ip")
        )
        total = total + scale * attention(query, keys, values)
    merged = total.permute(0, 2, 1, 3).flatten(2)
    return merged @ weight["to_out.0.weight"].T + weight["to_out.0.bias"]


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "taps"])
@pytest.mark.parametrize("family", [*tiny.FAMILIES, "sdxl_70"])
def test_every_site(family: str, fuse: bool) -> None:
    host = tiny.unet(family)
    adapter = tiny.adapter(host, "resampler")
    seen: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def record(name: str) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any, output: Tensor) -> None:
            seen[name] = (args[0].double(), kwargs["encoder_hidden_states"].double(), output)

        return hook

    branches = [(tiny.branch(adapter, 2, weight=0.6), 0.6), (tiny.branch(adapter, 2, weight=-1.3, seed=4), -1.3)]
    with attach(host, adapter, fuse=fuse) as images:
        images.set(tiny.conditioning(*(branch for branch, _scale in branches)))
        for site in images.sites:
            host.get_submodule(site.name).register_forward_hook(record(site.name), with_kwargs=True)
        tiny.call(host, tiny.host_inputs(host, 2))
        sites = images.sites
    assert len(seen) == len(sites) >= 16
    for site in sites:
        hidden, text, output = seen[site.name]
        wanted = by_hand(host.get_submodule(site.name), hidden, text, adapter.ip_adapter[str(site.index)], branches)
        torch.testing.assert_close(output.double(), wanted, atol=1e-5, rtol=1e-5)
