"""The stages by name: one complete configuration each, and one function that runs it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from imprompt.recipes.emoji import adapters, autoencoder, custom, structure, unet, vision
from imprompt.training.config import OptimizerConfig, Part

Settings = TypeVar("Settings", bound=Part)

STAGES: dict[str, tuple[Callable[[], Any], Callable[[Any], Path]]] = {
    "vision": (vision.default_config, vision.run),
    "autoencoder": (autoencoder.default_config, autoencoder.run),
    "decoder": (autoencoder.decoder_config, autoencoder.run),
    "unet": (unet.default_config, unet.run),
    "adapter-global": (lambda: adapters.default_config("global"), adapters.run),
    "adapter-plus": (lambda: adapters.default_config("plus"), adapters.run),
    "controlnet": (lambda: structure.default_config("controlnet"), structure.run),
    "t2i-adapter": (lambda: structure.default_config("t2i_adapter"), structure.run),
    "lora": (lambda: custom.default_config("lora"), custom.run),
    "finetune": (lambda: custom.default_config("finetune"), custom.run),
}


def train(stage: str, *, everything: bool = False, **changes: Any) -> Path:
    """Train a stage, or go on with it.

    Args:
        stage: A key of `STAGES`.
        everything: Train on all emoji, not only on the things.
        changes: Fields of `LoopConfig` or `OptimizerConfig` that differ from the recipe, such as `minutes`.

    Returns:
        Where the stage put its model.
    """
    default_config, run = STAGES[stage]
    config = default_config()
    of_optimizer = {name: value for name, value in changes.items() if name in OptimizerConfig.model_fields}
    of_loop = {name: value for name, value in changes.items() if name not in of_optimizer}
    loop, optimizer = changed(config.loop, of_loop), changed(config.optimizer, of_optimizer)
    return run(replace(config, everything=everything, loop=loop, optimizer=optimizer))


def changed(part: Settings, changes: Mapping[str, Any]) -> Settings:
    """A group of settings with some fields changed; unknown ones are refused."""
    return type(part)(**{**dict(part), **changes})
