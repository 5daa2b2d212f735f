"""The diffusion objective as pure functions.

Notation of diffusion: `x_t = a_t x_0 + s_t e` with `a_t^2 + s_t^2 = 1`; the signal-to-noise ratio is
`snr = a_t^2 / s_t^2`. Of flow matching: `x_s = (1 - s) x_0 + s e` for a noise level `s` from 0 to 1.

Random timesteps are places from 0 to 1, spread evenly over the rows of a batch, which a distribution then warps.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprompt.core.errors import ImpromptError


def add_noise(
    clean: Float[Tensor, " batch *shape"],
    noise: Float[Tensor, " batch *shape"],
    alphas_cumprod: Float[Tensor, " batch"],
) -> Float[Tensor, " batch *shape"]:
    """Noisy latents `a_t x_0 + s_t e`, where `a_t^2` is the cumulated alpha of each row."""
    signal, deviation = _coefficients(alphas_cumprod, clean.ndim)
    return signal * clean + deviation * noise


def training_target(
    clean: Float[Tensor, " batch *shape"],
    noise: Float[Tensor, " batch *shape"],
    alphas_cumprod: Float[Tensor, " batch"],
    prediction_type: str,
) -> Float[Tensor, " batch *shape"]:
    """What the denoiser shall predict: the noise, the velocity `a_t e - s_t x_0`, or the clean latents.

    Raises:
        ImpromptError: The scheduler names a prediction type we do not know.
    """
    signal, deviation = _coefficients(alphas_cumprod, clean.ndim)
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return signal * noise - deviation * clean
    if prediction_type == "sample":
        return clean
    raise ImpromptError(
        f"the scheduler predicts '{prediction_type}'; training knows 'epsilon', 'v_prediction' and 'sample'"
    )


def snr_weights(
    alphas_cumprod: Float[Tensor, " batch"], prediction_type: str, *, gamma: float, offset: float = 0.0
) -> Float[Tensor, " batch"]:
    """Min-SNR weights (arXiv 2303.09556): the error of `x_0` counts `min(snr + offset, gamma)`.

    Args:
        alphas_cumprod: Cumulated alpha of each row.
        prediction_type: In whose terms the error is measured; one squared error of `x_0` is `snr` of the noise and
            `snr + 1` of the velocity.
        gamma: Where the weight stops growing.
        offset: 0 is the paper's weight, which vanishes at pure noise. 1 is the velocity's own weight cut at `gamma`:
            under zero terminal SNR, where the first step decides subject and palette, that step is then trained too.
    """
    snr = alphas_cumprod / (1.0 - alphas_cumprod).clamp(min=1e-8)
    weights = (snr + offset).clamp(max=gamma)
    if prediction_type == "epsilon":
        return weights / snr.clamp(min=1e-8)
    return weights / (snr + 1.0) if prediction_type == "v_prediction" else weights


def add_flow_noise(
    clean: Float[Tensor, " batch *shape"], noise: Float[Tensor, " batch *shape"], levels: Float[Tensor, " batch"]
) -> Float[Tensor, " batch *shape"]:
    """Noisy latents `(1 - s) x_0 + s e` of flow matching, where `s` is the noise level of each row."""
    level = _shaped(levels, clean.ndim)
    return (1.0 - level) * clean + level * noise


def flow_target(
    clean: Float[Tensor, " batch *shape"], noise: Float[Tensor, " batch *shape"]
) -> Float[Tensor, " batch *shape"]:
    """What a flow predicts at every level: the velocity `e - x_0`."""
    return noise - clean


def shift_levels(places: Float[Tensor, " batch"], shift: float) -> Float[Tensor, " batch"]:
    """Noise levels `k t / (1 + (k - 1) t)`: a shift `k` above 1 spends more of the schedule on strong noise.

    Source: arXiv 2403.03206, equation 23; FLUX's `exp(mu) / (exp(mu) + 1 / t - 1)` is the same with `k = exp(mu)`.
    """
    return shift * places / (1.0 + (shift - 1.0) * places)


def level_weights(
    levels: Float[Tensor, " batch"], weighting: Literal["none", "sigma_sqrt", "cosmap"]
) -> Float[Tensor, " batch"]:
    """Weights of Stable Diffusion 3's comparison (arXiv 2403.03206, section 3.1), by noise level.

    Levels below a thousandth, the first of a schedule of 1000, weigh as that one: `sigma_sqrt` is `1 / s^2`.
    """
    if weighting == "sigma_sqrt":
        return levels.clamp(min=1e-3).pow(-2.0)
    if weighting == "cosmap":
        return 2.0 / (math.pi * (1.0 - 2.0 * levels + 2.0 * levels.square()))
    return torch.ones_like(levels)


def row_errors(
    prediction: Float[Tensor, " batch *shape"], target: Float[Tensor, " batch *shape"]
) -> Float[Tensor, " batch"]:
    """Mean squared error of each row, in float32."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def diffusion_loss(
    prediction: Float[Tensor, " batch *shape"],
    target: Float[Tensor, " batch *shape"],
    weights: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error, each row counted by its weight."""
    errors = row_errors(prediction, target)
    return errors.mean() if weights is None else (errors * weights).mean()


def spread_places(num_rows: int, generator: torch.Generator) -> Float[Tensor, " batch"]:
    """Places from 0 to 1, one in each of `num_rows` equal parts, in random order.

    The stratification lowers the variance of the loss and leaves each row's distribution uniform.
    """
    parts = torch.randperm(num_rows, generator=generator)
    return (parts + torch.rand(num_rows, generator=generator)) / num_rows


def warp_places(
    places: Float[Tensor, " batch"],
    distribution: Literal["uniform", "logit_normal", "mode", "sigmoid"],
    *,
    mean: float = 0.0,
    deviation: float = 1.0,
    mode_scale: float = 1.29,
) -> Float[Tensor, " batch"]:
    """Uniform places made those of another distribution (arXiv 2403.03206, section 3.1), part by part.

    Args:
        places: Uniform from 0 to 1.
        distribution: "logit_normal" is the sigmoid of a normal number, "mode" the paper's heavy-tailed alternative;
            "sigmoid" is the first with mean 0 and deviation 1, as trainers of FLUX call it.
        mean: Of the normal number.
        deviation: Likewise.
        mode_scale: Of "mode"; above 0 the middle of the schedule is met more often.
    """
    if distribution == "uniform":
        return places
    if distribution == "mode":
        return 1.0 - places - mode_scale * (torch.cos(math.pi * places / 2.0).square() - 1.0 + places)
    mean, deviation = (0.0, 1.0) if distribution == "sigmoid" else (mean, deviation)
    return torch.sigmoid(mean + deviation * torch.special.ndtri(places))


def discrete_timesteps(places: Float[Tensor, " batch"], num_train_timesteps: int) -> Int[Tensor, " batch"]:
    """The timestep at each place of a schedule that counts them."""
    return (places * num_train_timesteps).long().clamp(0, num_train_timesteps - 1)


def _coefficients(alphas_cumprod: Tensor, num_dimensions: int) -> tuple[Tensor, Tensor]:
    shaped = _shaped(alphas_cumprod, num_dimensions)
    return shaped.sqrt(), (1.0 - shaped).sqrt()


def _shaped(rows: Tensor, num_dimensions: int) -> Tensor:
    return rows.reshape(-1, *(1,) * (num_dimensions - 1))
