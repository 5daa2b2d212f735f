"""Frozen bases: how each kind of denoiser is loaded, told texts and timesteps, and asked for its prediction."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from imprompt.adapter.fit import pipe_and_host
from imprompt.generation.pipelines import load_pipeline
from imprompt.training.bases.flux import FluxBase
from imprompt.training.bases.frozen import FrozenBase, Texts
from imprompt.training.bases.generic import GenericBase
from imprompt.training.bases.sd3 import SD3Base
from imprompt.training.bases.unet import UNetBase
from imprompt.training.config import BaseModelConfig

__all__ = ["FrozenBase", "Texts", "TrainingBase", "base_of", "load_base"]

KINDS: dict[str, type[FrozenBase]] = {
    "UNet2DConditionModel": UNetBase,
    "SD3Transformer2DModel": SD3Base,
    "FluxTransformer2DModel": FluxBase,
}


@runtime_checkable
class TrainingBase(Protocol):
    """What the trainer wants of a base; see `FrozenBase`, which all of ours are."""

    denoiser: Any
    dtype: torch.dtype

    @property
    def scheduler(self) -> Any:
        """What tells how the base was trained."""
        ...

    @property
    def latent_channels(self) -> int:
        """Channels of latents."""
        ...

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along each side of a latent."""
        ...

    def num_tokens(self, height: int, width: int) -> int:
        """Tokens of latents of a size."""
        ...

    def encode_text(self, captions: Sequence[str]) -> Texts:
        """What the denoiser reads of captions."""
        ...

    def encode_latents(self, pixels: Float[Tensor, "batch 3 height width"]) -> Tensor:
        """Scaled latents of pictures in [-1, 1]."""
        ...

    def predict(
        self,
        noisy: Float[Tensor, "batch channels rows columns"],
        timesteps: Shaped[Tensor, " batch"],
        text: Texts,
        sizes: Float[Tensor, "batch 6"] | None = None,
    ) -> Tensor:
        """What the denoiser predicts."""
        ...

    def pipeline(self) -> Any:
        """The pipeline around it."""
        ...


def load_base(config: BaseModelConfig, device: str | torch.device, *, guidance: float = 1.0) -> FrozenBase:
    """Load a base, frozen, in the configured number format, of which no second copy is made.

    Args:
        config: Which base.
        device: Where it shall compute.
        guidance: What a guidance-distilled base is told in training.

    Raises:
        DownloadError: It is neither here nor reachable.
        HostMismatch: It is here, and adapters cannot be trained on it.
    """
    options = {name: value for name in ("revision", "variant") if (value := getattr(config, name)) is not None}
    pipe = load_pipeline(config.path, dtype=getattr(torch, config.dtype), device=device, **options)
    return base_of(pipe, config, guidance=guidance)


def base_of(pipe: Any, config: BaseModelConfig, *, guidance: float = 1.0) -> FrozenBase:
    """The base in a pipeline that is loaded already; its parts are frozen."""
    return kind_of(pipe_and_host(pipe)[1])(pipe, config, guidance=guidance)


def kind_of(host: nn.Module) -> type[FrozenBase]:
    """How a denoiser is trained on."""
    return next((KINDS[kind.__name__] for kind in type(host).__mro__ if kind.__name__ in KINDS), GenericBase)
