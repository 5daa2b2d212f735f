"""Custom models of the packaged base: a LoRA in one look that it has never seen, and all its weights in another.

Both learn the look of every picture, whatever its caption says; see `docs/guide/structure.md`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from jaxtyping import Float, Int
from torch import Tensor

from imprompt.emoji.bundle import bundle_folder
from imprompt.recipes.emoji import dataset
from imprompt.recipes.emoji.base import base_pipeline, load_base, run_folder
from imprompt.recipes.emoji.examples import DiffusionExamples
from imprompt.recipes.emoji.grid import save_grid
from imprompt.recipes.emoji.looks import BLUEPRINT, SEPIA, Look
from imprompt.recipes.emoji.paths import models_folder
from imprompt.recipes.emoji.pipeline import draw
from imprompt.recipes.emoji.unet import PREVIEW_SUBJECTS, Denoiser
from imprompt.training.checkpointing import load_averaged_weights
from imprompt.training.loop import LoopConfig, train

Kind = Literal["lora", "finetune"]

RANK = 8
LORA_LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "conv2")
"""Projections of all attention, and the convolutions, which make most of the palette."""


@dataclass(frozen=True, kw_only=True)
class CustomConfig:
    """Of one custom model.

    Attributes:
        kind: `lora` trains low-rank additions, `finetune` every weight of the denoiser.
        look: What it learns.
        loop: Length and pace.
        empty_caption: Fraction of captions that are dropped, so that text guidance goes on working.
        styled_captions: Fraction of captions that name one of the eight styles.
        everything: Train on all emoji, not only on the things.
    """

    kind: Kind
    look: Look
    loop: LoopConfig
    empty_caption: float = 0.12
    styled_captions: float = 0.5
    everything: bool = False


def default_config(kind: Kind) -> CustomConfig:
    """The published recipe, some minutes on a CPU."""
    look = SEPIA if kind == "lora" else BLUEPRINT
    loop = LoopConfig(
        folder=run_folder(kind),
        num_steps=600,
        batch_size=16,
        learning_rate=2e-3 if kind == "lora" else 4e-4,
        warmup_steps=30,
        schedule="cosine",
        ema_decay=0.98,
        checkpoint_every=100,
        preview_every=200,
    )
    return CustomConfig(kind=kind, look=look, loop=loop)


def prepare(unet: UNet2DConditionModel, kind: Kind) -> UNet2DConditionModel:
    """The denoiser with what is to be trained: fresh low-rank additions, or all it has."""
    if kind == "finetune":
        return unet.requires_grad_(True)
    from peft import LoraConfig

    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(LORA_LAYERS)))
    return unet


class CustomTask:
    """Noisy latents of pictures in a look, and captions; see `imprompt.training.loop.Task`."""

    def __init__(self, base: Denoiser, pictures: dataset.EmojiPictures, config: CustomConfig) -> None:
        """Prepare the base's denoiser; its text tower stays as it is."""
        self.model = prepare(base.unet, config.kind)
        self.config = config
        self.text_encoder = base.to(config.loop.device).text_encoder
        self.examples = DiffusionExamples(pictures, bundle_folder(), config.look)
        self.num_examples = len(self.examples)

    def loss(
        self, indices: Int[Tensor, " batch"], generator: torch.Generator
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Weighted error of the velocity, under captions some of which are empty."""
        device = self.config.loop.device
        batch = self.examples.noisy_batch(indices, generator).to(device)
        no_text = torch.rand(len(indices), generator=generator) < self.config.empty_caption
        token_ids = self.examples.captions_of(
            batch.members, no_text, generator, styled_probability=self.config.styled_captions
        )
        states = self.text_encoder(token_ids.to(device)).last_hidden_state
        return batch.loss(self.model(batch.noisy, batch.timesteps, states).sample)

    def preview(self, step: int) -> None:
        """Eight subjects, from two seeds."""
        pipeline = base_pipeline(unet=self.model)
        rows = [draw(pipeline, list(PREVIEW_SUBJECTS), seed=seed) for seed in (0, 100)]
        save_grid(rows, self.config.loop.folder / "previews" / f"step-{step:06d}.png")


def run(config: CustomConfig) -> Path:
    """Train one custom model of the packaged base and hand on its averaged weights in diffusers' layout.

    Returns:
        Folder of the LoRA, or of the denoiser.
    """
    torch.manual_seed(config.loop.seed)
    task = CustomTask(load_base(), dataset.load(everything=config.everything), config)
    train(task, config.loop)
    weights = load_averaged_weights(config.loop.folder)
    if weights is not None:
        task.model.load_state_dict(weights)
    return export(task.model.eval(), config)


def model_folder(config: CustomConfig) -> Path:
    """Where the finished model lies."""
    return models_folder() / ("lora" if config.kind == "lora" else f"unet_{config.look.name}")


def export(unet: Any, config: CustomConfig) -> Path:
    """Write the low-rank additions, or the denoiser, as diffusers reads them."""
    folder = model_folder(config)
    if config.kind == "finetune":
        unet.save_pretrained(folder)
        return folder
    from peft.utils import get_peft_model_state_dict

    layers: dict[str, Any] = {name: value.contiguous() for name, value in get_peft_model_state_dict(unet).items()}
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    return folder
