"""Stages 2a and 2b: an `AutoencoderTiny` between 64 x 64 pictures and 8 x 8 latents.

The encoder is trained first, together with a decoder. Latents are kept near zero mean and unit variance per channel and
noise is added to them, so that neighbouring latents decode to similar pictures and small errors of the denoiser stay
small. Once a denoiser is being trained the encoder must not change any more; the decoder may be trained on alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from imprompt.recipes.emoji import dataset
from imprompt.recipes.emoji.augment import (
    draw_colour_orders,
    draw_mirrored,
    draw_offsets,
    may_mirror,
    mirror,
    normalise,
    reorder_colours,
    shift,
    to_tensor,
)
from imprompt.recipes.emoji.grid import save_grid
from imprompt.recipes.emoji.paths import models_folder
from imprompt.recipes.emoji.stage import stage_loop, train_stage
from imprompt.recipes.emoji.teacher import perceptual_distance
from imprompt.training.config import LoopConfig, OptimizerConfig
from imprompt.training.loop.checkpointing import load_averaged_weights
from imprompt.training.loop.order import BatchOrder, generator_at
from imprompt.training.loop.task import Draw

LATENT_CHANNELS = 8
CHANNELS = 56


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Of both autoencoder stages.

    Attributes:
        loop: Length, and what the run leaves.
        optimizer: Pace.
        preview_every: Steps between previews.
        decoder_only: Keep the encoder of the finished first stage and train its decoder on.
        max_latent_noise: Standard deviation of the strongest noise on a latent; each picture draws its own below it.
        edge_weight: Of the difference of neighbouring pixels.
        perceptual_weight: Of the distance of the teacher's early features; it sharpens what the decoder draws.
        moment_weight: Of the departure of the latents from zero mean and unit variance.
        reordered_colours: Fraction of pictures whose colour channels are exchanged, so that no hue is rare.
        everything: Train on all emoji, not only on the things.
    """

    loop: LoopConfig
    optimizer: OptimizerConfig
    preview_every: int = 500
    decoder_only: bool = False
    max_latent_noise: float = 0.3
    edge_weight: float = 1.0
    perceptual_weight: float = 0.0
    moment_weight: float = 0.1
    reordered_colours: float = 0.4
    everything: bool = False


def default_config() -> AutoencoderConfig:
    """The published recipe of the first stage."""
    return AutoencoderConfig(loop=_loop("autoencoder", num_steps=2635), optimizer=_optimizer(learning_rate=1e-3))


def decoder_config() -> AutoencoderConfig:
    """The published recipe of the second stage, which may follow at any time."""
    return AutoencoderConfig(
        loop=_loop("decoder", num_steps=4000),
        optimizer=_optimizer(learning_rate=5e-4),
        decoder_only=True,
        perceptual_weight=0.5,
    )


def _loop(name: str, num_steps: int) -> LoopConfig:
    return stage_loop(name, num_steps=num_steps, batch_size=16, checkpoint_every=500)


def _optimizer(learning_rate: float) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=learning_rate,
        betas=(0.9, 0.99),
        warmup_steps=100,
        schedule="cosine",
        weight_decay=0.0,
        ema_decay=0.995,
    )


def build() -> AutoencoderTiny:
    """The untrained autoencoder: few blocks where maps are large, most of them at 8 and 16 pixels."""
    return AutoencoderTiny(
        encoder_block_out_channels=(CHANNELS,) * 4,
        decoder_block_out_channels=(CHANNELS,) * 4,
        num_encoder_blocks=(0, 1, 2, 3),
        num_decoder_blocks=(4, 3, 1, 0),
        latent_channels=LATENT_CHANNELS,
    )


@dataclass(frozen=True)
class PictureBatch:
    """Pictures in [-1, 1], and what is added to their latents."""

    images: Float[Tensor, "batch 3 height width"]
    latent_noise: Float[Tensor, "batch channels rows columns"]


