"""Stage 4: image prompt adapters, on the denoiser that the third stage has handed on so far.

They are trained as all adapters are (`imprompt train emoji-plus`); this is the data, the base and the place of the
result. Pictures that are held out of all training are the validation.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from imprompt.adapter.adapter import Adapter
from imprompt.core.files import atomic_write
from imprompt.emoji.bundle import ADAPTER_FILES
from imprompt.encoders.base import EncoderSpec
from imprompt.recipes.emoji import dataset
from imprompt.recipes.emoji.paths import cache_folder, models_folder
from imprompt.recipes.emoji.pictures import write_pictures
from imprompt.recipes.emoji.pipeline import build_pipeline
from imprompt.recipes.emoji.recipe import ENCODER, recipe
from imprompt.recipes.emoji.stage import plain_attention, stage_loop
from imprompt.recipes.emoji.unet import load_denoiser
from imprompt.recipes.emoji.vision import IMAGE_SIZE, WIDTH
from imprompt.training.adapters.initial import fresh_adapter
from imprompt.training.config import BaseModelConfig, LoopConfig, OptimizerConfig, TrainConfig
from imprompt.training.loop.distributed import resolve_device
from imprompt.training.run import train

Kind = Literal["global", "plus"]

_ENCODER = EncoderSpec(ENCODER, "clip", IMAGE_SIZE, WIDTH, WIDTH, num_layers=4, num_tokens=65, fingerprint="")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Of one adapter stage.

    Attributes:
        kind: `global` makes 4 tokens of the pooled embedding, `plus` 16 of all patch tokens.
        loop: Length, and what the run leaves.
        optimizer: Pace.
        preview_every: Steps between validations and sheets.
        everything: Train on all emoji, not only on the things.
    """

    kind: Kind
    loop: LoopConfig
    optimizer: OptimizerConfig
    preview_every: int = 1000
    everything: bool = False


def default_config(kind: Kind) -> AdapterConfig:
    """The published recipe."""
    config = recipe(kind)
    loop = stage_loop(f"adapter-{kind}", num_steps=3000, batch_size=32, checkpoint_every=250)
    optimizer = config.optimizer.model_copy(update={"learning_rate": 1e-3, "schedule": "cosine"})
    return AdapterConfig(kind=kind, loop=loop, optimizer=optimizer)


def build(kind: Kind, unet: UNet2DConditionModel) -> Adapter:
    """An untrained adapter for the denoiser."""
    return fresh_adapter(recipe(kind).adapter, unet, _ENCODER, "emoji")


def run(config: AdapterConfig) -> Path:
    """Train one adapter.

    Returns:
        The adapter's file, in the published key layout.
    """
    with plain_attention(resolve_device(config.loop.device)):
        finished = train(train_config(config))
    target = models_folder() / "adapters" / ADAPTER_FILES[config.kind]
    with atomic_write(target) as path:
        shutil.copy(finished.adapter, path)
    return target


def train_config(config: AdapterConfig) -> TrainConfig:
    """The stage as the trainer takes it; pictures and base are written down for it first."""
    made, every = recipe(config.kind), config.preview_every
    pictures = write_pictures(dataset.load(everything=config.everything), cache_folder() / "pictures")
    return made.model_copy(
        update={
            "base": BaseModelConfig(path=str(base_folder()), dtype="float32"),
            "data": made.data.model_copy(update={"source": pictures}),
            "features": made.features.model_copy(update={"folder": cache_folder() / "features"}),
            "loop": config.loop,
            "optimizer": config.optimizer,
            "validation": made.validation.model_copy(update={"every": every, "sheet_every": every}),
        }
    )


def base_folder() -> Path:
    """The finished parts, described as a pipeline, so that they are loaded as any base is."""
    folder = models_folder()
    pipeline = build_pipeline(folder, load_denoiser().unet)
    pipeline.save_config(folder)
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    return folder
