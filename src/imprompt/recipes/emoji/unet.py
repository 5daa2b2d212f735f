"""Stage 3: the denoiser, a `UNet2DConditionModel` on 8 x 8 latents, conditioned on captions.

Its text tower is trained with it from the beginning, as latent diffusion's was: contrast on so few pictures leaves a
tower's states in a few directions, from which a denoiser hardly learns to tell subjects apart.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from imprompt.core.errors import ImpromptError
from imprompt.emoji.styles import STYLES
from imprompt.recipes.emoji import autoencoder, dataset
from imprompt.recipes.emoji.examples import CaptionedBatch, DiffusionExamples
from imprompt.recipes.emoji.grid import save_grid
from imprompt.recipes.emoji.paths import models_folder, stage_folder
from imprompt.recipes.emoji.pipeline import build_pipeline, draw
from imprompt.recipes.emoji.stage import stage_loop, train_stage
from imprompt.recipes.emoji.tokenizer import END, MAX_LENGTH, START, load_tokenizer
from imprompt.training.config import LoopConfig, OptimizerConfig
from imprompt.training.loop.checkpointing import load_averaged_weights
from imprompt.training.loop.order import BatchOrder
from imprompt.training.loop.task import Draw

TEXT_WIDTH = 192
PREVIEW_SUBJECTS = ("red apple", "cat face", "rocket", "pizza", "guitar", "tulip", "house", "crab")


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Of the denoiser stage.

    Attributes:
        loop: Length, and what the run leaves.
        optimizer: Pace.
        preview_every: Steps between previews.
        empty_caption: Fraction of captions that are dropped, so that text guidance works.
        styled_captions: Fraction of captions that name the style; people mostly name none.
        timestep_shift: Above 1, more of the timesteps are those of strong noise: a caption changes what is predicted
            only there, and captions are what is learnt slowest.
        everything: Train on all emoji, not only on the things.
    """

    loop: LoopConfig
    optimizer: OptimizerConfig
    preview_every: int = 500
    empty_caption: float = 0.12
    styled_captions: float = 0.6
    timestep_shift: float = 2.0
    everything: bool = False


def default_config() -> UNetConfig:
    """The published recipe."""
    return UNetConfig(
        loop=stage_loop("unet", num_steps=16_000, batch_size=64, checkpoint_every=250),
        optimizer=OptimizerConfig(
            learning_rate=8e-4, betas=(0.9, 0.99), warmup_steps=100, schedule="cosine", ema_decay=0.998
        ),
    )


def build() -> UNet2DConditionModel:
    """The untrained denoiser: two levels, both with cross-attention; seven attention sites."""
    return UNet2DConditionModel(
        sample_size=dataset.SIZE // 8,
        in_channels=autoencoder.LATENT_CHANNELS,
        out_channels=autoencoder.LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(96, 192),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_text_encoder(vocabulary_size: int, start: int, end: int) -> CLIPTextModel:
    """The untrained text tower: three layers over at most 24 tokens, of which `end` pads too."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary_size,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            projection_dim=TEXT_WIDTH,
            hidden_act="gelu",
            bos_token_id=start,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


class Denoiser(nn.Module):
    """A denoiser and the text tower that is trained with it."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        """Join two models of one cross-attention width."""
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(
        self,
        noisy: Float[Tensor, "batch channels height width"],
        timesteps: Int[Tensor, " batch"],
        token_ids: Int[Tensor, "batch length"],
    ) -> Float[Tensor, "batch channels height width"]:
        """What the denoiser predicts under captions."""
        states = self.text_encoder(token_ids).last_hidden_state
        return self.unet(noisy, timesteps, states).sample


class UNetTask:
    """Noisy latents and captions; see `imprompt.training.loop.task.Task`."""

    def __init__(self, model: Denoiser, examples: DiffusionExamples, config: UNetConfig) -> None:
        """Join the denoiser and its examples."""
        self.model = model
        self.examples = examples
        self.num_examples = len(examples)
        self.config = config
        self.order = BatchOrder(self.num_examples, config.loop.batch_size, config.loop.seed)

    def batch(self, draw: Draw) -> CaptionedBatch:
        """Pictures at random timesteps, under captions some of which are empty."""
        config = self.config
        return self.examples.captioned_batch(
            draw,
            empty_caption=config.empty_caption,
            styled_captions=config.styled_captions,
            timestep_shift=config.timestep_shift,
        )

    def loss(self, batch: CaptionedBatch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Weighted error of the velocity."""
        noisy = batch.noisy
        return noisy.loss(self.model(noisy.noisy, noisy.timesteps, batch.token_ids))

    def preview(self, step: int) -> None:
        """Eight subjects down, eight styles across."""
        pipeline = build_pipeline(models_folder(), self.model.unet, self.model.text_encoder)
        rows = [
            draw(pipeline, [f"{subject}, {style.word} style emoji" for style in STYLES], seed=100 * number)
            for number, subject in enumerate(PREVIEW_SUBJECTS)
        ]
        save_grid(rows, self.config.loop.output / "previews" / f"step-{step:06d}.png")


def run(config: UNetConfig) -> Path:
    """Train the denoiser and hand on its averaged weights in diffusers' layout.

    Returns:
        Folder with `unet` and `text_encoder`.
    """
    torch.manual_seed(config.loop.seed)
    pictures = dataset.load(everything=config.everything)
    model = Denoiser(build(), _text_encoder())
    train_stage(UNetTask(model, DiffusionExamples(pictures), config), config)
    return snapshot(config.loop.output)


def load_denoiser() -> Denoiser:
    """The denoiser as the last snapshot handed it on."""
    unet = UNet2DConditionModel.from_pretrained(models_folder() / "unet")
    return Denoiser(unet, CLIPTextModel.from_pretrained(models_folder() / "text_encoder"))


def _text_encoder() -> CLIPTextModel:
    vocabulary = load_tokenizer().get_vocab()
    return build_text_encoder(len(vocabulary), vocabulary[START], vocabulary[END])


def snapshot(run_folder: Path | None = None) -> Path:
    """Hand on the averaged weights of the newest checkpoint, also while training goes on in another process.

    Args:
        run_folder: Folder of the run; the recipe's own by default.

    Returns:
        Folder with `unet` and `text_encoder`.

    Raises:
        ImpromptError: The run has no checkpoint yet.
    """
    weights = load_averaged_weights(run_folder or stage_folder("unet"))
    if weights is None:
        raise ImpromptError("the stage 'unet' has no checkpoint yet; train it first ('imprompt emoji train unet')")
    model = Denoiser(build(), _text_encoder())
    model.load_state_dict(weights)
    model.eval()
    model.unet.save_pretrained(models_folder() / "unet")
    model.text_encoder.save_pretrained(models_folder() / "text_encoder")
    return models_folder()
