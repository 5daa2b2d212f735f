"""Stage 4: image prompt adapters, trained the way the paper trains them.

The denoiser is frozen; keys and values start as copies of the text's. The reference is the picture itself, its features
are computed once, and image, text and both are dropped five times in a hundred each.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor

from imprompt.adapter.adapter import Adapter, new_adapter
from imprompt.adapter.attach import attach
from imprompt.adapter.checkpoint import save_adapter
from imprompt.adapter.conditioning import Branch, Conditioning
from imprompt.adapter.spec import FeatureSpec, LinearSpec, ResamplerSpec
from imprompt.emoji.bundle import ADAPTER_FILES
from imprompt.recipes.emoji import dataset
from imprompt.recipes.emoji.augment import normalise
from imprompt.recipes.emoji.clip import WIDTH
from imprompt.recipes.emoji.examples import CaptionedBatch, DiffusionExamples
from imprompt.recipes.emoji.grid import save_grid
from imprompt.recipes.emoji.latents import VisionFeatures, view, vision_features
from imprompt.recipes.emoji.paths import models_folder
from imprompt.recipes.emoji.pipeline import build_pipeline, draw
from imprompt.recipes.emoji.stage import stage_loop, train_stage
from imprompt.recipes.emoji.unet import Denoiser, load_denoiser
from imprompt.training.checkpointing import load_averaged_weights
from imprompt.training.config import DropoutConfig, LoopConfig, OptimizerConfig
from imprompt.training.distributed import resolve_device
from imprompt.training.dropout import draw_dropout
from imprompt.training.order import BatchOrder, generator_at
from imprompt.training.task import Draw

Kind = Literal["global", "plus"]

ENCODER = "imprompt emoji CLIP ViT-64/8"


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Of one adapter stage.

    Attributes:
        kind: `global` makes 4 tokens of the pooled embedding, `plus` 16 of all patch tokens.
        loop: Length, and what the run leaves.
        optimizer: Pace.
        preview_every: Steps between previews.
        dropout: How often image, text and both are dropped.
        styled_captions: Fraction of captions that name the style; in the others only the image tells it.
        everything: Train on all emoji, not only on the things.
    """

    kind: Kind
    loop: LoopConfig
    optimizer: OptimizerConfig
    preview_every: int = 1000
    dropout: DropoutConfig = field(default_factory=DropoutConfig)
    styled_captions: float = 0.3
    everything: bool = False


def default_config(kind: Kind) -> AdapterConfig:
    """The published recipe."""
    rate = 5e-4  # the paper's 1e-4 is for a million steps of 64; here are thousands of 32
    return AdapterConfig(
        kind=kind,
        loop=stage_loop(f"adapter-{kind}", num_steps=4000, batch_size=32, checkpoint_every=250),
        optimizer=OptimizerConfig(learning_rate=rate, betas=(0.9, 0.99), warmup_steps=100, ema_decay=0.998),
    )


def build(kind: Kind, unet: UNet2DConditionModel) -> Adapter:
    """An untrained adapter for the denoiser."""
    if kind == "global":
        return new_adapter(
            unet,
            LinearSpec(feature_width=WIDTH, num_tokens=4, width=WIDTH),
            FeatureSpec(layer="image_embeds", width=WIDTH, encoder=ENCODER),
            null_image="zero_features",
            name="ip-adapter_emoji",
        )
    # Depth and width of heads are those of every published resampler, which other programs take for granted.
    projector = ResamplerSpec(
        feature_width=WIDTH, inner_width=64, depth=4, num_heads=1, head_width=64, num_tokens=16, width=WIDTH
    )
    features = FeatureSpec(layer="hidden_states", index=-2, width=WIDTH, encoder=ENCODER)
    return new_adapter(unet, projector, features, null_image="zero_pixels", name="ip-adapter-plus_emoji")


@dataclass(frozen=True)
class ReferencedBatch(CaptionedBatch):
    """A batch with an image prompt for each picture.

    Attributes:
        features: Of the references.
    """

    features: Float[Tensor, "batch *length width"]


