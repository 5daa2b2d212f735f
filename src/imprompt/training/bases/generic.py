"""Any other base whose denoiser asks for nothing that a training sample does not have; others are refused at once."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from imprompt.adapter.families import family_of
from imprompt.adapter.families.base import same, thousandths
from imprompt.core.errors import HostMismatch
from imprompt.training.bases.frozen import FrozenBase, Texts, own_prediction, patch_size
from imprompt.training.config import BaseModelConfig


@dataclass(frozen=True)
class Call:
    """What a call of a denoiser is made of.

    Attributes:
        noisy: Noisy latents.
        timesteps: As the denoiser counts them.
        text: What the pipeline makes of captions.
        sizes: Original size, crop and target size of each picture.
        host: The denoiser.
    """

    noisy: Tensor
    timesteps: Tensor
    text: Texts
    sizes: Tensor | None
    host: Any


# How the arguments of denoisers are answered, under the names that diffusers has for them.
ANSWERS: dict[str, Callable[[Call], Any]] = {
    "hidden_states": lambda call: call.noisy,
    "sample": lambda call: call.noisy,
    "timestep": lambda call: call.timesteps,
    "encoder_hidden_states": lambda call: call.text["prompt_embeds"].to(call.noisy.dtype),
    "encoder_attention_mask": lambda call: call.text.get("prompt_attention_mask"),
    "pooled_projections": lambda call: call.text["pooled_prompt_embeds"].to(call.noisy.dtype),
    "original_size": lambda call: _sizes(call)[:, :2],
    "crop_coords": lambda call: _sizes(call)[:, 2:4],
    "target_size": lambda call: _sizes(call)[:, 4:],
    "added_cond_kwargs": lambda call: _resolution(call),
}


class GenericBase(FrozenBase):
    """A denoiser of four-dimensional latents that is told a timestep, a text and perhaps sizes."""

    def __init__(self, pipe: Any, config: BaseModelConfig, *, guidance: float = 1.0) -> None:
        """Freeze it; see `FrozenBase`.

        Raises:
            HostMismatch: Its denoiser asks for something that a training sample does not have.
        """
        super().__init__(pipe, config, guidance=guidance)
        self.patch = patch_size(self.denoiser)
        self._clock = _clock(self.denoiser)
        self._names = _names(self.denoiser)

    def predict(
        self,
        noisy: Float[Tensor, "batch channels rows columns"],
        timesteps: Shaped[Tensor, " batch"],
        text: Texts,
        sizes: Float[Tensor, "batch 6"] | None = None,
    ) -> Float[Tensor, "batch channels rows columns"]:
        """What the denoiser predicts; see `FrozenBase.predict`."""
        call = Call(noisy.to(self.dtype), timesteps / self._clock, text, sizes, self.denoiser)
        arguments = {name: ANSWERS[name](call) for name in self._names}
        return own_prediction(self.denoiser(**arguments, return_dict=False)[0], noisy.shape[1])


def _names(host: Any) -> tuple[str, ...]:
    parameters = inspect.signature(host.forward).parameters.values()
    foreign = [
        parameter.name
        for parameter in parameters
        if parameter.default is inspect.Parameter.empty and parameter.name not in ANSWERS
    ]
    if foreign or family_of(host).latents not in ANSWERS:
        raise HostMismatch(
            f"{type(host).__name__} asks for {', '.join(foreign) or 'packed latents'}, which training does not know; "
            "train on one of Stable Diffusion 1, 2, XL or 3, FLUX.1, PixArt, Sana, AuraFlow or CogView 4"
        )
    return tuple(parameter.name for parameter in parameters if parameter.name in ANSWERS)


def _clock(host: Any) -> int:
    """By what timesteps are divided for a denoiser."""
    clocks = {same: 1, thousandths: 1000}
    clock: Any = family_of(host).clock
    if clock not in clocks:
        raise HostMismatch(
            f"{type(host).__name__} counts its timesteps in a way that training does not know; train on another base"
        )
    return clocks[clock]


def _sizes(call: Call) -> Tensor:
    if call.sizes is None:
        raise HostMismatch("the base is told sizes and crops of its pictures, and the data has none")
    return call.sizes.to(call.noisy)


def _resolution(call: Call) -> dict[str, Tensor | None]:
    """PixArt's conditions: size and aspect, where its configuration has them."""
    if not call.host.config.get("use_additional_conditions"):
        return {"resolution": None, "aspect_ratio": None}
    target = _sizes(call)[:, 4:]
    return {"resolution": target, "aspect_ratio": torch.div(target[:, :1], target[:, 1:])}
