"""Structure on the packaged base: a ControlNet that follows edges, and a T2I-Adapter that follows a grid of colours.

Both are trained without any image prompt, as published ones are; the base is frozen. See `docs/guide/structure.md`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.adapter import T2IAdapter
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusers.pipelines.t2i_adapter.pipeline_stable_diffusion_adapter import StableDiffusionAdapterPipeline
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from imprompt.emoji.bundle import bundle_folder
from imprompt.emoji.conditions import as_control, colour_cells, edge_maps
from imprompt.recipes.emoji import dataset
from imprompt.recipes.emoji.augment import normalise, to_tensor
from imprompt.recipes.emoji.base import base_pipeline, base_stage, load_base
from imprompt.recipes.emoji.examples import CaptionedBatch, DiffusionExamples
from imprompt.recipes.emoji.grid import save_grid
from imprompt.recipes.emoji.paths import models_folder
from imprompt.recipes.emoji.pipeline import draw
from imprompt.recipes.emoji.stage import stage_loop, train_stage
from imprompt.recipes.emoji.unet import Denoiser
from imprompt.training.config import LoopConfig, OptimizerConfig
from imprompt.training.loop.checkpointing import load_averaged_weights
from imprompt.training.loop.distributed import resolve_device
from imprompt.training.loop.order import BatchOrder, generator_at
from imprompt.training.loop.task import Draw

Kind = Literal["controlnet", "t2i_adapter"]

PREVIEW_PICTURES = 12
GAIN = 1.8
"""Of a convolution before a SiLU; as much variance comes out of the two as goes in."""


@dataclass(frozen=True, kw_only=True)
class StructureConfig:
    """Of one structure stage.

    Attributes:
        kind: `controlnet` follows edges, `t2i_adapter` a grid of colours.
        loop: Length, and what the run leaves.
        optimizer: Pace.
        preview_every: Steps between previews.
        empty_caption: Fraction of captions that are dropped, so that the condition alone tells the shape.
        styled_captions: Fraction of captions that name the style.
        timestep_shift: Above 1, more of the timesteps are those of strong noise, where edges and colours are decided.
        everything: Train on all emoji, not only on the things.
    """

    kind: Kind
    loop: LoopConfig
    optimizer: OptimizerConfig
    preview_every: int = 200
    empty_caption: float = 0.4
    styled_captions: float = 0.5
    timestep_shift: float = 3.0
    everything: bool = False


def default_config(kind: Kind) -> StructureConfig:
    """The published recipe, some minutes on a CPU."""
    optimizer = OptimizerConfig(
        learning_rate=1e-3, betas=(0.9, 0.99), warmup_steps=50, schedule="cosine", ema_decay=0.98
    )
    num_steps = 600 if kind == "controlnet" else 500
    loop = stage_loop(base_stage(kind), num_steps=num_steps, batch_size=16, checkpoint_every=100)
    return StructureConfig(kind=kind, loop=loop, optimizer=optimizer)


def build(kind: Kind, unet: UNet2DConditionModel) -> ControlNetModel | T2IAdapter:
    """An untrained network that fits the denoiser: one feature map for each place that the denoiser adds one to."""
    if kind == "controlnet":
        model = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 64, 96))
        _wake(model.controlnet_cond_embedding)
        return model
    model = T2IAdapter(channels=list(unet.config["block_out_channels"]), num_res_blocks=2, downscale_factor=8)
    reader: Any = model.adapter.conv_in
    _still_on_white(reader)
    reader.requires_grad_(False)
    return model


def _wake(embedding: nn.Module) -> None:
    """Draw the convolutions that read the condition such that it comes through them at full strength.

    As diffusers draws them it fades to 1 in 40,000, and the last one is zero: learning to see takes thousands
    of steps then. The zero convolutions behind the copied blocks suffice to leave the denoiser as it is at first.
    """
    for layer in embedding.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=GAIN / layer.weight[0].numel() ** 0.5)
            layer.bias = nn.Parameter(torch.zeros(layer.out_channels))


def _still_on_white(layer: nn.Conv2d) -> None:
    """Let the convolution that reads the colours make zero of white, which most of every picture is.

    It stays as it is drawn: each colour comes to it 576 times over (the pixels of 3 x 3 latent ones), so that any step
    of the optimizer that suits other layers is far too long for it.
    """
    with torch.no_grad():
        layer.bias = nn.Parameter(-layer.weight.sum(dim=(1, 2, 3)))


def condition_of(kind: Kind) -> Callable[[Tensor], Tensor]:
    """What the network sees of pictures."""
    return edge_maps if kind == "controlnet" else colour_cells


@dataclass(frozen=True)
class ControlledBatch(CaptionedBatch):
    """A batch with a condition for each picture.

    Attributes:
        control: What the trained network sees.
    """

    control: Float[Tensor, "batch channels rows columns"]


class StructureTask:
    """Noisy latents, captions and conditions of the same pictures; see `imprompt.training.loop.task.Task`."""

    def __init__(
        self,
        model: ControlNetModel | T2IAdapter,
        base: Denoiser,
        pictures: dataset.EmojiPictures,
        config: StructureConfig,
    ) -> None:
        """Keep the conditions of all pictures as bytes."""
        self.model = model
        self.config = config
        self.base = base.to(resolve_device(config.loop.device))
        self.pictures = pictures
        self.examples = DiffusionExamples(pictures, bundle_folder())
        self.num_examples = len(self.examples)
        self.order = BatchOrder(self.num_examples, config.loop.batch_size, config.loop.seed)
        self.conditions = _conditions(config.kind, pictures)

    def batch(self, draw: Draw) -> ControlledBatch:
        """Pictures at random timesteps, captions some of which are empty, and conditions."""
        config = self.config
        batch = self.examples.captioned_batch(
            draw,
            empty_caption=config.empty_caption,
            styled_captions=config.styled_captions,
            timestep_shift=config.timestep_shift,
        )
        control = as_control(self.conditions[batch.noisy.members])
        return ControlledBatch(batch.noisy, batch.token_ids, control)

    def loss(self, batch: ControlledBatch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Weighted error of the velocity that the frozen base predicts with the trained network's help."""
        noisy = batch.noisy
        states = self.base.text_encoder(batch.token_ids).last_hidden_state
        help_given = residuals(self.model, noisy.noisy, noisy.timesteps, states, batch.control)
        return noisy.loss(self.base.unet(noisy.noisy, noisy.timesteps, states, **help_given).sample)

    def preview(self, step: int) -> None:
        """Held-out pictures, their conditions, and what comes of these without a word."""
        held_out = torch.from_numpy(self.pictures.split("held_out_subject", "held_out_pair"))
        members = held_out[torch.randperm(len(held_out), generator=generator_at(0, "preview"))[:PREVIEW_PICTURES]]
        control = as_control(self.conditions[members])
        made = draw_from_conditions(self.model, control)
        rows = [normalise(to_tensor(self.pictures)[members]), control * 2 - 1, made]
        save_grid(rows, self.config.loop.output / "previews" / f"step-{step:06d}.png")