class AutoencoderTask:
    """Pictures through latents and back; see `imprompt.training.loop.task.Task`."""

    def __init__(self, model: AutoencoderTiny, pictures: dataset.EmojiPictures, config: AutoencoderConfig) -> None:
        """Keep the training pictures as bytes."""
        members = torch.from_numpy(pictures.split("train"))
        set_memory_format(model, torch.channels_last)
        self.model = model
        self.config = config
        self.images = to_tensor(pictures)[members]
        self.mirrorable = may_mirror(pictures)[members]
        self.num_examples = len(members)
        self.order = BatchOrder(self.num_examples, config.loop.batch_size, config.loop.seed)
        self._held_out = normalise(to_tensor(pictures)[_preview_members(pictures)])
        if config.decoder_only:
            self.model.encoder.requires_grad_(False)

    def batch(self, draw: Draw) -> PictureBatch:
        """Pictures mirrored, shifted and recoloured, and noise for their latents."""
        config = self.config
        mirrored = draw_mirrored(self.mirrorable[draw.samples], draw.uniform("mirrored", 1)[:, 0])
        orders = draw.per_row(
            "colours", lambda generator, rows: draw_colour_orders(rows, config.reordered_colours, generator)
        )
        offsets = draw.per_row("offsets", lambda generator, rows: draw_offsets(rows, 4, generator))
        pictures = reorder_colours(mirror(self.images[draw.samples], mirrored), orders)
        spread = config.max_latent_noise * draw.uniform("spread", 1)
        noise = draw.normal("noise", (LATENT_CHANNELS, pictures.shape[-2] // 8, pictures.shape[-1] // 8))
        return PictureBatch(normalise(shift(pictures, offsets)), spread[:, :, None, None] * noise)

    def loss(self, batch: PictureBatch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Pixels at four scales, edges, early features of the teacher, and the moments of the latents."""
        config, images = self.config, batch.images
        latents = self.model.encoder(images.contiguous(memory_format=torch.channels_last)).float()
        decoded = self.model.decoder(latents + batch.latent_noise).float()
        pixels = pyramid_distance(decoded, images)
        edges = edge_distance(decoded, images)
        perceptual = perceptual_distance(decoded, images) if config.perceptual_weight else images.new_zeros(())
        moments = moment_penalty(latents)
        total = (
            pixels + config.edge_weight * edges + config.perceptual_weight * perceptual + config.moment_weight * moments
        )
        figures = {"pixels": pixels, "edges": edges, "perceptual": perceptual, "moments": moments}
        return total, {name: value.detach() for name, value in figures.items()}

    def preview(self, step: int) -> None:
        """Held-out pictures above what comes back of them."""
        decoded = reconstruct(self.model, self._held_out)
        halves = [part for pair in zip(self._held_out.split(12), decoded.split(12), strict=True) for part in pair]
        save_grid(halves, self.config.loop.output / "previews" / f"step-{step:06d}.png")


def pyramid_distance(
    first: Float[Tensor, "batch 3 height width"], second: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, ""]:
    """Mean absolute difference of the pictures and of their halves, quarters and eighths, where only colour is left."""
    distances = [functional.l1_loss(first, second)]
    for _ in range(3):
        first, second = functional.avg_pool2d(first, 2), functional.avg_pool2d(second, 2)
        distances.append(functional.l1_loss(first, second))
    return torch.stack(distances).sum()


def set_memory_format(model: Any, memory_format: torch.memory_format) -> None:
    """Lay out the weights of both halves; channels last is a third faster on a CPU."""
    model.encoder.to(memory_format=memory_format)
    model.decoder.to(memory_format=memory_format)


def edge_distance(
    first: Float[Tensor, "batch 3 height width"], second: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, ""]:
    """Mean absolute difference of horizontal and vertical pixel differences."""
    error = first - second
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def moment_penalty(latents: Float[Tensor, "batch channels height width"]) -> Float[Tensor, ""]:
    """Squared departure of every channel from zero mean and unit deviation."""
    mean = latents.mean(dim=(0, 2, 3))
    deviation = latents.std(dim=(0, 2, 3))
    return mean.square().mean() + (deviation - 1).square().mean()


@torch.no_grad()
def reconstruct(
    model: AutoencoderTiny, images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch 3 height width"]:
    """Pictures in [-1, 1] through the latents and back."""
    parts = [model.decoder(model.encoder(part.to(model.device))) for part in images.split(32)]
    return torch.cat(parts).cpu().clamp(-1, 1)


def reconstruction_quality(model: AutoencoderTiny, pictures: dataset.EmojiPictures) -> dict[str, float]:
    """PSNR in dB and mean absolute error (of a range of 1) on all held-out pictures."""
    members = pictures.split("held_out_subject", "held_out_pair")
    images = normalise(to_tensor(pictures)[members])
    errors = (reconstruct(model, images) - images) / 2
    squared = errors.square().mean(dim=(1, 2, 3)).clamp(min=1e-10)
    return {"psnr": float((-10 * squared.log10()).mean()), "mean_absolute_error": float(errors.abs().mean())}


def run(config: AutoencoderConfig) -> Path:
    """Train the autoencoder, or its decoder on, and hand on the averaged weights in diffusers' layout.

    Returns:
        Folder of the finished model.
    """
    torch.manual_seed(config.loop.seed)
    pictures = dataset.load(everything=config.everything)
    model = AutoencoderTiny.from_pretrained(model_folder()) if config.decoder_only else build()
    train_stage(AutoencoderTask(model, pictures, config), config)
    return export(model, pictures, config)


def export(model: AutoencoderTiny, pictures: dataset.EmojiPictures, config: AutoencoderConfig) -> Path:
    """Write the averaged weights with the scale that gives the latents unit variance."""
    weights = load_averaged_weights(config.loop.output)
    if weights is not None:
        model.load_state_dict(weights)
    set_memory_format(model.cpu().eval(), torch.contiguous_format)
    if not config.decoder_only:
        model.register_to_config(scaling_factor=latent_scale(model, pictures))
    model.save_pretrained(model_folder())
    return model_folder()


@torch.no_grad()
def latent_scale(model: AutoencoderTiny, pictures: dataset.EmojiPictures) -> float:
    """Factor that brings the latents of the training pictures to unit standard deviation."""
    members = pictures.split("train")[::8]
    images = normalise(to_tensor(pictures)[members])
    latents = torch.cat([model.encoder(part) for part in images.split(32)])
    return round(1.0 / float(latents.std()), 4)


def model_folder() -> Path:
    """Folder of the finished autoencoder."""
    return models_folder() / "vae"


def _preview_members(pictures: dataset.EmojiPictures) -> Tensor:
    members = torch.from_numpy(pictures.split("held_out_subject", "held_out_pair"))
    return members[torch.randperm(len(members), generator=generator_at(0, "preview"))[:48]]
