"""Adapters of Stable Diffusion 1.5, as the paper trains them."""

from imprompt.core.published import VIT_H
from imprompt.recipes.paper import as_in_the_paper
from imprompt.training.config import AdapterKind, BaseModelConfig, DataConfig, TrainConfig

BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def recipe(kind: AdapterKind) -> TrainConfig:
    """512 pixels, cut square as the published scripts cut them; FaceID changes the attentions by LoRA of rank 128."""
    return as_in_the_paper(
        "sd15",
        kind,
        base=BaseModelConfig(path=BASE),
        encoder=VIT_H,
        data=DataConfig(resolution=512, buckets=False),
    )
