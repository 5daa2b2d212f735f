import math
from dataclasses import dataclass, replace

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn

from imprompt.training.config import ObjectiveConfig
from imprompt.training.feedback.validation import estimate, plan_validation, rounds, shuffled_references, validate
from imprompt.training.loop.distributed import Processes
from imprompt.training.objective.noise import noise_process
from imprompt.training.objective.objective import row_errors

SHAPE = (2, 4, 4)


@dataclass(frozen=True)
class Batch:
    clean: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    references: torch.Tensor
    no_image: torch.Tensor


class Toy:
    """Pictures of one grey each, which the reference tells: the denoiser trusts it as far as its one weight says.

    The predicted noise is `(x_t - a w r) / s`, whose squared error is `snr (x - w r)^2` whatever the noise.
    """

    def __init__(self, greys, weight, scheduler=None):
        self.greys = torch.tensor(greys)
        self.noise = noise_process(scheduler or DDPMScheduler(beta_schedule="scaled_linear"), ObjectiveConfig())
        self.model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Dropout(0.5))
        self.model[0].weight.data.fill_(weight)
        self.draws = []

    def batch(self, draw):
        self.draws.append(draw)
        greys = self.greys[draw.samples]
        clean = greys[:, None, None, None].expand(-1, *SHAPE).clone()
        dropped = torch.ones(len(greys), dtype=torch.bool)  # as training may have drawn
        return Batch(clean, self.noise.noise(draw, SHAPE), self.noise.draw(draw), greys, dropped)

    def without_dropout(self, batch):
        return replace(batch, no_image=torch.zeros_like(batch.no_image))

    def with_timesteps(self, batch, timesteps):
        return replace(batch, timesteps=timesteps)

    def with_references(self, batch, permutation):
        return replace(batch, references=batch.references[permutation])

    def row_losses(self, batch):
        assert not torch.is_grad_enabled()
        noisy = self.noise.add(batch.clean, batch.noise, batch.timesteps)
        trusted = self.model(batch.references[:, None] * ~batch.no_image[:, None])[:, :, None, None]
        alphas = self.noise.alphas_cumprod[batch.timesteps][:, None, None, None]
        return row_errors((noisy - alphas.sqrt() * trusted) / (1 - alphas).sqrt(), batch.noise)


def plan_of(count, groups=None, buckets=None, micro_batch_size=4, num_rows=None):
    samples = torch.arange(count)
    buckets = torch.zeros_like(samples) if buckets is None else torch.tensor(buckets)
    groups = samples if groups is None else torch.tensor(groups)
    return plan_validation(samples, buckets, groups, micro_batch_size, num_rows)


