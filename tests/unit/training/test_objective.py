import pytest
import torch

from imprompt.core.errors import ImpromptError
from imprompt.training.objective.objective import (
    add_flow_noise,
    add_noise,
    diffusion_loss,
    discrete_timesteps,
    flow_target,
    level_weights,
    shift_levels,
    snr_weights,
    spread_places,
    training_target,
    warp_places,
)

ALPHAS = torch.tensor([0.99, 0.5, 0.1, 0.0])


@pytest.fixture
def clean_and_noise():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 2, 3, 3, generator=generator), torch.randn(4, 2, 3, 3, generator=generator)


def test_noisy_latents_and_targets_follow_the_formulas(clean_and_noise):
    clean, noise = clean_and_noise
    noisy = add_noise(clean, noise, ALPHAS)
    velocity = training_target(clean, noise, ALPHAS, "v_prediction")
    for row, alpha in enumerate(ALPHAS.tolist()):
        signal, deviation = alpha**0.5, (1 - alpha) ** 0.5
        torch.testing.assert_close(noisy[row], signal * clean[row] + deviation * noise[row])
        torch.testing.assert_close(velocity[row], signal * noise[row] - deviation * clean[row])
    assert torch.equal(training_target(clean, noise, ALPHAS, "epsilon"), noise)
    assert torch.equal(training_target(clean, noise, ALPHAS, "sample"), clean)


def test_they_are_those_of_the_scheduler(clean_and_noise):
    from diffusers import DDPMScheduler

    clean, noise = clean_and_noise
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    timesteps = torch.tensor([0, 100, 500, 999])
    alphas = scheduler.alphas_cumprod[timesteps]
    torch.testing.assert_close(add_noise(clean, noise, alphas), scheduler.add_noise(clean, noise, timesteps))
    velocity = training_target(clean, noise, alphas, "v_prediction")
    torch.testing.assert_close(velocity, scheduler.get_velocity(clean, noise, timesteps))


def test_an_unknown_prediction_type_is_refused(clean_and_noise):
    with pytest.raises(ImpromptError, match="flow"):
        training_target(*clean_and_noise, ALPHAS, "flow")


def test_min_snr_weights_are_the_papers():
    snr = ALPHAS[:3] / (1 - ALPHAS[:3])
    capped = snr.clamp(max=5)
    torch.testing.assert_close(snr_weights(ALPHAS[:3], "epsilon", gamma=5.0), capped / snr)
    torch.testing.assert_close(snr_weights(ALPHAS[:3], "v_prediction", gamma=5.0), capped / (snr + 1))
    torch.testing.assert_close(snr_weights(ALPHAS[:3], "sample", gamma=5.0), capped)


def test_offset_keeps_pure_noise_which_the_paper_drops():
    assert snr_weights(ALPHAS, "v_prediction", gamma=5.0)[-1] == 0
    assert snr_weights(ALPHAS, "v_prediction", gamma=5.0, offset=1.0)[-1] == 1


def test_rows_are_weighted(clean_and_noise):
    prediction, target = clean_and_noise
    errors = (prediction - target).square().mean(dim=(1, 2, 3))
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5])
    torch.testing.assert_close(diffusion_loss(prediction, target, weights), (errors * weights).mean())
    torch.testing.assert_close(diffusion_loss(prediction, target), errors.mean())


def test_timesteps_fall_one_into_each_part():
    timesteps = discrete_timesteps(spread_places(10, torch.Generator().manual_seed(1)), 1000)
    assert sorted((timesteps // 100).tolist()) == list(range(10))


def uniform(count=2000):
    return (torch.arange(count) + 0.5) / count


def test_mode_is_that_of_diffusers():
    from diffusers.training_utils import compute_density_for_timestep_sampling

    places = torch.rand(64, generator=torch.Generator().manual_seed(3))
    expected = compute_density_for_timestep_sampling(
        "mode", 64, mode_scale=1.29, generator=torch.Generator().manual_seed(3)
    )
    torch.testing.assert_close(warp_places(places, "mode", mode_scale=1.29), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (0.5, 0.7)])
def test_logit_normal_is_that_of_diffusers(mean, deviation):
    from diffusers.training_utils import compute_density_for_timestep_sampling

    generator = torch.Generator().manual_seed(3)
    normal = torch.normal(mean=mean, std=deviation, size=(64,), generator=generator).double()
    expected = compute_density_for_timestep_sampling(
        "logit_normal", 64, logit_mean=mean, logit_std=deviation, generator=torch.Generator().manual_seed(3)
    )
    places = torch.special.ndtr((normal - mean) / deviation)
    warped = warp_places(places, "logit_normal", mean=mean, deviation=deviation)
    torch.testing.assert_close(warped.float(), expected, rtol=0, atol=1e-6)


def test_sigmoid_is_logit_normal_of_the_standard_normal():
    standard = warp_places(uniform(), "logit_normal", mean=0.0, deviation=1.0)
    assert torch.equal(warp_places(uniform(), "sigmoid", mean=3.0, deviation=0.1), standard)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal", "mode", "sigmoid"])
def test_warped_places_stay_in_order_and_between_0_and_1(distribution):
    ends = torch.tensor([0.0, 1.0])
    places = warp_places(torch.cat([ends[:1], uniform(), ends[1:]]), distribution)
    differences = places.diff()
    assert bool((differences >= 0).all() or (differences <= 0).all())
    assert sorted(places[[0, -1]].tolist()) == pytest.approx([0.0, 1.0], abs=1e-6)
    assert float(places.median()) == pytest.approx(0.5, abs=1e-3)


def test_shift_moves_levels_to_noise_and_keeps_the_ends():
    levels = shift_levels(torch.tensor([0.0, 0.5, 1.0]), 3.0)
    torch.testing.assert_close(levels, torch.tensor([0.0, 0.75, 1.0]))


def test_weights_of_levels_are_finite_at_clean_latents():
    assert level_weights(torch.tensor([0.0, 1e-3]), "sigma_sqrt").tolist() == pytest.approx([1e6, 1e6])


def test_a_flow_runs_straight_from_clean_to_noise(clean_and_noise):
    clean, noise = clean_and_noise
    levels = torch.tensor([0.0, 0.25, 0.5, 1.0])
    noisy = add_flow_noise(clean, noise, levels)
    assert torch.equal(noisy[0], clean[0])
    assert torch.equal(noisy[3], noise[3])
    ahead = add_flow_noise(clean, noise, levels + 0.1)
    torch.testing.assert_close((ahead - noisy) / 0.1, flow_target(clean, noise), rtol=1e-4, atol=1e-4)
