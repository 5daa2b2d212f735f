"""What recipes share: the hyper-parameters of the paper, said once."""

from pathlib import Path
from typing import Any

from imprompt.training.config import (
    AdapterConfig,
    AdapterKind,
    BaseModelConfig,
    DataConfig,
    FeaturesConfig,
    LoopConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
)

RUNS = Path("runs")

READS_PICTURES = ("global", "plus", "full", "faceid-plus")
"""Kinds that read an image encoder."""

READS_SEQUENCES = ("plus", "full")
"""Kinds whose references are encoded at every step: their features take some twenty times the room of latents, and
encoding adds a fifth to a step and keeps an augmentation of the references' own."""


def as_in_the_paper(
    name: str,
    kind: AdapterKind,
    *,
    base: BaseModelConfig,
    encoder: str | None,
    data: DataConfig,
    objective: ObjectiveConfig | None = None,
    loop: dict[str, Any] | None = None,
) -> TrainConfig:
    """A run as the paper has it (arXiv 2308.06721, section 4.1.2).

    AdamW at a constant 1e-4, weight decay 0.01, batches of 64 over eight devices, a million steps; image, text and both
    dropped five times in a hundred each.

    Args:
        name: Of the recipe.
        kind: Of the adapter.
        base: What it is trained on.
        encoder: Where the image encoder is, for kinds that read one; None for the base's own.
        data: How pictures are cut.
        objective: What the base's scheduler does not say.
        loop: What differs from the paper's length and batch.
    """
    is_face = kind.startswith("faceid")
    return TrainConfig(
        recipe=f"{name}-{kind}",
        base=base,
        adapter=AdapterConfig(kind=kind, image_encoder=encoder if kind in READS_PICTURES else None),
        data=data.model_copy(update={"mirror": is_face, "num_views": 2 if is_face else 1}),
        features=FeaturesConfig(references="online" if kind in READS_SEQUENCES else "cached"),
        objective=objective or ObjectiveConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=0.01),
        loop=LoopConfig(**{"output": RUNS / f"{name}-{kind}", "num_steps": 1_000_000, **(loop or {})}),
    )
