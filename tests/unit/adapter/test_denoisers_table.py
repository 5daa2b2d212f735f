"""The table of denoisers covers the installed diffusers, and its tiny models are fit to test with."""

import pytest
import torch

from tests.denoisers import DENOISERS, ENTRIES, GROUPS, NOT_BUILT, all_denoiser_classes

LARGE = {"HunyuanVideo15Transformer3DModel"}  # projects one of its texts through a fixed width of 2048


def test_every_class_of_diffusers_has_one_entry() -> None:
    names = [entry.name for entry in ENTRIES]
    assert sorted(names) == all_denoiser_classes()


def test_what_is_not_built_says_why() -> None:
    assert set(NOT_BUILT) == {"MotionAdapter", "UniDiffuserModel"}
    assert all(len(reason) > 20 for reason in NOT_BUILT.values())
    assert set(DENOISERS).isdisjoint(NOT_BUILT)


def test_every_group_is_in_use() -> None:
    assert all(GROUPS.values())


@pytest.mark.parametrize("name", sorted(DENOISERS))
def test_a_call_answers_every_row_by_itself(name: str) -> None:
    """Small, never zero, the same again; a row in company comes out as it does alone, and as no other row does."""
    entry = DENOISERS[name]
    model = entry.build()
    assert type(model).__name__ == name
    assert sum(parameter.numel() for parameter in model.parameters()) < (5_000_000 if name in LARGE else 1_000_000)
    assert not any(parameter.requires_grad for parameter in model.parameters())

    rows = entry.most_rows or 2
    together = entry.call(model, entry.inputs(rows, seed=3))
    alone = [entry.call(model, entry.inputs(1, seed=3 + row)) for row in range(rows)]

    assert together.shape[0] == rows
    assert torch.isfinite(together).all()
    assert together.std() > 0.1
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together, entry.call(model, entry.inputs(rows, seed=3)), rtol=0, atol=0)
    other = entry.call(model, entry.inputs(1, seed=3 + rows))
    assert min((other - answer).abs().max() for answer in alone) > 0.1


@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "UNet2DConditionModel"])
def test_a_build_repeats_and_leaves_the_global_generator_alone(name: str) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (DENOISERS[name].build(seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
