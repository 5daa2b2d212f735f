"""Arithmetic with features."""

import pytest
import torch

from imprompt.core.errors import PromptError
from imprompt.prompts.embeds import (
    combine,
    concept_basis,
    interpolate,
    project_in,
    project_out,
    replace_concept,
    subtract,
)
from tests import tiny

A, B, C = tiny.rand(3, 8, seed=1)
SEVERAL = torch.stack([A, B, C])


def close(one, other):
    return torch.allclose(one, other, atol=1e-5)


def test_ways_to_combine():
    assert combine(SEVERAL, "concat") is SEVERAL
    assert close(combine(SEVERAL, "average")[0], (A + B + C) / 3)
    assert close(combine(SEVERAL, "add")[0], A + B + C)
    assert close(combine(SEVERAL, "subtract")[0], A - (B + C) / 2)
    assert close(combine(A[None], "subtract")[0], A)


def test_weights_of_a_combination():
    assert close(combine(SEVERAL, "average", [1.0, 3.0, 0.0])[0], (A + 3 * B) / 4)
    assert close(combine(SEVERAL, "add", [1.0, 0.5, -1.0])[0], A + 0.5 * B - C)
    with pytest.raises(PromptError, match="add up to nothing"):
        combine(SEVERAL, "average", [1.0, -1.0, 0.0])


def test_a_normalised_average_is_over_each_pictures_features():
    """Not over pictures, which would leave the signs alone."""
    assert close(combine(torch.stack([A, A]), "normalised average")[0], A)
    mean = combine(torch.stack([A, 100 * B]), "normalised average")[0]
    wanted = (A / A.norm() + B / B.norm()) / 2 * (A.norm() + 100 * B.norm()) / 2
    assert close(mean / wanted.norm(), wanted / wanted.norm())
    tokens = tiny.rand(2, 5, 8)
    each = combine(tokens, "normalised average")[0]
    assert close(each[3], combine(tokens[:, 3], "normalised average")[0])


def test_an_unknown_way_names_the_nearest():
    with pytest.raises(PromptError, match="did you mean 'average'"):
        combine.__wrapped__(SEVERAL, "avarage")  # pyright: ignore


def test_subtraction_of_a_text():
    assert close(subtract(A, B, 0.5), A - 0.5 * B)
    assert close(subtract(SEVERAL, torch.stack([B, C])), SEVERAL - (B + C) / 2)


def test_a_concept_is_taken_out_and_put_in():
    directions = torch.linalg.qr(tiny.rand(8, 2, seed=5))[0].T
    examples = tiny.rand(50, 2, seed=6) @ directions
    basis = concept_basis(examples, 2)
    assert close(basis @ basis.T, torch.eye(2))
    assert project_out(examples, basis).abs().max() < 1e-4
    assert close(project_in(A, basis) + project_out(A, basis), A)
    mixed = replace_concept(A, basis, B)
    assert close(project_in(mixed, basis), project_in(B, basis))
    assert close(project_out(mixed, basis), project_out(A, basis))
    with pytest.raises(PromptError, match="rank is 9; with 50 examples it can be 1 to 8"):
        concept_basis(examples, 9)


def test_interpolation_is_on_an_arc():
    assert close(interpolate(A, B, 0.0), A) and close(interpolate(A, B, 1.0), B)
    unit_a, unit_b = A / A.norm(), B / B.norm()
    assert interpolate(unit_a, unit_b, 0.3).norm() == pytest.approx(1.0, abs=1e-5)
    assert close(interpolate(A, 2 * A, 0.5), 1.5 * A)
    assert interpolate(A, -A, 0.25).isfinite().all()
    assert interpolate(tiny.rand(2, 5, 8), tiny.rand(2, 5, 8, seed=1), 0.5).shape == (2, 5, 8)
