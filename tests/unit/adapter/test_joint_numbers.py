"""The arithmetic of a shared softmax: in parts as in one, finite at every edge, with gradients that are numbers."""

import math

import pytest
import torch
from torch import Tensor

from imprompt.adapter import attention
from imprompt.adapter.attention import Share, joined, log_sum_exp, turned
from tests import tiny

QUERY, KEYS = tiny.rand(2, 4, 7, 8), tiny.rand(2, 2, 5, 8, seed=1)


@pytest.mark.parametrize("kind", ["none", "truth", "added", "of every query"])
def test_masses_in_parts_are_those_of_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = {
        "truth": torch.arange(5).view(1, 1, 1, 5) < torch.tensor([5, 2]).view(2, 1, 1, 1),
        "added": tiny.rand(2, 1, 1, 5, seed=2),
        "of every query": tiny.rand(2, 1, 7, 5, seed=3) > -0.5,
    }
    mask = masks.get(kind)
    logits = QUERY.double() @ KEYS.double().repeat_interleave(2, dim=1).transpose(-1, -2) / math.sqrt(8)
    if mask is not None:
        logits = logits + (mask if mask.is_floating_point() else mask.double().log())
    wanted = logits.exp().sum(-1, keepdim=True).log()
    for most in (2**24, 80, 1):
        monkeypatch.setattr(attention, "MOST_LOGITS", most)
        torch.testing.assert_close(log_sum_exp(QUERY, KEYS, mask).double(), wanted, atol=1e-5, rtol=1e-5)


def test_masses_are_single_precision_at_least() -> None:
    assert log_sum_exp(QUERY.bfloat16(), KEYS.bfloat16()).dtype == torch.float32
    assert log_sum_exp(QUERY.double(), KEYS.double()).dtype == torch.float64


def test_turning_keeps_lengths_and_turns_pairs() -> None:
    angles = tiny.rand(1, 1, 7, 4).repeat_interleave(2, dim=-1)
    made = turned(QUERY, angles.cos(), angles.sin())
    pairs = torch.view_as_complex(QUERY.unflatten(-1, (4, 2)).contiguous())
    wanted = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[..., ::2]).flatten(-2)
    torch.testing.assert_close(made, wanted)


def shares(weights: list[float]) -> list[Share]:
    """Of images with a mass near 1, in one row each weight."""
    log_weights = torch.tensor(weights).log().view(-1, 1, 1, 1)
    mass = tiny.rand(len(weights), 4, 7, 1, seed=4).requires_grad_(True)
    attended = tiny.rand(len(weights), 4, 7, 8, seed=5).requires_grad_(True)
    return [Share(attended=attended, log_mass=mass + log_weights, apart=torch.zeros(len(weights), 1, 1, 1))]


def test_no_weight_is_no_change_and_all_weight_is_the_image_alone() -> None:
    own, own_mass = tiny.rand(3, 4, 7, 8), tiny.rand(3, 4, 7, 1, seed=6)
    (share,) = shares([0.0, 1e-30, 1e30])
    added: Tensor = joined([share], own, own_mass)
    assert torch.equal(own[0] + added[0], own[0])
    torch.testing.assert_close(own + added, torch.cat([own[:2], share.attended[2:]]))
    of_attended, of_mass = torch.autograd.grad(added.square().sum(), [share.attended, share.log_mass])
    assert of_attended.isfinite().all() and of_mass.isfinite().all()
    assert not of_attended[0].any() and of_attended[2].any()
