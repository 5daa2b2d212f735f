"""Small functions of numbers: guidance layouts, the clock, feature map sizes, masks, conditioning."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from imprompt.adapter.attention import level_size, merge_heads, region_weight, split_heads
from imprompt.adapter.bank import build_bank
from imprompt.adapter.clock import progress_bins, run_timesteps
from imprompt.adapter.conditioning import NUM_PROGRESS, Branch, Conditioning
from imprompt.adapter.families.unet import find_sites
from imprompt.adapter.guidance import LAYOUTS, bank_rows, layout_of
from imprompt.core.errors import ConditioningError
from tests import tiny


@pytest.mark.parametrize(
    ("layout", "rows", "batch", "wanted"),
    [
        ("none", 1, 1, (0,)),
        ("none", 1, 3, (0, 0, 0)),
        ("none", 2, 4, (0, 0, 1, 1)),
        ("cfg", 1, 2, (1, 0)),
        ("cfg", 1, 6, (1, 1, 1, 0, 0, 0)),
        ("cfg", 2, 4, (2, 3, 0, 1)),
        ("cfg", 2, 8, (2, 2, 3, 3, 0, 0, 1, 1)),
        ("pag", 2, 4, (0, 1, 0, 1)),
        ("cfg+pag", 1, 3, (1, 0, 0)),
        ("cfg+pag", 2, 6, (2, 3, 0, 1, 0, 1)),
        ("pix2pix", 2, 6, (0, 1, 2, 3, 2, 3)),
    ],
)
def test_bank_rows(layout: str, rows: int, batch: int, wanted: tuple[int, ...]) -> None:
    assert bank_rows(layout, rows=rows, batch=batch) == wanted


@pytest.mark.parametrize(("layout", "rows", "batch"), [("cfg", 1, 3), ("cfg", 2, 6), ("none", 2, 3), ("cfg+pag", 1, 4)])
def test_batches_that_do_not_fit_are_named(layout: str, rows: int, batch: int) -> None:
    with pytest.raises(ConditioningError, match=f"batch of {batch}"):
        bank_rows(layout, rows=rows, batch=batch)


@pytest.mark.parametrize(
    ("guided", "perturbed", "wanted"),
    [(False, False, "none"), (True, False, "cfg"), (False, True, "pag"), (True, True, "cfg+pag"), (True, None, "cfg")],
)
def test_layout_of(guided: bool, perturbed: bool | None, wanted: str) -> None:
    pipe = SimpleNamespace(do_classifier_free_guidance=guided)
    if perturbed is not None:
        pipe.do_perturbed_attention_guidance = perturbed
    assert layout_of(pipe) == wanted
    assert wanted in LAYOUTS


def clock_pipe(timesteps: list[float], **more: Any) -> Any:
    begin = more.pop("begin_index", None)
    return SimpleNamespace(scheduler=SimpleNamespace(timesteps=torch.tensor(timesteps), begin_index=begin), **more)


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({}, [40, 30, 20, 10]),
        ({"_num_timesteps": 4}, [40, 30, 20, 10]),
        ({"_num_timesteps": 2}, [20, 10]),
        ({"_num_timesteps": 2, "denoising_end": 0.5}, [40, 30]),
        ({"_num_timesteps": 2, "denoising_end": None}, [20, 10]),
        ({"_num_timesteps": 2, "denoising_end": 0.9, "denoising_start": 0.5}, [20, 10]),
        ({"_num_timesteps": 2, "begin_index": 1, "denoising_end": 0.8}, [30, 20]),
        ({"_num_timesteps": 2, "begin_index": 0}, [40, 30]),
    ],
)
def test_run_timesteps(more: dict[str, Any], wanted: list[int]) -> None:
    assert run_timesteps(clock_pipe([40, 30, 20, 10], **more)).tolist() == wanted


def test_no_run_is_named() -> None:
    with pytest.raises(ConditioningError, match="attach to the pipeline instead of its denoiser"):
        run_timesteps(None)


@pytest.mark.parametrize("kind", [torch.int64, torch.float32])
def test_progress(kind: torch.dtype) -> None:
    timesteps = torch.tensor([901, 601, 301, 1], dtype=kind)
    bins = [int(progress_bins(timesteps, timestep)) for timestep in timesteps]
    assert bins == [0, 250, 500, 750]
    assert progress_bins(timesteps, torch.tensor([301, 901], dtype=kind)).tolist() == [500, 0]


def test_progress_of_timesteps_that_are_close() -> None:
    timesteps = torch.tensor([999.0, 3.0002, 3.0001, 3.0])
    assert [int(progress_bins(timesteps, each)) for each in timesteps] == [0, 250, 500, 750]


@pytest.mark.parametrize("steps", [1, 3, 7, 30, 50, 333, 999, 1000])
def test_windows_split_every_number_of_steps(steps: int) -> None:
    """Two windows that meet share no step and leave none out; each has its part of the steps, to the nearest."""
    timesteps = torch.arange(steps, 0, -1)
    bins = torch.cat([progress_bins(timesteps, each) for each in timesteps])
    for cut in (0.1, 0.25, 0.3, 0.5, 0.7):
        first, second = tiny.window(0.0, cut)[bins], tiny.window(cut, 1.0)[bins]
        assert torch.equal(first + second, torch.ones(steps))
        assert abs(float(first.sum()) - steps * cut) <= 1


@pytest.mark.parametrize(
    ("size", "num_queries", "wanted"),
    [
        ((64, 64), 4096, (64, 64)),
        ((64, 64), 1024, (32, 32)),
        ((64, 64), 64, (8, 8)),
        ((96, 64), 24, (6, 4)),
        ((65, 64), 33 * 32, (33, 32)),
        ((65, 63), 17 * 16, (17, 16)),
        ((1, 1), 1, (1, 1)),
        ((64, 64), 77, None),
        ((64, 64), 8192, None),
    ],
)
def test_level_size(size: tuple[int, int], num_queries: int, wanted: tuple[int, int] | None) -> None:
    assert level_size(size, num_queries) == wanted


@pytest.mark.parametrize("size", [(16, 16), (17, 16), (19, 21), (16, 40), (33, 9)])
def test_level_size_is_that_of_the_hosts_levels(size: tuple[int, int]) -> None:
    """Whatever the latent's size, the queries of every site belong to a level, and its true one."""
    host = tiny.unet()
    seen: list[tuple[int, int]] = []
    for name, module in host.named_modules():
        if name.endswith(("attentions.0", "attentions.1", "attentions.2")):
            module.register_forward_pre_hook(lambda _module, args: seen.append(tuple(args[0].shape[2:])))
    tiny.call(host, tiny.host_inputs(host, size=size))
    assert len(seen) == 16
    for level in seen:
        assert level_size(size, level[0] * level[1]) == level


