"""Examples for the denoiser and for adapters: noisy latents, what to predict, and a caption."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imprompt.recipes.emoji.captions import caption_table
from imprompt.recipes.emoji.dataset import EmojiPictures
from imprompt.recipes.emoji.latents import scaled_latents
from imprompt.recipes.emoji.looks import Look
from imprompt.recipes.emoji.paths import models_folder
from imprompt.recipes.emoji.pipeline import build_scheduler
from imprompt.recipes.emoji.tokenizer import tokenise
from imprompt.training.config import ObjectiveConfig
from imprompt.training.loop.task import Draw
from imprompt.training.objective.noise import noise_process
from imprompt.training.objective.objective import diffusion_loss

LABEL_PROBABILITY = 0.8


@dataclass(frozen=True)
class NoisyBatch:
    """Input and target of a denoiser.

    Attributes:
        members: Numbers of the pictures.
        noisy: Noisy latents.
        timesteps: Their places in the schedule.
        target: What the denoiser shall predict.
        weights: What each row's error counts.
    """

    members: Int[Tensor, " batch"]
    noisy: Float[Tensor, "batch channels height width"]
    timesteps: Int[Tensor, " batch"]
    target: Float[Tensor, "batch channels height width"]
    weights: Float[Tensor, " batch"]

    def loss(self, prediction: Float[Tensor, "batch channels height width"]) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted error, and the plain one for the log."""
        return (
            diffusion_loss(prediction, self.target, self.weights),
            {"error": diffusion_loss(prediction.detach(), self.target)},
        )


@dataclass(frozen=True)
class CaptionedBatch:
    """Input and target of a denoiser, and a caption of each picture.

    Attributes:
        noisy: The pictures' part.
        token_ids: The captions.
    """

    noisy: NoisyBatch
    token_ids: Int[Tensor, "batch length"]


class DiffusionExamples:
    """The training pictures as latents, and their captions as token ids."""

    def __init__(self, pictures: EmojiPictures, models: Path | None = None, look: Look | None = None) -> None:
        """Load, or compute once, what the finished autoencoder makes of the pictures; tokenise the captions.

        Args:
            pictures: What is drawn.
            models: Folder with `vae` and `tokenizer`; the finished stages' by default.
            look: What is done to the pictures' colours, if anything.
        """
        models = models or models_folder()
        self.members = torch.from_numpy(pictures.split("train"))
        self.latents = scaled_latents(models / "vae", pictures, look)
        self.captions = caption_table(pictures)
        self.token_ids = tokenise(self.captions.texts, models / "tokenizer")
        self.scheduler = build_scheduler()

    def __len__(self) -> int:
        return len(self.members)

    def noisy_batch(self, draw: Draw, *, timestep_shift: float = 1.0) -> NoisyBatch:
        """Each picture at a random timestep.

        Args:
            draw: Whose.
            timestep_shift: Above 1, more of the timesteps are high ones, of strong noise; see `shift_levels`.
        """
        members = self.members[draw.samples]
        clean = self.latents[members]
        objective = ObjectiveConfig(min_snr_gamma=5.0, snr_offset=1.0, timestep_shift=timestep_shift)
        process = noise_process(self.scheduler, objective)
        noise, timesteps = process.noise(draw, clean.shape[1:]), process.draw(draw)
        return NoisyBatch(
            members=members,
            noisy=process.add(clean, noise, timesteps),
            timesteps=timesteps,
            target=process.target(clean, noise, timesteps),
            weights=process.weights(timesteps),
        )

    def captioned_batch(
        self, draw: Draw, *, empty_caption: float, styled_captions: float, timestep_shift: float = 1.0
    ) -> CaptionedBatch:
        """A noisy batch under captions some of which are empty.

        Args:
            draw: Whose.
            empty_caption: How often a caption is empty.
            styled_captions: How often it names the style.
            timestep_shift: Of the noisy batch.
        """
        is_empty = draw.uniform("empty captions", 1)[:, 0] < empty_caption
        token_ids = self.captions_of(draw, is_empty, styled_probability=styled_captions)
        return CaptionedBatch(self.noisy_batch(draw, timestep_shift=timestep_shift), token_ids)

    def captions_of(
        self, draw: Draw, is_empty: Bool[Tensor, " batch"], *, styled_probability: float
    ) -> Int[Tensor, "batch length"]:
        """Token ids of a random caption of each picture, of the empty caption where it is dropped.

        Args:
            draw: Whose captions.
            is_empty: Whose caption is dropped.
            styled_probability: How often the caption names the style.
        """
        texts, _ = self.captions.sample(
            self.members[draw.samples],
            draw.uniform("captions", 4),
            label_probability=LABEL_PROBABILITY,
            styled_probability=styled_probability,
        )
        return self.token_ids[torch.where(is_empty, 0, texts)]