def residuals(
    model: ControlNetModel | T2IAdapter, noisy: Tensor, timesteps: Tensor, states: Tensor, control: Tensor
) -> dict[str, Any]:
    """What is added inside the denoiser, as arguments of its call."""
    if isinstance(model, T2IAdapter):
        return {"down_intrablock_additional_residuals": list(model(control))}
    down, middle = model(noisy, timesteps, states, control, return_dict=False)
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def draw_from_conditions(
    model: ControlNetModel | T2IAdapter, control: Float[Tensor, "batch 3 64 64"]
) -> Float[Tensor, "batch 3 64 64"]:
    """One picture for each condition, without a caption."""
    if isinstance(model, T2IAdapter):
        pipeline = base_pipeline(StableDiffusionAdapterPipeline, adapter=model)
    else:
        pipeline = base_pipeline(StableDiffusionControlNetPipeline, controlnet=model)
    return draw(pipeline, [""] * len(control), image=control)


def _conditions(kind: Kind, pictures: dataset.EmojiPictures) -> UInt8[Tensor, "pictures channels rows columns"]:
    condition = condition_of(kind)
    return torch.cat([condition(part) for part in to_tensor(pictures).split(256)])


def run(config: StructureConfig) -> Path:
    """Train one network on the packaged base and hand on its averaged weights in diffusers' layout.

    Returns:
        Folder of the finished model.
    """
    torch.manual_seed(config.loop.seed)
    pictures = dataset.load(everything=config.everything)
    base = load_base()
    model = build(config.kind, base.unet)
    train_stage(StructureTask(model, base, pictures, config), config)
    weights = load_averaged_weights(config.loop.output)
    if weights is not None:
        model.load_state_dict(weights)
    model.eval().save_pretrained(models_folder() / config.kind)
    return models_folder() / config.kind