def test_region_weight_averages_cells() -> None:
    region = torch.zeros(1, 4, 4)
    region[0, 0, 0] = 1
    assert region_weight(region, (2, 2)).flatten().tolist() == [0.25, 0, 0, 0]
    assert region_weight(region, (8, 8)).shape == (1, 1, 64, 1)


def test_heads() -> None:
    x = tiny.rand(2, 5, 12)
    split = split_heads(x, 3)
    assert split.shape == (2, 3, 5, 4)
    assert torch.equal(split[1, 2, 3], x[1, 3, 8:12])
    assert torch.equal(merge_heads(split), x)


def some_branch(rows: int = 2, **changes: Any) -> Branch:
    fields: dict[str, Any] = {"tokens": torch.ones(rows, 4, 8), "null_tokens": None, "scale": torch.ones(1, 3, rows)}
    return Branch(**{**fields, **changes})


def test_conditioning_checks_rows_steps_and_numbers(unchecked: None) -> None:
    with pytest.raises(ConditioningError, match="2 rows.*expected 3"):
        Conditioning(branches=(some_branch(),), rows=3)
    with pytest.raises(ConditioningError, match="scales for 5"):
        Conditioning(branches=(some_branch(scale=torch.ones(1, 3, 5)),), rows=2)
    with pytest.raises(ConditioningError, match=f"7 steps.*{NUM_PROGRESS}"):
        Conditioning(branches=(some_branch(scale=torch.ones(7, 3, 2)),), rows=2)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ConditioningError, match="finite"):
            Conditioning(branches=(some_branch(scale=torch.full((1, 3, 2), bad)),), rows=2)