def snr_at(task, plan):
    alphas = task.noise.alphas_cumprod[task.noise.at(plan.places)]
    return alphas / (1 - alphas)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_reference_gain_is_that_of_the_formula(weight):
    task = Toy([1.0, -1.0] * 8, weight)  # another's reference is always the opposite grey
    plan = plan_of(16, groups=[0, 1] * 8)
    result = validate(task, plan)
    snr = snr_at(task, plan)
    torch.testing.assert_close(result.losses, snr * (1 - weight) ** 2, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(result.gains, 4 * weight * snr, rtol=1e-3, atol=1e-4)
    expected = (4 * weight * snr).double()
    assert result.gain.mean == pytest.approx(float(expected.mean()), rel=1e-3, abs=1e-4)
    assert result.gain.error == pytest.approx(float(expected.std()) / 4, rel=1e-3, abs=1e-4)


def test_buckets_of_the_schedule_have_the_means_of_their_samples():
    task, plan = Toy([1.0, -1.0] * 8, 0.5), plan_of(16, groups=[0, 1] * 8)
    result = validate(task, plan)
    losses, gains = result.losses_by_bucket(4), result.gains_by_bucket(4)
    assert [each.count for each in losses] == [4, 4, 4, 4]
    assert [each.mean for each in losses] == sorted((each.mean for each in losses), reverse=True)  # snr falls
    for number, (loss, gain) in enumerate(zip(losses, gains, strict=True)):
        members = (plan.places * 4).long() == number
        assert loss.mean == pytest.approx(float(result.losses[members].mean()), rel=1e-5)
        assert gain.mean == pytest.approx(float(result.gains[members].mean()), rel=1e-5)
        assert gain.mean > 0 and gain.error > 0


def test_flows_are_validated_over_their_whole_schedule():
    task = Toy([1.0, -1.0], 1.0, FlowMatchEulerDiscreteScheduler(shift=3.0))
    timesteps = task.noise.at(plan_of(100).places)
    torch.testing.assert_close(timesteps.sort().values, torch.arange(5.0, 1000.0, 10.0))


def test_the_same_model_has_the_same_validation_whatever_the_micro_batch():
    greys = torch.linspace(-1, 1, 12).tolist()
    task = Toy(greys, 0.5)
    first = validate(task, plan_of(12, micro_batch_size=3))
    for size in (3, 12):
        again = validate(task, plan_of(12, micro_batch_size=size))
        torch.testing.assert_close(again.losses, first.losses)
    assert torch.equal(validate(task, plan_of(12, micro_batch_size=3)).gains, first.gains)


def test_parts_are_of_one_bucket_and_no_larger_than_asked():
    buckets = [0] * 7 + [3] * 4
    plan = plan_of(11, buckets=buckets, micro_batch_size=3)
    assert sorted(torch.cat([part.rows for part in plan.parts]).tolist()) == list(range(11))
    for part in plan.parts:
        assert {buckets[row] for row in part.rows} == {part.bucket}
        assert 2 <= len(part.rows) <= 3
        assert bool(part.has_partner.all())


@pytest.mark.parametrize(
    ("groups", "without"),
    [([0, 1, 2, 3], 0), ([5, 5, 2, 2, 9, 9], 0), ([1, 0, 1, 0, 1, 0], 0), ([7, 7, 7, 1], 2), ([4, 4], 2), ([4], 1)],
)
def test_nobody_lends_a_reference_within_a_group(groups, without):
    groups = torch.tensor(groups)
    partners, has_partner = shuffled_references(groups)
    assert sorted(partners.tolist()) == list(range(len(groups)))
    assert torch.equal(has_partner, groups[partners] != groups)
    assert int((~has_partner).sum()) == without


def test_a_row_without_a_partner_counts_for_the_loss_alone():
    result = validate(Toy([1.0, 1.0, 1.0, -1.0], 0.5), plan_of(4, groups=[0, 0, 0, 1]))
    assert int(result.gains.isnan().sum()) == 2
    assert result.gain.count == 2
    assert result.loss.count == 4
    assert not math.isnan(result.gain.mean)


def test_nothing_to_compare_is_no_number():
    gain = validate(Toy([1.0], 0.5), plan_of(1)).gain
    assert math.isnan(gain.mean) and math.isnan(gain.error) and gain.count == 0


def test_no_samples_are_no_rows():
    plan = plan_of(0, num_rows=8)
    assert not plan.parts and not len(plan.samples)
    assert validate(Toy([1.0], 0.5), plan).loss.count == 0


def test_training_goes_on_as_if_there_had_been_no_validation():
    task = Toy([1.0, -1.0] * 2, 0.5)
    task.model[0].eval()  # a part that its owner has put to rest
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    loss = task.model(torch.ones(1, 1)).sum()
    torch.manual_seed(5)
    validate(task, plan_of(4))
    assert torch.equal(torch.rand(3), expected)
    assert task.model.training and task.model[1].training and not task.model[0].training
    assert task.model[0].weight.grad is None
    loss.backward()
    assert task.model[0].weight.grad is not None


def test_noise_depends_on_the_sample_not_on_who_computes_it():
    task = Toy(torch.linspace(-1, 1, 6).tolist(), 0.5)
    noises = {}
    for size in (2, 6):
        for part in (plan := plan_of(6, micro_batch_size=size)).parts:
            draw = plan.draw(part)
            for sample, noise in zip(draw.samples.tolist(), task.batch(draw).noise, strict=True):
                assert torch.equal(noises.setdefault(sample, noise), noise)
    assert len(noises) == 6


def test_few_samples_have_several_rows_with_noise_of_their_own():
    task, plan = Toy([1.0, -1.0, 0.5], 0.4), plan_of(3, num_rows=8)
    assert plan.samples.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    noises = [noise for part in plan.parts for noise in task.batch(plan.draw(part)).noise]
    assert len({float(noise[0, 0, 0]) for noise in noises}) == 8
    result = validate(task, plan)
    assert result.loss.count == 8
    torch.testing.assert_close(plan.places.sort().values, (torch.arange(8) + 0.5) / 8)


def test_rows_of_one_sample_do_not_make_the_error_small():
    values = torch.tensor([1.0, 2.0, 4.0, 8.0])
    once = estimate(values, torch.arange(4))
    assert once.error == pytest.approx(float(values.std()) / 2)
    repeated = estimate(values.repeat(25), torch.arange(4).repeat(25))
    assert repeated.mean == once.mean and repeated.count == 100
    assert repeated.error == pytest.approx(once.error)
    assert math.isnan(estimate(values, torch.zeros(4, dtype=torch.long)).error)


class Sharing(Processes):
    """One process of two; what it would tell the other is kept."""

    def mean(self, values):
        self.told.append(values)
        return values / self.count


def test_processes_share_the_parts():
    task, plan = Toy([1.0, -1.0] * 5, 0.4), plan_of(10, groups=[0, 1] * 5, micro_batch_size=2)
    whole = validate(task, plan)
    Sharing.told = []
    for index in (0, 1):
        validate(task, plan, Sharing(torch.device("cpu"), index, 2))
    first, second = Sharing.told
    torch.testing.assert_close((first + second).float(), torch.stack([whole.losses, whole.gains]))
    assert torch.equal(first[0] == 0, second[0] != 0)
    assert 0 < int((first[0] == 0).sum()) < 10


@pytest.mark.parametrize(("count", "num_parts"), [(1, 5), (2, 5), (3, 5), (4, 3), (2, 0)])
def test_every_process_computes_as_many_parts_as_the_others(count, num_parts):
    shares = [rounds(num_parts, Processes(torch.device("cpu"), index, count)) for index in range(count)]
    assert len({len(share) for share in shares}) == 1
    own = [number for share in shares for number in share if number < num_parts]
    assert sorted(own) == list(range(num_parts))


def test_processes_without_a_part_of_their_own_compute_along():
    task, plan = Toy([1.0, -1.0] * 3, 0.4), plan_of(6, groups=[0, 1] * 3, micro_batch_size=2)
    assert len(plan.parts) == 3
    Sharing.told, calls = [], []
    for index in (0, 1):
        task.draws.clear()
        validate(task, plan, Sharing(torch.device("cpu"), index, 2))
        calls.append(len(task.draws))
    assert calls == [2, 2]
    assert torch.equal(sum(told[0] != 0 for told in Sharing.told), torch.ones(6, dtype=torch.long))
