"""What the denoiser and what steers it read over and over, computed once: latents of views of every picture."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from imprompt.core.files import atomic_write, sha256_file
from imprompt.recipes.emoji.augment import may_mirror, mirror, normalise, shift, to_tensor
from imprompt.recipes.emoji.dataset import EmojiPictures
from imprompt.recipes.emoji.looks import Look
from imprompt.recipes.emoji.paths import cache_folder
from imprompt.training.loop.order import generator_at

NUM_VIEWS = 4
VIEW_SHIFT = 2
"""Shifted views are moved by up to this many pixels."""


def view(pictures: EmojiPictures, number: int) -> Tensor:
    """All pictures as one view shows them: bit 0 of the number mirrors, where sensible, and bit 1 shifts."""
    images = to_tensor(pictures)
    if number & 1:
        images = mirror(images, may_mirror(pictures))
    if number & 2:
        generator = generator_at(0, "view", number)
        offsets = torch.randint(-VIEW_SHIFT, VIEW_SHIFT + 1, (len(images), 2), generator=generator)
        images = shift(images, offsets)
    return images


def latent_views(
    vae_folder: Path, pictures: EmojiPictures, look: Look | None = None
) -> Float[Tensor, "views pictures channels height width"]:
    """Scaled latents of all views, kept in a file that is named by the encoder's weights and the number of pictures.

    Args:
        vae_folder: Folder of the autoencoder.
        pictures: What is encoded.
        look: What is done to the colours of all of them; the file is named by it as well.
    """
    kind = "latents" if look is None else f"latents-{look.name}"
    name = f"{kind}-{_fingerprint(vae_folder)}-{len(pictures.images)}"
    return _cached(
        name,
        lambda: _encode_views(AutoencoderTiny.from_pretrained(vae_folder, torch_dtype=torch.float32), pictures, look),
    )


@torch.no_grad()
def _encode_views(vae: AutoencoderTiny, pictures: EmojiPictures, look: Look | None) -> Tensor:
    views = []
    for number in range(NUM_VIEWS):
        images = view(pictures, number)
        images = images if look is None else look(images)
        parts = tqdm(images.split(64), desc=f"latents of view {number}", mininterval=10)
        latents = torch.cat([vae.encoder(normalise(part)) for part in parts])
        views.append(latents * vae.config["scaling_factor"])
    return torch.stack(views)


def _fingerprint(folder: Path) -> str:
    """First digits of the hash of a model's weights."""
    (weights,) = folder.glob("*.safetensors")
    return sha256_file(weights)[:12]


def _cached(name: str, compute: Callable[[], Tensor]) -> Tensor:
    file = cache_folder() / "features" / f"{name}.safetensors"
    if not file.exists():
        with atomic_write(file) as path:
            save_file({"values": compute().contiguous()}, path)
    return load_file(file)["values"]
