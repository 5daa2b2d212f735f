"""What the denoiser and what steers it read over and over, computed once: latents of every picture.

Pictures are neither mirrored nor shifted. Neither a caption nor a pooled embedding says which way a thing faces and
where it is, so that what is predicted at strong noise would be the mean of all ways: a symmetrical blob.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from imprompt.core.files import atomic_write, sha256_file
from imprompt.recipes.emoji.augment import normalise, to_tensor
from imprompt.recipes.emoji.dataset import EmojiPictures
from imprompt.recipes.emoji.looks import Look
from imprompt.recipes.emoji.paths import cache_folder


def scaled_latents(
    vae_folder: Path, pictures: EmojiPictures, look: Look | None = None
) -> Float[Tensor, "pictures channels height width"]:
    """Latents of all pictures, kept in a file that is named by the encoder's weights and the number of pictures.

    Args:
        vae_folder: Folder of the autoencoder.
        pictures: What is encoded.
        look: What is done to the colours of all of them; the file is named by it as well.
    """
    kind = "scaled-latents" if look is None else f"scaled-latents-{look.name}"
    name = f"{kind}-{_fingerprint(vae_folder)}-{len(pictures.images)}"
    return _cached(
        name,
        lambda: _encode(AutoencoderTiny.from_pretrained(vae_folder, torch_dtype=torch.float32), pictures, look),
    )


@torch.no_grad()
def _encode(vae: AutoencoderTiny, pictures: EmojiPictures, look: Look | None) -> Tensor:
    images = to_tensor(pictures)
    images = images if look is None else look(images)
    parts = tqdm(images.split(64), desc="latents", mininterval=10)
    return torch.cat([vae.encoder(normalise(part)) for part in parts]) * vae.config["scaling_factor"]


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
