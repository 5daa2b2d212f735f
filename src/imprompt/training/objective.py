"""The diffusion objective as pure functions.

Notation: `x_t = a_t x_0 + s_t e` with `a_t^2 + s_t^2 = 1`; the signal-to-noise ratio is `snr = a_t^2 / s_t^2`.
"""

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


def diffusion_loss(
    prediction: Float[Tensor, " batch *shape"],
    target: Float[Tensor, " batch *shape"],
    weights: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error, each row counted by its weight."""
    errors = (prediction.float() - target.float()).square().flatten(1).mean(1)
    return errors.mean() if weights is None else (errors * weights).mean()


def draw_timesteps(num_rows: int, num_train_timesteps: int, generator: torch.Generator) -> Int[Tensor, " batch"]:
    """Timesteps spread evenly over the schedule, one in each of `num_rows` equal parts, in random order.

    The stratification lowers the variance of the loss and leaves each row's distribution uniform.
    """
    parts = torch.randperm(num_rows, generator=generator)
    places = (parts + torch.rand(num_rows, generator=generator)) / num_rows
    return (places * num_train_timesteps).long().clamp(max=num_train_timesteps - 1)


def _coefficients(alphas_cumprod: Tensor, num_dimensions: int) -> tuple[Tensor, Tensor]:
    shaped = alphas_cumprod.reshape(-1, *(1,) * (num_dimensions - 1))
    return shaped.sqrt(), (1.0 - shaped).sqrt()
