"""The kinds of vision tower in transformers, as one table: what each calls its parts, and how it wants its pictures.

A row is all that a kind needs. What they share: `hidden_states[0]` is what enters the first block, `hidden_states[i]`
what leaves block i, and none of them has been through the tower's last norm.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from imprompt.encoders.preprocess import (
    BICUBIC,
    BILINEAR,
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
)


@dataclass(frozen=True, kw_only=True)
class TowerKind:
    """A kind of vision tower.

    Attributes:
        name: Short, as in `EncoderSpec.kind`.
        title: As people write it.
        model_class: Name of its class in transformers.
        model_types: What `model_type` in a `config.json` says of it; of a whole model, its vision half is taken.
        pooled: Which output is its pooled feature, called `image_embeds` here: CLIP's is projected into the space that
            pictures share with texts, SigLIP's comes out of an attention pool, DINO's is the normed class token.
        preprocessing: How it wants its pictures where no file tells, at its usual size.
        has_class_token: Whether its sequence starts with a class token.
        has_own_size: Whether it accepts one size only, the one in its configuration.
    """

    name: str
    title: str
    model_class: str
    model_types: tuple[str, ...]
    pooled: Literal["image_embeds", "pooler_output"]
    preprocessing: Preprocessing
    has_class_token: bool = True
    has_own_size: bool = True

    def preprocessing_of(self, config: Any) -> Preprocessing:
        """How a tower of this kind and configuration wants its pictures where no file tells."""
        return self.preprocessing.at(side_of(config.image_size)) if self.has_own_size else self.preprocessing

    def pooled_width(self, config: Any) -> int:
        """Width of the pooled feature."""
        return config.projection_dim if self.pooled == "image_embeds" else config.hidden_size

    def num_tokens(self, config: Any, image_size: int) -> int:
        """Length of the sequence for pictures of a size: class token, registers, and a token a patch."""
        patches = (image_size // side_of(config.patch_size)) ** 2
        return patches + int(self.has_class_token) + int(getattr(config, "num_register_tokens", 0))


KINDS = (
    TowerKind(
        name="clip",
        title="CLIP",
        model_class="CLIPVisionModelWithProjection",
        model_types=("clip_vision_model", "clip"),
        pooled="image_embeds",
        preprocessing=Preprocessing.openai(),
    ),
    TowerKind(  # and SigLIP 2 of one resolution, which is the same network
        name="siglip",
        title="SigLIP",
        model_class="SiglipVisionModel",
        model_types=("siglip_vision_model", "siglip"),
        pooled="pooler_output",
        preprocessing=Preprocessing(shortest_edge=0, crop_size=384, mean=HALF, std=HALF, resample=BICUBIC),
        has_class_token=False,
    ),
    TowerKind(
        name="dinov2",
        title="DINOv2",
        model_class="Dinov2Model",
        model_types=("dinov2",),
        pooled="pooler_output",
        preprocessing=Preprocessing(shortest_edge=256, crop_size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        has_own_size=False,
    ),
    TowerKind(
        name="dinov2_with_registers",
        title="DINOv2 with registers",
        model_class="Dinov2WithRegistersModel",
        model_types=("dinov2_with_registers",),
        pooled="pooler_output",
        preprocessing=Preprocessing(shortest_edge=256, crop_size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        has_own_size=False,
    ),
    TowerKind(
        name="dinov3_vit",
        title="DINOv3",
        model_class="DINOv3ViTModel",
        model_types=("dinov3_vit",),
        pooled="pooler_output",
        preprocessing=Preprocessing(
            shortest_edge=0, crop_size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD, resample=BILINEAR
        ),
        has_own_size=False,
    ),
)


def kind_of_model(model: nn.Module) -> TowerKind | None:
    """The kind that a model is of; None if it is no vision tower that imprompt knows.

    Classes are told by their names, so that nobody has to import five of them to ask about one.
    """
    names = {cls.__name__ for cls in type(model).__mro__}
    return next((kind for kind in KINDS if kind.model_class in names), None)


def kind_of_type(model_type: str) -> TowerKind | None:
    """The kind that a `config.json` of this `model_type` describes; None if there is none."""
    return next((kind for kind in KINDS if model_type in kind.model_types), None)


def side_of(size: Any) -> int:
    """The side of a square that a configuration gives as one number or as two."""
    return int(size) if isinstance(size, int) else int(size[0])
