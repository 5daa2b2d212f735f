"""Rows of a batch do not know each other: each equals its own single run."""

from typing import Any

import pytest
import torch
from torch import Tensor

from imprompt.adapter.attach import attach
from imprompt.adapter.conditioning import Branch, Conditioning
from tests import tiny

CASES = [(family, kind) for family in tiny.FAMILIES for kind in tiny.PROJECTORS]
WEIGHTS = (1.0, 0.4, 0.0, -0.6)


@pytest.fixture(params=[True, False], ids=["fused", "taps"])
def fuse(request: pytest.FixtureRequest) -> bool:
    return request.param


def single(tokens: Tensor, weight: float, num_sites: int, region: Tensor | None = None) -> Branch:
    return Branch(
        tokens=tokens[None],
        null_tokens=None,
        scale=torch.full((1, num_sites, 1), weight),
        region=None if region is None else region[None],
    )


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_rows_equal_their_own_runs(family: str, kind: str, fuse: bool) -> None:
    """Other images, weights, token counts and regions in every row, and a row without any image."""
    host = tiny.unet(family)
    adapter = tiny.adapter(host, kind)
    num_sites = len(adapter.spec.site_indices)
    rows = len(WEIGHTS) + 1
    inputs = tiny.host_inputs(host, rows)
    tokens = adapter.project(tiny.features(adapter, rows))
    length = tokens.shape[1]
    counts = [length, length - 1, length, 2, 0]
    regions = tiny.rand(rows, 16, 16, seed=6).sigmoid()
    mask = torch.arange(length)[None] < torch.tensor(counts)[:, None]
    together = Branch(
        tokens=torch.where(mask[..., None], tokens, 1e4),  # what is masked must not matter
        null_tokens=None,
        scale=torch.tensor([*WEIGHTS, 0.0]).expand(1, num_sites, rows),
        region=regions,
        token_mask=mask,
    )
    plain = tiny.call(host, inputs)
    with attach(host, adapter, fuse=fuse) as images:
        images.set(Conditioning(branches=(together,), rows=rows))
        output = tiny.call(host, inputs)
        for row, count in enumerate(counts[:-1]):
            alone = single(tokens[row, :count], WEIGHTS[row], num_sites, regions[row])
            images.set(Conditioning(branches=(alone,), rows=1))
            wanted = tiny.call(host, tiny.row_of(inputs, row))[0]
            torch.testing.assert_close(output[row], wanted, atol=1e-5, rtol=1e-5)
            assert ((output[row] - plain[row]).abs().max() > 1e-3) == (WEIGHTS[row] != 0)
    assert torch.equal(output[-1], plain[-1])
    assert output.isfinite().all()


def test_rows_with_other_numbers_of_prompts(fuse: bool) -> None:
    """Two prompts in the first row, one in the second, none in the third."""
    host = tiny.unet()
    adapter = tiny.adapter(host)
    inputs = tiny.host_inputs(host, 3)
    first = tiny.branch(adapter, 3, weight=[0.9, 0.5, 0.0])
    second = tiny.branch(adapter, 3, weight=[0.7, 0.0, 0.0], seed=4)
    plain = tiny.call(host, inputs)
    sites = len(adapter.spec.site_indices)
    with attach(host, adapter, fuse=fuse) as images:
        images.set(tiny.conditioning(first, second))
        output = tiny.call(host, inputs)
        for row, weights in enumerate([(0.9, 0.7), (0.5,)]):
            parts = zip((first, second), weights, strict=False)
            branches = tuple(single(part.tokens[row], weight, sites) for part, weight in parts)
            images.set(Conditioning(branches=branches, rows=1))
            wanted = tiny.call(host, tiny.row_of(inputs, row))[0]
            torch.testing.assert_close(output[row], wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(output[2], plain[2])


def test_rows_of_two_adapters(fuse: bool) -> None:
    """The first row has a picture through one adapter, the second through another."""
    host = tiny.unet()
    adapters = (tiny.adapter(host), tiny.adapter(host, "resampler", seed=3))
    inputs = tiny.host_inputs(host, 2)
    branches = [
        tiny.branch(adapters[0], 2, weight=[1.0, 0.0]),
        tiny.branch(adapters[1], 2, weight=[0.0, 1.0], number=1),
    ]
    with attach(host, *adapters, fuse=fuse) as images:
        images.set(tiny.conditioning(*branches))
        output = tiny.call(host, inputs)
    for row, (adapter, branch) in enumerate(zip(adapters, branches, strict=True)):
        with attach(host, adapter) as images:
            alone = single(branch.tokens[row], 1.0, len(adapter.spec.site_indices))
            images.set(Conditioning(branches=(alone,), rows=1))
            wanted = tiny.call(host, tiny.row_of(inputs, row))[0]
        torch.testing.assert_close(output[row], wanted, atol=1e-5, rtol=1e-5)


def test_batch_size_may_change_between_calls(fuse: bool) -> None:
    host = tiny.unet()
    adapter = tiny.adapter(host)
    with attach(host, adapter, fuse=fuse) as images:
        images.set(tiny.conditioning(tiny.branch(adapter)))
        wanted = {rows: tiny.call(host, tiny.host_inputs(host, rows)) for rows in (1, 3)}
        for rows in (3, 1, 3):
            assert torch.equal(tiny.call(host, tiny.host_inputs(host, rows)), wanted[rows])


def test_size_may_change_between_calls(fuse: bool) -> None:
    """A region follows the latent's size, sizes that do not halve evenly included."""
    host = tiny.unet()
    adapter = tiny.adapter(host)
    region = torch.zeros(1, 50, 70)
    region[:, :, :35] = 1
    for size in [(16, 24), (17, 15), (24, 16), (16, 24)]:
        inputs: dict[str, Any] = tiny.host_inputs(host, size=size)
        with attach(host, adapter, fuse=fuse) as images:
            images.set(tiny.conditioning(tiny.branch(adapter, region=region)))
            fresh = tiny.call(host, inputs)
    with attach(host, adapter, fuse=fuse) as images:
        images.set(tiny.conditioning(tiny.branch(adapter, region=region)))
        for size in [(17, 15), (24, 16), (16, 24)]:
            output = tiny.call(host, tiny.host_inputs(host, size=size))
    assert torch.equal(output, fresh)
