"""Custom models of the packaged base: a LoRA in one look that it has never seen, and all its weights in another.

Both learn the look of every picture, whatever its caption says; see `docs/guide/structure.md`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from imprompt.emoji.bundle import bundle_folder
from imprompt.recipes.emoji import dataset
from imprompt.recipes.emoji.base import base_pipeline, base_stage, load_base
from imprompt.recipes.emoji.examples import CaptionedBatch, DiffusionExamples
from imprompt.recipes.emoji.grid import save_grid
from imprompt.recipes.emoji.looks import BLUEPRINT, SEPIA, Look
from imprompt.recipes.emoji.paths import models_folder
from imprompt.recipes.emoji.pipeline import draw
from imprompt.recipes.emoji.stage import stage_loop, train_stage
from imprompt.recipes.emoji.unet import PREVIEW_SUBJECTS
from imprompt.training.config import LoopConfig, OptimizerConfig
from imprompt.training.loop.checkpointing import load_averaged_weights
from imprompt.training.loop.distributed import resolve_device
from imprompt.training.loop.order import BatchOrder
from imprompt.training.loop.task import Draw

Kind = Literal["lora", "finetune"]

RANK = 8
LORA_LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "conv2")
"""Projections of all attention, and the convolutions, which make most of the palette."""


@dataclass(frozen=True, kw_only=True)
class CustomConfig:
    """Of one custom model.

    Attributes:
        bundle: Folder of the base.
        kind: `lora` trains low-rank additions, `finetune` every weight of the denoiser.
        look: What it learns.
        num_pictures: From how many pictures; a look takes few.
        loop: Length, and what the run leaves.
        optimizer: Pace.
        preview_every: Steps between previews.
        empty_caption: Fraction of captions that are dropped, so that text guidance goes on working.
        styled_captions: Fraction of captions that name one of the eight styles.
        everything: Train on all emoji, not only on the things.
    """

    bundle: Path
    kind: Kind
    look: Look
    loop: LoopConfig
    optimizer: OptimizerConfig
    preview_every: int = 100
    num_pictures: int = 750
    empty_caption: float = 0.12
    styled_captions: float = 0.5
    everything: bool = False


def default_config(kind: Kind) -> CustomConfig:
    """The published recipe, some minutes on a CPU."""
    look = SEPIA if kind == "lora" else BLUEPRINT
    optimizer = OptimizerConfig(
        learning_rate=2e-3 if kind == "lora" else 4e-4,
        betas=(0.9, 0.99),
        warmup_steps=20,
        schedule="cosine",
        ema_decay=0.95,
    )
    num_steps = 200 if kind == "lora" else 150
    loop = stage_loop(base_stage(kind), num_steps=num_steps, batch_size=16, checkpoint_every=50)
    return CustomConfig(bundle=bundle_folder(), kind=kind, look=look, loop=loop, optimizer=optimizer)


def prepare(unet: UNet2DConditionModel, kind: Kind) -> UNet2DConditionModel:
    """The denoiser with what is to be trained: fresh low-rank additions, or all it has."""
    if kind == "finetune":
        return unet.requires_grad_(True)
    from peft import LoraConfig

    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(LORA_LAYERS)))
    return unet


class CustomTask:
    """Noisy latents of pictures in a look, and captions; see `imprompt.training.loop.task.Task`."""

    def __init__(self, pictures: dataset.EmojiPictures, config: CustomConfig) -> None:
        """Load the base and prepare its denoiser; its text tower stays as it is."""
        base = load_base(config.bundle)
        self.model = prepare(base.unet, config.kind)
        self.config = config
        self.text_encoder = base.to(resolve_device(config.loop.device)).text_encoder
        self.examples = DiffusionExamples(pictures, config.bundle, config.look)
        self.num_examples = len(self.examples)
        self.order = BatchOrder(self.num_examples, config.loop.batch_size, config.loop.seed)

    def batch(self, draw: Draw) -> CaptionedBatch:
        """Pictures at random timesteps, under captions some of which are empty."""
        config = self.config
        return self.examples.captioned_batch(
            draw, empty_caption=config.empty_caption, styled_captions=config.styled_captions
        )

    def loss(self, batch: CaptionedBatch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Weighted error of the velocity."""
        noisy = batch.noisy
        states = self.text_encoder(batch.token_ids).last_hidden_state
        return noisy.loss(self.model(noisy.noisy, noisy.timesteps, states).sample)

    def preview(self, step: int) -> None:
        """Eight subjects, from two seeds."""
        pipeline = base_pipeline(unet=self.model, bundle=self.config.bundle)
        rows = [draw(pipeline, list(PREVIEW_SUBJECTS), seed=seed) for seed in (0, 100)]
        save_grid(rows, self.config.loop.output / "previews" / f"step-{step:06d}.png")


def run(config: CustomConfig) -> Path:
    """Train one custom model of its base and hand on its averaged weights in diffusers' layout.

    Returns:
        Folder of the LoRA, or of the denoiser.
    """
    model, _ = trained(config)
    return export(model, config)


def trained(config: CustomConfig) -> tuple[Any, int]:
    """The denoiser of one custom model, trained as far as its run is not finished yet, with its averaged weights.

    Returns:
        The denoiser, and the number of its steps: fewer than `config.loop.num_steps` where the run was stopped.
    """
    torch.manual_seed(config.loop.seed)
    pictures = some_of(dataset.load(everything=config.everything), config.num_pictures)
    task = CustomTask(pictures, config)
    num_steps = train_stage(task, config)
    weights = load_averaged_weights(config.loop.output)
    if weights is not None:
        task.model.load_state_dict(weights)
    return task.model.eval(), num_steps


def some_of(pictures: dataset.EmojiPictures, number: int) -> dataset.EmojiPictures:
    """So many pictures, spread evenly over styles and subjects; all where there are no more."""
    places = np.linspace(0, len(pictures.images), min(number, len(pictures.images)), endpoint=False).astype(np.int64)
    chosen = {name: getattr(pictures, name)[places] for name in ("images", "styles", "subject_indices")}
    return replace(pictures, **chosen)


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
