import numpy as np
import pytest
import torch

from imprompt.core.errors import ImpromptError
from imprompt.training.loop.order import BatchOrder, generator_at
from imprompt.training.loop.schedule import learning_rate_factor


def samples_of(order, steps):
    return torch.cat([order.at(step)[1] for step in steps])


def test_every_epoch_shows_every_example_once_in_an_order_of_its_own():
    seen = samples_of(BatchOrder(10, 4, seed=0), range(5))
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_order_depends_on_seed_and_step_alone():
    assert torch.equal(BatchOrder(1000, 4, seed=1).at(7)[1], BatchOrder(1000, 4, seed=1).at(7)[1])
    assert not torch.equal(BatchOrder(1000, 4, seed=1).at(7)[1], BatchOrder(1000, 4, seed=2).at(7)[1])


@pytest.mark.parametrize("num_samples", [1, 2, 3, 17, 64, 1000])
def test_an_epoch_is_a_permutation_whatever_its_size(num_samples):
    seen = samples_of(BatchOrder(num_samples, num_samples, seed=3), range(2))
    assert sorted(seen[:num_samples].tolist()) == list(range(num_samples))
    assert sorted(seen[num_samples:].tolist()) == list(range(num_samples))


def test_every_sample_comes_to_every_place_equally_often():
    num_samples, num_epochs = 12, 600
    order = BatchOrder(num_samples, num_samples, seed=0)
    counts = np.zeros((num_samples, num_samples))
    for epoch in range(num_epochs):
        counts[np.arange(num_samples), order.at(epoch)[1].numpy()] += 1
    expected = num_epochs / num_samples
    chi_square, freedom = ((counts - expected) ** 2 / expected).sum(), (num_samples - 1) ** 2
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def test_batches_are_of_one_bucket_and_every_bucket_shows_every_sample_once_an_epoch():
    bucket_of = torch.arange(103) % 3  # 35, 34 and 34 samples
    order = BatchOrder(bucket_of, 8, seed=0)
    seen = {bucket: [] for bucket in range(3)}
    for step in range(120):
        bucket, samples = order.at(step)
        assert (bucket_of[samples] == bucket).all()
        seen[bucket] += samples.tolist()
    for bucket, samples in seen.items():
        members = torch.nonzero(bucket_of == bucket).flatten().tolist()
        for start in range(0, len(samples) - len(members), len(members)):
            assert sorted(samples[start : start + len(members)]) == members


def test_buckets_are_mixed_in_proportion_to_what_they_hold():
    order = BatchOrder((torch.arange(1000) < 250).long(), 10, seed=0)
    buckets = [order.at(step)[0] for step in range(200)]
    assert [sum(buckets[:100]), sum(buckets)] == [25, 50]
    assert len({tuple(buckets[start : start + 10]) for start in range(0, 200, 10)}) > 5


def test_a_bucket_smaller_than_a_batch_is_shown_all_the_same():
    order = BatchOrder(torch.tensor([0] * 20 + [1] * 3), 8, seed=0)
    steps = [order.at(step) for step in range(100)]
    rare = torch.cat([samples for bucket, samples in steps if bucket == 1])
    counts = torch.bincount(rare)[20:]
    assert counts.max() - counts.min() <= 1
    assert abs(len(rare) / 800 - 3 / 23) < 0.02


def test_no_samples_are_refused():
    with pytest.raises(ImpromptError, match="at least one"):
        BatchOrder(0, 4, seed=0)


def test_places_have_their_own_randomness():
    draws = {float(torch.rand(1, generator=generator_at(0, "step", step))) for step in range(20)}
    assert len(draws) == 20


def test_learning_rate_rises_then_falls_or_stays():
    options = {"num_steps": 110, "warmup_steps": 10}
    assert learning_rate_factor(4, schedule="cosine", **options) == 0.5
    assert learning_rate_factor(10, schedule="cosine", **options) == 1.0
    assert abs(learning_rate_factor(110, schedule="cosine", **options) - 0.02) < 1e-9
    assert learning_rate_factor(110, schedule="constant", **options) == 1.0
