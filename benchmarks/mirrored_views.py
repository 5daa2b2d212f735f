"""What do mirrored and shifted copies cost a model that is told nothing of them?

A caption and a pooled embedding hardly say which way a thing faces and where it is. At strong noise the best that a
denoiser can predict of a picture and of its copy is the mean of both, so that what tells them apart is lost. For each
kind of copy this prints the share of the latents' variance that is lost so, the cosine of the pooled embeddings of
picture and copy, and for scale the same of a picture and another subject's.

    python benchmarks/mirrored_views.py                    # the embedded model's references
    python benchmarks/mirrored_views.py --folder pictures  # pictures of your own, as the embedded model sees them
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity

from imprompt.core.images import fit_square, load_image
from imprompt.emoji.bundle import bundle_folder, reference_pictures
from imprompt.encoders.vision import VisionEncoder
from imprompt.evaluation.layouts import pictures_in
from imprompt.generation.quiet import quiet_libraries
from imprompt.recipes.emoji.augment import normalise
from imprompt.recipes.emoji.dataset import SIZE

SHIFT = 2
"""Pixels to the right, of 64; what leaves there comes in at the left, and both edges are as good as white."""


def main() -> None:
    """Print a line for each kind of copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="pictures; by default the embedded model's references")
    folder: Path | None = parser.parse_args().folder
    quiet_libraries()
    paths = list(reference_pictures().values()) if folder is None else pictures_in(folder)
    pixels = torch.stack([_pixels(path) for path in paths])
    latents, embeds = _latents(pixels), _embeds(pixels)
    variance = (latents - latents.mean(0)).square().mean()
    print(f"{len(paths)} pictures: copy, share of the latents' variance lost, cosine of pooled embeddings")
    copies = {
        "mirrored": pixels.flip(-1),
        f"shifted by {SHIFT} pixels": pixels.roll(SHIFT, -1),
        "another subject": pixels.roll(1, 0),
    }
    for name, copy in copies.items():
        lost = ((latents - _latents(copy)) / 2).square().mean() / variance
        cosine = cosine_similarity(embeds, _embeds(copy)).mean()
        print(f"{name:20s} {lost:6.1%} {cosine:6.3f}")


def _pixels(path: Path) -> Tensor:
    image = fit_square(load_image(path), "crop").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).movedim(2, 0)


@torch.no_grad()
def _latents(pixels: Tensor) -> Tensor:
    vae = AutoencoderTiny.from_pretrained(bundle_folder() / "vae", torch_dtype=torch.float32)
    return torch.cat([vae.encoder(normalise(part)) for part in pixels.split(64)])


def _embeds(pixels: Tensor) -> Tensor:
    encoder = VisionEncoder.from_folder(bundle_folder() / "image_encoder")
    images = [Image.fromarray(each.movedim(0, 2).numpy()) for each in pixels]
    return encoder.encode(images, layer="image_embeds")


if __name__ == "__main__":
    main()
