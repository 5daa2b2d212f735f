"""Stable Diffusion 3 and 3.5."""

from jaxtyping import Float, Shaped
from torch import Tensor

from imprompt.training.bases.frozen import FrozenBase, Texts


class SD3Base(FrozenBase):
    """An `SD3Transformer2DModel`, told pooled texts and timesteps as its scheduler counts them."""

    patch = 2

    def predict(
        self,
        noisy: Float[Tensor, "batch channels rows columns"],
        timesteps: Shaped[Tensor, " batch"],
        text: Texts,
        sizes: Float[Tensor, "batch 6"] | None = None,
    ) -> Float[Tensor, "batch channels rows columns"]:
        """What the transformer predicts; see `FrozenBase.predict`."""
        return self.denoiser(
            hidden_states=noisy.to(self.dtype),
            timestep=timesteps,
            encoder_hidden_states=text["prompt_embeds"].to(self.dtype),
            pooled_projections=text["pooled_prompt_embeds"].to(self.dtype),
            return_dict=False,
        )[0]
