"""What all frozen bases share: a pipeline whose parts encode texts and pictures, and a denoiser that predicts."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from imprompt.adapter.families import family_of
from imprompt.adapter.families.base import patch_of
from imprompt.adapter.fit import pipe_and_host, second_denoiser
from imprompt.core.errors import HostMismatch
from imprompt.training.bases.text import encode_prompt
from imprompt.training.config import BaseModelConfig

Texts = dict[str, Tensor]


class FrozenBase(ABC):
    """A denoiser that image prompts are trained on, and what stands around it; nothing of it is trained.

    Attributes:
        denoiser: The frozen denoiser, in the number format that it was loaded in.
        dtype: That format.
        guidance: What a guidance-distilled base is told.
    """

    patch = 1
    """Latents along each side of what the denoiser counts as one token, where its schedule shifts by tokens."""

    def __init__(self, pipe: Any, config: BaseModelConfig, *, guidance: float = 1.0) -> None:
        """Freeze a pipeline's parts and prepare its denoiser as configured.

        Args:
            pipe: Any pipeline that imprompt attaches to, where it shall compute.
            config: Checkpointing and compilation.
            guidance: What a guidance-distilled base is told in training.

        Raises:
            HostMismatch: Adapters cannot be trained on it.
        """
        self._pipe = pipe
        self.guidance = guidance
        _, host = pipe_and_host(pipe)
        self.denoiser: Any = host
        self.dtype = next(host.parameters()).dtype
        family_of(host)
        _refuse_several(pipe)
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        if config.gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()
        if config.compile:
            self.denoiser.compile()
        pipe.set_progress_bar_config(disable=True)

    @property
    def scheduler(self) -> Any:
        """What tells how the base was trained."""
        return self._pipe.scheduler

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.denoiser.parameters()).device

    @property
    def latent_channels(self) -> int:
        """Channels of latents."""
        return self._pipe.vae.config["latent_channels"]

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along each side of a latent."""
        return self._pipe.vae_scale_factor

    def pipeline(self) -> Any:
        """The pipeline around the denoiser, for pictures of what has been learnt."""
        return self._pipe

    def num_tokens(self, height: int, width: int) -> int:
        """Tokens that the denoiser sees of latents of a size, by which some schedules are shifted."""
        return (height // self.patch) * (width // self.patch)

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> Texts:
        """What the denoiser reads of captions, as the base's own pipeline makes it."""
        return encode_prompt(self._pipe, captions, self.device)

    @torch.no_grad()
    def encode_latents(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Scaled latents of pictures in [-1, 1]: the mean of what the autoencoder makes of each."""
        vae = self._pipe.vae
        weight = next(vae.parameters())
        latents = _latents_of(vae.encode(pixels.to(weight.device, weight.dtype))).float()
        return scaled(latents, vae.config)

    @abstractmethod
    def predict(
        self,
        noisy: Float[Tensor, "batch channels rows columns"],
        timesteps: Shaped[Tensor, " batch"],
        text: Texts,
        sizes: Float[Tensor, "batch 6"] | None = None,
    ) -> Float[Tensor, "batch channels rows columns"]:
        """What the denoiser predicts, in its own number format.

        Args:
            noisy: Noisy latents.
            timesteps: As the scheduler counts them.
            text: What `encode_text` gave.
            sizes: Original size, crop and target size of each picture, for bases that read them.
        """


def scaled(latents: Tensor, config: Any) -> Tensor:
    """Latents as a denoiser knows them, of those that the autoencoder makes."""
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and deviation is not None:
        shape = (1, -1, *(1,) * (latents.ndim - 2))
        mean, deviation = (latents.new_tensor(values).view(shape) for values in (mean, deviation))
        return (latents - mean) * config.get("scaling_factor", 1.0) / deviation
    return (latents - (config.get("shift_factor") or 0.0)) * config.get("scaling_factor", 1.0)


def own_prediction(predicted: Tensor, channels: int) -> Tensor:
    """A prediction without the variance that some denoisers learn beside it."""
    return predicted.chunk(2, dim=1)[0] if predicted.shape[1] == 2 * channels else predicted


def patch_size(host: Any) -> int:
    """Latents along each side of a transformer's token."""
    return patch_of(host.config)[-1]


def _latents_of(encoded: Any) -> Tensor:
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mode()
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent


def _refuse_several(pipe: Any) -> None:
    if second_denoiser(pipe) is not None:
        raise HostMismatch(
            f"{type(pipe).__name__} goes on with a second denoiser at low noise; training knows one denoiser. Train on "
            "a base that has one"
        )
