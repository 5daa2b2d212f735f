"""Adapters of any other base that training can ask: give `base.path`."""

from imprompt.core.published import SIGLIP
from imprompt.recipes.paper import as_in_the_paper
from imprompt.training.config import AdapterKind, BaseModelConfig, DataConfig, TrainConfig


def recipe(kind: AdapterKind) -> TrainConfig:
    """512 pixels and the published hyper-parameters; the objective is read from the base's scheduler."""
    return as_in_the_paper(
        "generic",
        kind,
        base=BaseModelConfig(path=""),  # which a run refuses
        encoder=SIGLIP,
        data=DataConfig(resolution=512),
    )
