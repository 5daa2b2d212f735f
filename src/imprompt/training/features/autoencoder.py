"""Latents of pictures, by an autoencoder alone: no other part of its pipeline is loaded."""

import json
import logging
from pathlib import Path
from typing import Any

import diffusers
import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprompt.core.errors import CheckpointError, first_line
from imprompt.training.bases.frozen import scaled

logger = logging.getLogger(__name__)


def load_autoencoder(folder: Path, variant: str | None, dtype: torch.dtype, device: torch.device) -> Any:
    """Load an autoencoder of diffusers, frozen.

    Raises:
        CheckpointError: The folder holds none.
    """
    try:
        name = str(json.loads((folder / "config.json").read_text())["_class_name"])
        if not name.startswith("Autoencoder"):
            raise ValueError(f"it is a {name}")
        vae = getattr(diffusers, name).from_pretrained(
            folder, variant=variant, torch_dtype=dtype, use_safetensors=True, local_files_only=True
        )
    except Exception as error:  # diffusers raises whatever its parsers do
        raise CheckpointError(
            f"'{folder}' holds no autoencoder of diffusers that can be read ({first_line(error)}); it needs "
            "config.json and weights in safetensors"
        ) from error
    return vae.to(device).requires_grad_(False).eval()


@torch.no_grad()
def encode_latents(
    vae: Any, pixels: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch channels rows columns"]:
    """Scaled latents of pictures in [-1, 1], in float32: the mean of what the autoencoder makes of each.

    Some autoencoders, SDXL's first of all, exceed float16 for some pictures: a batch with such a picture is encoded
    again in float32.

    Raises:
        CheckpointError: Latents are not finite in float32 either.
    """
    latents = _encoded(vae, pixels)
    if not bool(latents.isfinite().all()) and vae.dtype != torch.float32:
        dtype = vae.dtype
        logger.info("latents exceed %s; a batch is encoded again in float32", dtype)
        latents = _encoded(nn.Module.float(vae), pixels)
        nn.Module.to(vae, dtype)  # nothing is lost: every float16 and bfloat16 is a float32
    if not bool(latents.isfinite().all()):
        raise CheckpointError("the autoencoder's latents are not finite, even in float32; get its weights again")
    return scaled(latents, vae.config)


def _encoded(vae: Any, pixels: Tensor) -> Tensor:
    encoded = vae.encode(pixels.to(vae.device, vae.dtype))
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mode().float()
    return (encoded.latents if hasattr(encoded, "latents") else encoded.latent).float()
