import math

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler

from imprompt.core.errors import ImpromptError
from imprompt.training.config import ObjectiveConfig
from imprompt.training.loop.task import Draw
from imprompt.training.objective.noise import DiscreteNoise, FlowNoise, noise_process

EXACT = {"rtol": 0.0, "atol": 1e-6}
SHAPE = (4, 6, 5)


def draw_of(rows=(0, 1, 2, 3), batch_size=8, step=3, seed=0):
    places = torch.tensor(rows)
    return Draw(step=step, seed=seed, samples=places + 100, rows=places, batch_size=batch_size)


def clean_latents(count=4):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_diffusion_is_that_of_the_scheduler(prediction, zero_terminal_snr):
    scheduler = DDPMScheduler(
        prediction_type=prediction, beta_schedule="scaled_linear", rescale_betas_zero_snr=zero_terminal_snr
    )
    process = noise_process(scheduler, ObjectiveConfig())
    draw, clean, timesteps = draw_of(), clean_latents(), torch.tensor([0, 400, 998, 999])
    noise = process.noise(draw, SHAPE)
    torch.testing.assert_close(
        process.add(clean, noise, timesteps), scheduler.add_noise(clean, noise, timesteps), **EXACT
    )
    expected = {"epsilon": noise, "sample": clean, "v_prediction": scheduler.get_velocity(clean, noise, timesteps)}
    torch.testing.assert_close(process.target(clean, noise, timesteps), expected[prediction], **EXACT)
    if zero_terminal_snr:  # the last step holds nothing but noise
        torch.testing.assert_close(process.add(clean, noise, timesteps)[-1], noise[-1], **EXACT)


def test_the_sampler_does_not_matter():
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    euler = noise_process(EulerDiscreteScheduler(**settings), ObjectiveConfig())
    ddpm = noise_process(DDPMScheduler(**settings), ObjectiveConfig())
    assert isinstance(euler, DiscreteNoise)
    assert euler.num_train_timesteps == 1000
    torch.testing.assert_close(euler.alphas_cumprod, ddpm.alphas_cumprod, **EXACT)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_is_that_of_the_scheduler(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    process = noise_process(scheduler, ObjectiveConfig())
    timesteps = scheduler.timesteps[torch.tensor([0, 250, 700, 999])]
    clean, noise = clean_latents(), process.noise(draw_of(), SHAPE)
    torch.testing.assert_close(
        process.add(clean, noise, timesteps), scheduler.scale_noise(clean, timesteps, noise), **EXACT
    )
    assert torch.equal(process.target(clean, noise, timesteps), noise - clean)


def test_a_flow_draws_the_levels_of_the_shifted_schedule():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    timesteps = noise_process(scheduler, ObjectiveConfig()).draw(draw_of(range(1000), batch_size=1000)).sort().values
    schedule = scheduler.timesteps.flip(0)
    assert bool((timesteps <= schedule + 1e-3).all())
    assert bool((timesteps[1:] >= schedule[:-1] - 1e-3).all())


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("num_tokens", [256, 1024, 4096])
def test_dynamic_shift_is_that_of_the_scheduler_and_pipeline(kind, num_tokens):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    draw = draw_of(range(8))
    timesteps = noise_process(scheduler, ObjectiveConfig()).draw(draw, num_tokens=num_tokens)
    places = noise_process(scheduler, ObjectiveConfig(timestep_shift=1.0)).draw(draw) / 1000
    expected = scheduler.time_shift(calculate_shift(num_tokens), 1.0, places) * 1000
    torch.testing.assert_close(timesteps, expected, rtol=1e-6, atol=1e-3)


def test_a_schedule_that_shifts_by_tokens_wants_their_number():
    process = noise_process(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), ObjectiveConfig())
    with pytest.raises(ImpromptError, match="how many tokens"):
        process.draw(draw_of())


def test_flow_prediction_of_other_samplers_is_a_flow_with_their_shift():
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    process = noise_process(scheduler, ObjectiveConfig())
    assert isinstance(process, FlowNoise)
    assert process.shift.at(None) == 3.0


