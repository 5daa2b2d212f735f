"""Adapters of Stable Diffusion 3.5."""

from imprompt.core.published import SIGLIP
from imprompt.recipes.paper import as_in_the_paper
from imprompt.training.config import AdapterKind, BaseModelConfig, DataConfig, ObjectiveConfig, TrainConfig

BASE = "stabilityai/stable-diffusion-3.5-large"


def recipe(kind: AdapterKind) -> TrainConfig:
    """1024 pixels, SigLIP features as InstantX reads them, timesteps as the base was trained (arXiv 2403.03206)."""
    return as_in_the_paper(
        "sd3",
        kind,
        base=BaseModelConfig(path=BASE, gradient_checkpointing=True),
        encoder=SIGLIP,
        data=DataConfig(resolution=1024),
        objective=ObjectiveConfig(timesteps="logit_normal"),
    )
