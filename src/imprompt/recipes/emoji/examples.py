"""Examples for the denoiser and for adapters: noisy latents, what to predict, and a caption."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imprompt.recipes.emoji.captions import caption_table
from imprompt.recipes.emoji.clip import tokenise
from imprompt.recipes.emoji.dataset import EmojiPictures
from imprompt.recipes.emoji.latents import latent_views
from imprompt.recipes.emoji.looks import Look
from imprompt.recipes.emoji.paths import models_folder
from imprompt.recipes.emoji.pipeline import build_scheduler
from imprompt.training.objective import add_noise, diffusion_loss, draw_timesteps, snr_weights, training_target

SNR_GAMMA = 5.0
LABEL_PROBABILITY = 0.8


@dataclass(frozen=True)
class NoisyBatch:
    """Input and target of a denoiser.

    Attributes:
        members: Numbers of the pictures.
        views: Which view of each; bit 0 says that it is mirrored.
        noisy: Noisy latents.
        timesteps: Their places in the schedule.
        target: What the denoiser shall predict.
        weights: What each row's error counts.
    """

    members: Int[Tensor, " batch"]
    views: Int[Tensor, " batch"]
    noisy: Float[Tensor, "batch channels height width"]
    timesteps: Int[Tensor, " batch"]
    target: Float[Tensor, "batch channels height width"]
    weights: Float[Tensor, " batch"]

    def to(self, device: str) -> "NoisyBatch":
        """The same batch on another device; the numbers of pictures and views stay."""
        moved = ("noisy", "timesteps", "target", "weights")
        return replace(self, **{name: getattr(self, name).to(device) for name in moved})

    def loss(self, prediction: Float[Tensor, "batch channels height width"]) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted error, and the plain one for the log."""
        return (
            diffusion_loss(prediction, self.target, self.weights),
            {"error": diffusion_loss(prediction.detach(), self.target)},
        )


class DiffusionExamples:
    """The training pictures as latents of several views, and their captions as token ids."""

    def __init__(self, pictures: EmojiPictures, models: Path | None = None, look: Look | None = None) -> None:
        """Load, or compute once, what the finished autoencoder makes of the pictures; tokenise the captions.

        Args:
            pictures: What is drawn.
            models: Folder with `vae` and `tokenizer`; the finished stages' by default.
            look: What is done to the pictures' colours, if anything.
        """
        models = models or models_folder()
        self.members = torch.from_numpy(pictures.split("train"))
        self.latents = latent_views(models / "vae", pictures, look)
        self.captions = caption_table(pictures)
        self.token_ids = tokenise(self.captions.texts, models / "tokenizer")
        scheduler = build_scheduler()
        self.alphas_cumprod = scheduler.alphas_cumprod
        self.prediction_type = scheduler.config["prediction_type"]

    def __len__(self) -> int:
        return len(self.members)

    def noisy_batch(self, indices: Int[Tensor, " batch"], generator: torch.Generator) -> NoisyBatch:
        """A random view of each picture at a random timestep."""
        members = self.members[indices]
        views = torch.randint(len(self.latents), (len(members),), generator=generator)
        clean = self.latents[views, members]
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = draw_timesteps(len(members), len(self.alphas_cumprod), generator)
        alphas = self.alphas_cumprod[timesteps]
        return NoisyBatch(
            members=members,
            views=views,
            noisy=add_noise(clean, noise, alphas),
            timesteps=timesteps,
            target=training_target(clean, noise, alphas, self.prediction_type),
            weights=snr_weights(alphas, self.prediction_type, gamma=SNR_GAMMA, offset=1.0),
        )

    def captions_of(
        self,
        members: Int[Tensor, " batch"],
        is_empty: Bool[Tensor, " batch"],
        generator: torch.Generator,
        *,
        styled_probability: float,
    ) -> Int[Tensor, "batch length"]:
        """Token ids of a random caption of each picture, of the empty caption where it is dropped.

        Args:
            members: Numbers of the pictures.
            is_empty: Whose caption is dropped.
            generator: Source of all randomness.
            styled_probability: How often the caption names the style.
        """
        texts, _ = self.captions.sample(
            members, generator, label_probability=LABEL_PROBABILITY, styled_probability=styled_probability
        )
        return self.token_ids[torch.where(is_empty, 0, texts)]
