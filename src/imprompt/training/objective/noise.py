"""Noise as a base was trained with, read from its scheduler: which timesteps, how much noise, what is predicted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from imprompt.core.errors import ImpromptError
from imprompt.training.config import ObjectiveConfig
from imprompt.training.loop.task import Draw
from imprompt.training.objective.objective import (
    add_flow_noise,
    add_noise,
    discrete_timesteps,
    flow_target,
    level_weights,
    shift_levels,
    snr_weights,
    spread_places,
    training_target,
    warp_places,
)

PREDICTIONS = ("epsilon", "v_prediction", "sample")


@runtime_checkable
class NoiseProcess(Protocol):
    """How clean latents become a denoiser's input and target. All methods but `draw` work on any device."""

    @property
    def num_train_timesteps(self) -> int:
        """Timesteps lie from 0 to this number."""
        ...

    def draw(self, draw: Draw, num_tokens: int | None = None) -> Shaped[Tensor, " rows"]:
        """Timesteps of a draw's rows.

        Args:
            draw: Whose timesteps; they are stratified over its global batch.
            num_tokens: Image tokens that the denoiser sees of each row, where the schedule shifts by them.
        """
        ...

    def at(self, places: Float[Tensor, " rows"]) -> Shaped[Tensor, " rows"]:
        """Timesteps at places from 0 (clean) to 1 (noise) of the schedule itself, whatever training draws."""
        ...

    def noise(self, draw: Draw, shape: Sequence[int]) -> Float[Tensor, " rows *shape"]:
        """Noise of a draw's rows; each row's depends on the seed, the step and its place in the global batch."""
        ...

    def add(
        self,
        clean: Float[Tensor, " rows *shape"],
        noise: Float[Tensor, " rows *shape"],
        timesteps: Shaped[Tensor, " rows"],
    ) -> Float[Tensor, " rows *shape"]:
        """Noisy latents."""
        ...

    def target(
        self,
        clean: Float[Tensor, " rows *shape"],
        noise: Float[Tensor, " rows *shape"],
        timesteps: Shaped[Tensor, " rows"],
    ) -> Float[Tensor, " rows *shape"]:
        """What the denoiser shall predict."""
        ...

    def weights(self, timesteps: Shaped[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """What each row's error counts."""
        ...


@dataclass(frozen=True, eq=False)
class DiscreteNoise:
    """Diffusion with counted timesteps; see `NoiseProcess`.

    Attributes:
        alphas_cumprod: Of the scheduler, so a rescaling to zero terminal SNR is in them.
        prediction_type: One of `PREDICTIONS`.
        config: Distribution and shift, weights and offset.
    """

    alphas_cumprod: Float[Tensor, " timesteps"]
    prediction_type: str
    config: ObjectiveConfig

    @property
    def num_train_timesteps(self) -> int:
        """Length of the schedule."""
        return len(self.alphas_cumprod)

    def draw(self, draw: Draw, num_tokens: int | None = None) -> Int[Tensor, " rows"]:
        """Timesteps of a draw's rows; see `NoiseProcess.draw`."""
        return self.at(shift_levels(_places(draw, self.config), self.config.timestep_shift or 1.0))

    def at(self, places: Float[Tensor, " rows"]) -> Int[Tensor, " rows"]:
        """The timestep at each place."""
        return discrete_timesteps(places, self.num_train_timesteps)

    def noise(self, draw: Draw, shape: Sequence[int]) -> Float[Tensor, " rows *shape"]:
        """Normal noise, with the configured offset; see `draw_noise`."""
        return draw_noise(draw, shape, self.config.noise_offset)

    def add(self, clean: Tensor, noise: Tensor, timesteps: Int[Tensor, " rows"]) -> Tensor:
        """`a_t x_0 + s_t e`."""
        return add_noise(clean, noise, self._alphas(timesteps))

    def target(self, clean: Tensor, noise: Tensor, timesteps: Int[Tensor, " rows"]) -> Tensor:
        """Noise, velocity or clean latents."""
        return training_target(clean, noise, self._alphas(timesteps), self.prediction_type)

    def weights(self, timesteps: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """Min-SNR weights where a gamma is configured, else 1."""
        gamma, offset = self.config.min_snr_gamma, self.config.snr_offset
        if gamma is None:
            return torch.ones(len(timesteps), device=timesteps.device)
        return snr_weights(self._alphas(timesteps), self.prediction_type, gamma=gamma, offset=offset)

    def _alphas(self, timesteps: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        return self.alphas_cumprod.to(timesteps.device)[timesteps]


@dataclass(frozen=True)
class FlowShift:
    """How far a flow's schedule is shifted towards noise.

    Attributes:
        factor: The shift, where it is the same for all sizes; None where the number of image tokens decides.
        base: Shift at `base_tokens`.
        top: Shift at `top_tokens`; between and beyond, it is linear in the tokens.
        base_tokens: See `base`.
        top_tokens: See `top`.
        is_exponent: Whether the linear number is the logarithm of the shift, as in FLUX.
    """

    factor: float | None = 1.0
    base: float = 0.5
    top: float = 1.15
    base_tokens: int = 256
    top_tokens: int = 4096
    is_exponent: bool = True

    def at(self, num_tokens: int | None) -> float:
        """The shift for pictures of so many tokens.

        Raises:
            ImpromptError: The schedule shifts by tokens, and their number is not given.
        """
        if self.factor is not None:
            return self.factor
        if num_tokens is None:
            raise ImpromptError("the scheduler shifts timesteps by image tokens; tell how many tokens a row has")
        slope = (self.top - self.base) / (self.top_tokens - self.base_tokens)
        mu = self.base + slope * (num_tokens - self.base_tokens)
        return math.exp(mu) if self.is_exponent else mu


@dataclass(frozen=True)
class FlowNoise:
    """Flow matching; its timesteps are noise levels times the length of the schedule. See `NoiseProcess`.

    Attributes:
        shift: Of the schedule.
        config: Distribution, weights and offset.
        num_train_timesteps: Length of the schedule.
    """

    shift: FlowShift
    config: ObjectiveConfig
    num_train_timesteps: int = 1000

    def draw(self, draw: Draw, num_tokens: int | None = None) -> Float[Tensor, " rows"]:
        """Shifted timesteps of a draw's rows; see `NoiseProcess.draw`."""
        return self.at(shift_levels(_places(draw, self.config), self.shift.at(num_tokens)))

    def at(self, places: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """The timestep at each noise level."""
        return places * self.num_train_timesteps

    def noise(self, draw: Draw, shape: Sequence[int]) -> Float[Tensor, " rows *shape"]:
        """Normal noise, with the configured offset; see `draw_noise`."""
        return draw_noise(draw, shape, self.config.noise_offset)

    def add(self, clean: Tensor, noise: Tensor, timesteps: Float[Tensor, " rows"]) -> Tensor:
        """`(1 - s) x_0 + s e`."""
        return add_flow_noise(clean, noise, timesteps / self.num_train_timesteps)

    def target(self, clean: Tensor, noise: Tensor, timesteps: Float[Tensor, " rows"]) -> Tensor:
        """The velocity `e - x_0`."""
        return flow_target(clean, noise)

    def weights(self, timesteps: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """Stable Diffusion 3's weights, as configured."""
        return level_weights(timesteps / self.num_train_timesteps, self.config.weighting)


def noise_process(scheduler: Any, config: ObjectiveConfig) -> DiscreteNoise | FlowNoise:
    """What a base was trained with, read from its scheduler.

    Args:
        scheduler: Of diffusers: flow matching, or one with `alphas_cumprod`. Which sampler it is does not matter.
        config: What the scheduler does not say.

    Raises:
        ImpromptError: The scheduler is of another kind, or the configuration asks of its kind what is not defined.
    """
    settings = dict(scheduler.config)
    prediction = settings.get("prediction_type", "epsilon")
    if type(scheduler).__name__.startswith("FlowMatch") or prediction == "flow_prediction":
        _refuse(config.min_snr_gamma is not None, "objective.min_snr_gamma", "a flow", "objective.weighting")
        return FlowNoise(_shift_of(scheduler, settings, config), config, int(settings["num_train_timesteps"]))
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(alphas, Tensor) or prediction not in PREDICTIONS or "sigma_data" in settings:
        raise ImpromptError(
            f"the base's scheduler is a {type(scheduler).__name__} that predicts '{prediction}'; training knows flow "
            f"matching, and schedulers with alphas_cumprod that predict {', '.join(PREDICTIONS)}"
        )
    _refuse(config.weighting != "none", "objective.weighting", "diffusion", "objective.min_snr_gamma")
    return DiscreteNoise(alphas.detach().float().cpu(), prediction, config)


def draw_noise(draw: Draw, shape: Sequence[int], offset: float = 0.0) -> Float[Tensor, " rows *shape"]:
    """Normal noise, row by row.

    Args:
        draw: Whose rows; a row's noise is the same however the global batch is split.
        shape: Of one row, channels first.
        offset: Deviation of one number a channel added to it, which lets a model learn very dark and very bright
            pictures (N. Guttenberg, "Diffusion with offset noise").
    """
    per_channel = (shape[0], *(1,) * (len(shape) - 1))
    rows = []
    for generator in draw.row_generators("noise"):
        noise = torch.randn(*shape, generator=generator)
        rows.append(noise + offset * torch.randn(per_channel, generator=generator) if offset else noise)
    return torch.stack(rows)


def _places(draw: Draw, config: ObjectiveConfig) -> Float[Tensor, " rows"]:
    """Places of a draw's rows under the configured distribution, stratified over the global batch."""
    places = draw.per_row("timesteps", lambda generator, batch_size: spread_places(batch_size, generator))
    return warp_places(
        places,
        config.timesteps,
        mean=config.logit_mean,
        deviation=config.logit_deviation,
        mode_scale=config.mode_scale,
    )


def _shift_of(scheduler: Any, settings: dict[str, Any], config: ObjectiveConfig) -> FlowShift:
    if settings.get("invert_sigmas"):
        raise ImpromptError("the base's scheduler has invert_sigmas; training knows flows from clean (0) to noise (1)")
    if config.timestep_shift is not None:
        return FlowShift(factor=config.timestep_shift)
    if not settings.get("use_dynamic_shifting"):
        return FlowShift(factor=float(settings.get("flow_shift") or getattr(scheduler, "shift", 1.0)))
    return FlowShift(
        factor=None,
        base=settings.get("base_shift", 0.5),
        top=settings.get("max_shift", 1.15),
        base_tokens=settings.get("base_image_seq_len", 256),
        top_tokens=settings.get("max_image_seq_len", 4096),
        is_exponent=settings.get("time_shift_type", "exponential") == "exponential",
    )


def _refuse(is_asked: bool, name: str, kind: str, instead: str) -> None:
    if is_asked:
        raise ImpromptError(f"{name} is not defined for {kind}, which this base's scheduler is; use {instead}")
