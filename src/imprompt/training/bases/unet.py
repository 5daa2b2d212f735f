"""UNets of Stable Diffusion 1, 2 and XL, Kolors, and those of their own shape."""

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from imprompt.core.errors import HostMismatch
from imprompt.training.bases.frozen import FrozenBase, Texts, own_prediction
from imprompt.training.config import BaseModelConfig


class UNetBase(FrozenBase):
    """A `UNet2DConditionModel` that reads texts and, in SDXL, pooled texts and sizes."""

    def __init__(self, pipe: Any, config: BaseModelConfig, *, guidance: float = 1.0) -> None:
        """Freeze it; see `FrozenBase`.

        Raises:
            HostMismatch: It reads more than noisy latents, as inpainting's does.
        """
        super().__init__(pipe, config, guidance=guidance)
        channels = self.denoiser.config.in_channels
        if channels != self.latent_channels:
            raise HostMismatch(
                f"the base's UNet reads {channels} channels, its latents have {self.latent_channels}; training knows "
                "text-to-image bases. Train on the base that this one was made of"
            )
        if self.device.type in ("cpu", "cuda") and not config.shard:  # FSDP2 wants weights that lie in order
            self.denoiser.to(memory_format=torch.channels_last)  # convolutions then read pixels as they lie in memory

    @property
    def reads_sizes(self) -> bool:
        """Whether it is told sizes and crops, as SDXL is."""
        return self.denoiser.config.addition_embed_type == "text_time"

    def predict(
        self,
        noisy: Float[Tensor, "batch channels rows columns"],
        timesteps: Shaped[Tensor, " batch"],
        text: Texts,
        sizes: Float[Tensor, "batch 6"] | None = None,
    ) -> Float[Tensor, "batch channels rows columns"]:
        """What the UNet predicts; see `FrozenBase.predict`."""
        states = text["prompt_embeds"].to(self.dtype)
        added = None
        if self.reads_sizes:
            if sizes is None:
                raise HostMismatch("the base is told sizes and crops of its pictures, and the data has none")
            added = {"text_embeds": text["pooled_prompt_embeds"].to(self.dtype), "time_ids": sizes.to(states)}
        predicted = self.denoiser(
            noisy.to(self.dtype), timesteps, encoder_hidden_states=states, added_cond_kwargs=added, return_dict=False
        )[0]
        return own_prediction(predicted, noisy.shape[1])