@pytest.mark.parametrize(
    "changes",
    [
        {"region": torch.ones(3, 4, 4)},
        {"token_mask": torch.ones(2, 5, dtype=torch.bool)},
        {"token_mask": torch.ones(3, 4, dtype=torch.bool)},
        {"null_tokens": torch.ones(2, 5, 8)},
        {"null_tokens": torch.ones(1, 4, 8)},
        {"region": torch.full((2, 4, 4), torch.nan)},
    ],
    ids=["region rows", "mask tokens", "mask rows", "null tokens", "null rows", "nan region"],
)
def test_conditioning_checks_parts_against_each_other(changes: dict[str, Any], unchecked: None) -> None:
    with pytest.raises(ConditioningError):
        Conditioning(branches=(some_branch(**changes),), rows=2)


def test_bank_holds_positive_rows_then_negative_ones() -> None:
    host = tiny.unet()
    adapter = tiny.adapter(host)
    sites = find_sites(host)
    branch = tiny.branch(adapter, 2, weight=[0.5, 2.0])
    bank = build_bank(adapter, branch, sites, device=torch.device("cpu"), dtype=torch.float32)
    assert len(bank.keys) == len(sites) and bank.rows == 2 and bank.has_null and bank.schedule is None
    keys, values = adapter.keys_values(torch.cat([branch.tokens, branch.null_tokens]))[5]
    factor = torch.tensor([0.5, 2.0, 0.5, 2.0]).view(-1, 1, 1, 1)
    bound = bank.bind(torch.arange(4), None)
    assert torch.allclose(bound.keys[5], split_heads(keys, 2), atol=1e-6)
    assert torch.allclose(bound.values[5], split_heads(values, 2) * factor, atol=1e-6)
    for rows in ((2, 0), (2, 3, 0, 1), (0, 1), (3,), (1, 1, 0, 0)):
        for told in (None, rows):
            picked = bank.bind(torch.tensor(rows), None, rows=told)
            assert torch.equal(picked.keys[5], bound.keys[5][list(rows)])
            assert torch.equal(picked.values[5], bound.values[5][list(rows)])


def test_guidance_reads_keys_and_values_where_they_lie() -> None:
    """Negative rows, then positive ones, or one of both halves: nothing is copied."""
    host = tiny.unet()
    adapter = tiny.adapter(host)
    branch = tiny.branch(adapter, 2)
    bank = build_bank(adapter, branch, find_sites(host), device=torch.device("cpu"), dtype=torch.float32)
    start = bank.keys[5].data_ptr()
    for rows, offset in (((2, 3, 0, 1), 0), ((2, 3), 0), ((0, 1), 2)):
        picked = bank.bind(torch.tensor(rows), None, rows=rows)
        assert picked.keys[5].data_ptr() == start + offset * bank.keys[5][0].numel() * 4


def test_scale_of_each_site() -> None:
    host = tiny.unet()
    adapter = tiny.adapter(host)
    sites = find_sites(host)
    scale = torch.arange(len(sites)).float().view(1, -1, 1)
    plain = tiny.branch(adapter)
    branch = Branch(tokens=plain.tokens, null_tokens=None, scale=scale)
    bank = build_bank(adapter, branch, sites, device=torch.device("cpu"), dtype=torch.float32)
    for number, (_keys, values) in enumerate(adapter.keys_values(plain.tokens)):
        assert torch.allclose(bank.values[number], split_heads(values, 2) * number, atol=1e-5)
