import pytest
import torch

from imprompt.core.errors import ImpromptError
from imprompt.training.objective import add_noise, diffusion_loss, draw_timesteps, snr_weights, training_target

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
    timesteps = draw_timesteps(10, 1000, torch.Generator().manual_seed(1))
    assert sorted((timesteps // 100).tolist()) == list(range(10))
