"""One softmax over what a host attends to and over images, at every place whose own keys are known."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from imprompt.adapter.attach import attach
from imprompt.adapter.conditioning import Branch, Conditioning
from imprompt.adapter.sites import Site, submodule
from imprompt.core.errors import ConditioningError
from tests.denoisers.attached import ATTACHABLE, Attachable, attachable
from tests.denoisers.recorded import at_site, first_of_every_place, merged, record, recorded_with, rows_of

WEIGHTS = ([0.6, 1.7], [2.0, 0.0])


@pytest.fixture(scope="module", params=ATTACHABLE)
def host(request: pytest.FixtureRequest) -> Attachable:
    return attachable(request.param)


def images(host: Attachable) -> list[Branch]:
    """Two of them, of other weights in every row, and a third beside them with a softmax of its own."""
    every = torch.ones(host.rows, dtype=torch.bool)
    shared = [
        dataclasses.replace(_seeded(host, seed, weights[: host.rows]), joint=every)
        for seed, weights in enumerate(WEIGHTS)
    ]
    return [*shared, _seeded(host, 2, [0.5] * host.rows)]


def _seeded(host: Attachable, seed: int, weights: list[float]) -> Branch:
    return host.branch(seed=seed, weight=weights)


def test_one_softmax_over_all_keys(host: Attachable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written out in float64, of what the host itself hands to its attention at the first site of every place.

    Hosts whose keys are not known refuse it.
    """
    if (unknown := next((site.name for site in host.sites if not site.own_keys), None)) is not None:
        with attach(host.model, host.adapter) as attachment:
            with pytest.raises(ConditioningError, match=f"'joint softmax' needs the keys .* those of {unknown}"):
                attachment.set(Conditioning(branches=tuple(images(host)), rows=host.rows))
        return
    for site in first_of_every_place(host.sites):
        branches = [at_site(branch, host, site) for branch in images(host)]
        query, keys, values, mask, read, sink = _asked(host, site, monkeypatch)
        output = rows_of(recorded_with(host, site, 3, *branches)["sink"])
        plain = functional.scaled_dot_product_attention(query, keys, values, mask).transpose(1, 2).flatten(2)
        width, acts = plain.shape[-1], (output - sink).abs().amax(-1) > 0
        start = _offset(plain, sink[..., :width])
        places = slice(start, start + sink.shape[1])
        read = read if read.shape[1] == sink.shape[1] else read[:, places]
        wanted = _by_hand(host, site, (query[:, :, places], keys, values, _rows(mask, places)), read, branches)
        assert acts.any()
        scale = float(sink.abs().max())
        torch.testing.assert_close(
            output[..., :width][acts].double(), wanted[acts], rtol=1e-4, atol=1e-5 * scale, msg=site.name
        )


def _asked(host: Attachable, site: Site, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """What the host hands to its attention at a site, the queries as they are read, and what its sink is given."""
    calls: list[Any] = []
    attend = functional.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *args: Any, **options: Any) -> Tensor:
        calls.append((query, key, value, attn_mask))
        return attend(query, key, value, attn_mask, *args, **options)

    found: list[Any] = []
    sink = submodule(host.model, site.sink).register_forward_pre_hook(lambda *_: found.append(calls[-1]))
    with monkeypatch.context() as patch:
        patch.setattr(functional, "scaled_dot_product_attention", spy)
        seen = record(host, site, host.inputs(seed=3))
    sink.remove()
    query, keys, values, mask = found[0]
    many = query.shape[1] // keys.shape[1]
    keys, values = (each.repeat_interleave(many, dim=1) for each in (keys, values))
    return query, keys, values, mask, merged(seen["query"], site), rows_of(seen["sink"])


def _offset(plain: Tensor, sink: Tensor) -> int:
    """Where in the host's sequence that begins which its sink is given."""
    starts = range(plain.shape[1] - sink.shape[1] + 1)
    close = [start for start in starts if torch.allclose(plain[:, start : start + sink.shape[1]], sink, atol=1e-5)]
    assert close, "the sink is given more than attention"
    return close[0]


def _rows(mask: Tensor | None, places: slice) -> Tensor | None:
    return mask if mask is None or mask.shape[-2] == 1 else mask[..., places, :]


def _by_hand(host: Attachable, site: Site, own: Any, read: Tensor, branches: list[Branch]) -> Tensor:
    """[batch, length, heads * head] of a softmax over all keys at once, and of the last image apart from it."""
    query, keys, values, mask = (each if each is None or each.dtype == torch.bool else each.double() for each in own)
    logits, all_values = [query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5], [values]
    if mask is not None:
        mask = mask.to(torch.float64).log() if mask.dtype == torch.bool else mask
        logits[0] = logits[0] + mask
    part: Any = host.adapter.ip_adapter[str(site.index)]
    heads = read.double().unflatten(-1, (site.num_heads, -1)).transpose(1, 2)
    apart: Any = None
    for branch in branches:
        frames = len(query) // host.rows
        made = [layer(branch.tokens).double().repeat_interleave(frames, 0) for layer in (part.to_k_ip, part.to_v_ip)]
        key, value = (each.unflatten(-1, (site.num_heads, -1)).transpose(1, 2) for each in made)
        weight = branch.scale[0].amax(0).double().repeat_interleave(frames).view(-1, 1, 1, 1)
        image = heads @ key.transpose(-1, -2) * heads.shape[-1] ** -0.5
        if branch.joint is None:
            apart = weight * (image.softmax(-1) @ value)
        else:
            logits.append(image + weight.log())
            all_values.append(value)
    output = torch.cat(logits, -1).softmax(-1) @ torch.cat(all_values, 2) + apart
    return output.transpose(1, 2).flatten(2)
