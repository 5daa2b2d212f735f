"""Adapters of Stable Diffusion XL, in the two stages that their author tells of.

See tencent-ailab/IP-Adapter, issues 255 and 256. The published script has an option for a noise offset and uses none.
"""

from imprompt.core.published import VIT_H
from imprompt.recipes.paper import RUNS, as_in_the_paper
from imprompt.training.adapters.initial import VARIANTS
from imprompt.training.config import AdapterKind, BaseModelConfig, DataConfig, LoopConfig, OptimizerConfig, TrainConfig

BASE = "stabilityai/stable-diffusion-xl-base-1.0"


def recipe(kind: AdapterKind) -> TrainConfig:
    """First stage: 512 pixels, batches of 64, learning rate 1e-4."""
    return as_in_the_paper(
        "sdxl",
        kind,
        base=BaseModelConfig(path=BASE),
        encoder=VIT_H,
        data=DataConfig(resolution=512, buckets=False),
    )


def second_recipe(kind: AdapterKind) -> TrainConfig:
    """Second stage: 1024 pixels in aspect buckets, batches of 32, learning rate 1e-5, from what the first has made."""
    first = recipe(kind)
    made = first.loop.output / f"ip-adapter{VARIANTS[kind].suffix}_sdxl.safetensors"
    return first.model_copy(
        update={
            "recipe": f"sdxl-1024-{kind}",
            "base": BaseModelConfig(path=BASE, gradient_checkpointing=True),
            "adapter": first.adapter.model_copy(update={"initial": str(made)}),
            "data": first.data.model_copy(update={"resolution": 1024, "buckets": True}),
            "optimizer": OptimizerConfig(learning_rate=1e-5),
            "loop": LoopConfig(output=RUNS / f"sdxl-1024-{kind}", batch_size=32, num_steps=200_000),
        }
    )
