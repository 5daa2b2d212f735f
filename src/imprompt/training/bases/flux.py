"""FLUX.1: latents are packed two by two into tokens, timesteps are fractions, and guidance may be told."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from imprompt.training.bases.frozen import FrozenBase, Texts

PATCH = 2


class FluxBase(FrozenBase):
    """A `FluxTransformer2DModel`; latents are packed for it and unpacked again here."""

    patch = PATCH

    def predict(
        self,
        noisy: Float[Tensor, "batch channels rows columns"],
        timesteps: Shaped[Tensor, " batch"],
        text: Texts,
        sizes: Float[Tensor, "batch 6"] | None = None,
    ) -> Float[Tensor, "batch channels rows columns"]:
        """What the transformer predicts; see `FrozenBase.predict`."""
        height, width = noisy.shape[-2:]
        guidance = None
        if self.denoiser.config.guidance_embeds:
            guidance = torch.full((len(noisy),), self.guidance, device=noisy.device)
        predicted = self.denoiser(
            hidden_states=pack(noisy).to(self.dtype),
            timestep=timesteps.to(self.dtype) / 1000,
            guidance=guidance,
            pooled_projections=text["pooled_prompt_embeds"].to(self.dtype),
            encoder_hidden_states=text["prompt_embeds"].to(self.dtype),
            txt_ids=text["text_ids"].to(self.dtype),
            img_ids=places(height // PATCH, width // PATCH).to(noisy.device, self.dtype),
            return_dict=False,
        )[0]
        return unpack(predicted, height, width)


def pack(latents: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch tokens packed"]:
    """Squares of two by two latents as tokens, channel by channel (diffusers' `FluxPipeline._pack_latents`)."""
    squares = latents.unflatten(-2, (-1, PATCH)).unflatten(-1, (-1, PATCH))  # batch channels row 2 column 2
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(
    tokens: Float[Tensor, "batch tokens packed"], height: int, width: int
) -> Float[Tensor, "batch channels rows columns"]:
    """Undo `pack`."""
    squares = tokens.unflatten(1, (height // PATCH, width // PATCH)).unflatten(-1, (-1, PATCH, PATCH))
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, height, width)


def places(height: int, width: int) -> Float[Tensor, "tokens 3"]:
    """Row and column of every token, behind a number that is 0 (diffusers' `_prepare_latent_image_ids`)."""
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=1).float()
