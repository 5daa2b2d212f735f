import torch

from imprompt.training.order import batch_indices, generator_at
from imprompt.training.schedule import learning_rate_factor


def test_every_epoch_shows_every_example_once_in_an_order_of_its_own():
    seen = torch.cat([batch_indices(step, 4, 10, seed=0) for step in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_order_depends_on_seed_and_step_alone():
    assert torch.equal(batch_indices(7, 4, 10, seed=1), batch_indices(7, 4, 10, seed=1))
    assert not torch.equal(batch_indices(7, 4, 1000, seed=1), batch_indices(7, 4, 1000, seed=2))


def test_places_have_their_own_randomness():
    draws = {float(torch.rand(1, generator=generator_at(0, "step", step))) for step in range(20)}
    assert len(draws) == 20


def test_learning_rate_rises_then_falls_or_stays():
    options = {"num_steps": 110, "warmup_steps": 10}
    assert learning_rate_factor(4, schedule="cosine", **options) == 0.5
    assert learning_rate_factor(10, schedule="cosine", **options) == 1.0
    assert abs(learning_rate_factor(110, schedule="cosine", **options) - 0.02) < 1e-9
    assert learning_rate_factor(110, schedule="constant", **options) == 1.0
