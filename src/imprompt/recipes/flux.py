"""Adapters of FLUX.1 [dev]."""

from imprompt.core.published import SIGLIP
from imprompt.recipes.paper import as_in_the_paper
from imprompt.training.config import AdapterKind, BaseModelConfig, DataConfig, ObjectiveConfig, TrainConfig

BASE = "black-forest-labs/FLUX.1-dev"


def recipe(kind: AdapterKind) -> TrainConfig:
    """512 pixels first, as XLabs trained; guidance told as 1, so that the base is asked what it was distilled from."""
    return as_in_the_paper(
        "flux",
        kind,
        base=BaseModelConfig(path=BASE, gradient_checkpointing=True),
        encoder=SIGLIP,
        data=DataConfig(resolution=512),
        objective=ObjectiveConfig(timesteps="logit_normal", guidance=1.0),
        loop={"num_steps": 150_000},
    )
