"""What later stages read over and over, computed once: latents and vision features of views of every picture."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPVisionModelWithProjection

from imprompt.adapter.spec import FeatureSpec
from imprompt.core.files import atomic_write, sha256_file
from imprompt.recipes.emoji.augment import may_mirror, mirror, normalise, shift, to_tensor
from imprompt.recipes.emoji.clip import IMAGE_SIZE
from imprompt.recipes.emoji.dataset import EmojiPictures
from imprompt.recipes.emoji.looks import Look
from imprompt.recipes.emoji.paths import cache_folder
from imprompt.training.order import generator_at

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


@dataclass(frozen=True)
class VisionFeatures:
    """Features of every picture as adapters read them.

    Attributes:
        views: Half precision [2, pictures, *length, width]; view 1 is the mirror image.
        null: [*length, width], what stands for "no image".
    """

    views: Float[Tensor, "views pictures *length width"]
    null: Float[Tensor, "*length width"]

    def rows(
        self, views: Int[Tensor, " batch"], pictures: Int[Tensor, " batch"], dropped: Bool[Tensor, " batch"]
    ) -> Float[Tensor, "batch *length width"]:
        """Features of the chosen pictures, those of "no image" where the image is dropped."""
        features = self.views[views, pictures].float()
        features[dropped] = self.null
        return features


def vision_features(vision_folder: Path, pictures: EmojiPictures, spec: FeatureSpec) -> VisionFeatures:
    """Features of one layer for both mirror images, kept in a file named by the encoder's weights."""
    encoder = CLIPVisionModelWithProjection.from_pretrained(vision_folder)
    name = f"vision-{spec.layer}-{_fingerprint(vision_folder)}-{len(pictures.images)}"
    views = _cached(
        name, lambda: torch.stack([_encode_images(encoder, view(pictures, number), spec) for number in (0, 1)])
    )
    return VisionFeatures(views, null_features(encoder, spec))


def null_features(encoder: CLIPVisionModelWithProjection, spec: FeatureSpec) -> Float[Tensor, "*length width"]:
    """Zeros for the pooled embedding; the features of zero normalised pixels for hidden layers."""
    if spec.layer == "image_embeds":
        return torch.zeros(spec.width)
    return _read_layer(encoder, torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE), spec)[0]


def _encode_images(encoder: CLIPVisionModelWithProjection, images: Tensor, spec: FeatureSpec) -> Tensor:
    parts = tqdm(images.split(64), desc="vision features", mininterval=10)
    return torch.cat([_read_layer(encoder, normalise(part), spec).half() for part in parts])


@torch.no_grad()
def _read_layer(encoder: CLIPVisionModelWithProjection, images: Tensor, spec: FeatureSpec) -> Tensor:
    outputs = encoder(images, output_hidden_states=True)
    return outputs.image_embeds if spec.layer == "image_embeds" else outputs.hidden_states[spec.index]