def test_timesteps_are_stratified_over_the_global_batch_and_independent_of_its_split():
    process = noise_process(DDPMScheduler(), ObjectiveConfig())
    whole = process.draw(draw_of(range(8)))
    assert sorted((whole // 125).tolist()) == list(range(8))
    assert torch.equal(process.draw(draw_of((5, 2))), whole[torch.tensor([5, 2])])
    assert not torch.equal(process.draw(draw_of(range(8), step=4)), whole)


def test_a_shift_draws_the_same_share_of_diffusions_timesteps_at_strong_noise_as_of_a_flows():
    draw, config = draw_of(range(64), batch_size=64), ObjectiveConfig(timestep_shift=3.0)
    timesteps = noise_process(DDPMScheduler(), config).draw(draw)
    levels = noise_process(FlowMatchEulerDiscreteScheduler(), config).draw(draw)
    assert torch.equal(timesteps, levels.long())
    assert int((timesteps >= 500).sum()) == 48


def test_noise_of_a_row_is_the_same_however_the_batch_is_split():
    process = noise_process(DDPMScheduler(), ObjectiveConfig(noise_offset=0.1))
    whole = process.noise(draw_of(range(8)), SHAPE)
    assert torch.equal(process.noise(draw_of((5, 2)), SHAPE), whole[torch.tensor([5, 2])])
    assert not torch.equal(process.noise(draw_of(range(8), seed=1), SHAPE), whole)


def test_noise_offset_adds_one_number_a_channel():
    draw = draw_of(range(64), batch_size=64)
    plain = noise_process(DDPMScheduler(), ObjectiveConfig()).noise(draw, SHAPE)
    added = noise_process(DDPMScheduler(), ObjectiveConfig(noise_offset=0.3)).noise(draw, SHAPE) - plain
    per_channel = added.mean((2, 3), keepdim=True)
    torch.testing.assert_close(added, per_channel.expand_as(added), **EXACT)
    assert float(per_channel.std()) == pytest.approx(0.3, rel=0.15)  # of 256 numbers


def test_places_are_equal_parts_of_the_schedule_for_both_kinds():
    places = torch.tensor([0.0, 0.25, 0.9999])
    assert noise_process(DDPMScheduler(), ObjectiveConfig()).at(places).tolist() == [0, 250, 999]
    flow = noise_process(FlowMatchEulerDiscreteScheduler(shift=3.0), ObjectiveConfig())
    torch.testing.assert_close(flow.at(places), places * 1000)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_those_of_diffusers_examples(prediction):
    from diffusers.training_utils import compute_snr

    scheduler = DDPMScheduler(prediction_type=prediction, beta_schedule="scaled_linear")
    timesteps = torch.tensor([0, 10, 300, 999])
    snr = compute_snr(scheduler, timesteps)
    expected = snr.clamp(max=5.0) / (snr if prediction == "epsilon" else snr + 1)
    weights = noise_process(scheduler, ObjectiveConfig(min_snr_gamma=5.0)).weights(timesteps)
    torch.testing.assert_close(weights, expected, **EXACT)


def test_without_a_gamma_all_timesteps_count_alike():
    assert noise_process(DDPMScheduler(), ObjectiveConfig()).weights(torch.tensor([0, 999])).tolist() == [1.0, 1.0]
    flow = noise_process(FlowMatchEulerDiscreteScheduler(), ObjectiveConfig())
    assert flow.weights(torch.tensor([1.0, 1000.0])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("weighting", ["sigma_sqrt", "cosmap"])
def test_a_flows_weights_are_those_of_diffusers(weighting):
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    levels = torch.tensor([0.01, 0.3, 0.5, 1.0])
    process = noise_process(FlowMatchEulerDiscreteScheduler(), ObjectiveConfig(weighting=weighting))
    expected = compute_loss_weighting_for_sd3(weighting, levels)
    torch.testing.assert_close(process.weights(levels * 1000), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("scheduler", "config", "message"),
    [
        (EDMEulerScheduler(), ObjectiveConfig(), "EDMEulerScheduler"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), ObjectiveConfig(), "invert_sigmas"),
        (FlowMatchEulerDiscreteScheduler(), ObjectiveConfig(min_snr_gamma=5.0), "objective.weighting"),
        (DDPMScheduler(), ObjectiveConfig(weighting="cosmap"), "objective.min_snr_gamma"),
    ],
)
def test_what_is_not_defined_is_refused(scheduler, config, message):
    with pytest.raises(ImpromptError, match=message):
        noise_process(scheduler, config)


def test_a_static_shift_of_the_configuration_goes_before_the_schedulers():
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    shift = noise_process(scheduler, ObjectiveConfig(timestep_shift=math.e)).shift
    assert shift.at(None) == math.e