class AdapterTask:
    """Noisy latents, captions and reference features; see `imprompt.training.task.Task`."""

    def __init__(
        self, model: Adapter, denoiser: Denoiser, pictures: dataset.EmojiPictures, config: AdapterConfig
    ) -> None:
        """Attach the adapter to the frozen denoiser; load, or compute once, everything that does not change."""
        self.model = model
        self.config = config
        self.denoiser = denoiser.requires_grad_(False).eval().to(resolve_device(config.loop.device))
        self.pictures = pictures
        self.examples = DiffusionExamples(pictures)
        self.num_examples = len(self.examples)
        self.order = BatchOrder(self.num_examples, config.loop.batch_size, config.loop.seed)
        self.features = vision_features(models_folder() / "image_encoder", pictures, model.spec.features)
        self._attachment = attach(denoiser.unet, model)

    def batch(self, draw: Draw) -> ReferencedBatch:
        """Pictures at random timesteps, an image prompt and a caption either of which may be dropped."""
        noisy = self.examples.noisy_batch(draw)
        no_image, no_text = draw_dropout(self.config.dropout, draw)
        token_ids = self.examples.captions_of(draw, no_text, styled_probability=self.config.styled_captions)
        return ReferencedBatch(noisy, token_ids, self.features.rows(noisy.views & 1, noisy.members, no_image))

    def loss(self, batch: ReferencedBatch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Weighted error of the velocity."""
        self._condition(batch.features)
        noisy = batch.noisy
        return noisy.loss(self.denoiser(noisy.noisy, noisy.timesteps, batch.token_ids))

    def _condition(self, features: Float[Tensor, "batch *length width"]) -> None:
        tokens = self.model.project(features)
        scale = torch.ones(1, len(self._attachment.sites), len(tokens), device=tokens.device)
        branch = Branch(tokens=tokens, null_tokens=None, scale=scale)
        self._attachment.set(Conditioning(branches=(branch,), rows=len(tokens)))

    def preview(self, step: int) -> None:
        """Held-out references, and what the image alone makes of each."""
        held_out = torch.from_numpy(self.pictures.split("held_out_subject", "held_out_pair"))
        members = held_out[torch.randperm(len(held_out), generator=generator_at(0, "preview"))[:24]]
        self._attachment.detach()
        made = draw_from_references(self.model, self.denoiser, self.features, members)
        self._attachment = attach(self.denoiser.unet, self.model)
        references = normalise(view(self.pictures, 0)[members])
        halves = [part for pair in zip(references.split(8), made.split(8), strict=True) for part in pair]
        save_grid(halves, self.config.loop.output / "previews" / f"step-{step:06d}.png")


@torch.no_grad()
def draw_from_references(
    adapter: Adapter, denoiser: Denoiser, features: VisionFeatures, members: Int[Tensor, " rows"]
) -> Float[Tensor, "rows 3 height width"]:
    """One picture for each reference, from the image alone."""
    rows = torch.zeros_like(members)
    tokens = adapter.project(features.rows(rows, members, torch.zeros(len(members), dtype=torch.bool)))
    null = adapter.project(features.rows(rows, members, torch.ones(len(members), dtype=torch.bool)))
    pipeline = build_pipeline(models_folder(), denoiser.unet, denoiser.text_encoder)
    with attach(pipeline, adapter) as images:
        scale = torch.ones(1, len(images.sites), len(members), device=tokens.device)
        branch = Branch(tokens=tokens, null_tokens=null, scale=scale)
        images.set(Conditioning(branches=(branch,), rows=len(members)))
        return draw(pipeline, [""] * len(members))


def run(config: AdapterConfig) -> Path:
    """Train one adapter on the denoiser that the third stage has handed on so far.

    Returns:
        The adapter's file, in the published key layout.
    """
    torch.manual_seed(config.loop.seed)
    pictures = dataset.load(everything=config.everything)
    denoiser = load_denoiser()
    adapter = build(config.kind, denoiser.unet)
    train_stage(AdapterTask(adapter, denoiser, pictures, config), config)
    return export(adapter, config)


def export(adapter: Adapter, config: AdapterConfig) -> Path:
    """Write the newest checkpoint's averaged weights as a published adapter would be."""
    weights = load_averaged_weights(config.loop.output)
    if weights is not None:
        adapter.load_state_dict(weights)
    return save_adapter(adapter, models_folder() / "adapters" / ADAPTER_FILES[config.kind])
