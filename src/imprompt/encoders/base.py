"""What an image encoder is, to everybody who uses one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from imprompt.core.images import Fit

Layer: TypeAlias = Literal["image_embeds", "hidden_states", "face_embeds"]


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder is.

    Attributes:
        name: What people call it, as "OpenCLIP ViT-H/14".
        kind: Its architecture, as "clip"; see `encoders.kinds`.
        image_size: Side of the square it looks at, in pixels.
        width: Width of its hidden layers, and so of `hidden_states`.
        projection_dim: Width of its pooled output, and so of `image_embeds`; that of its layers where nothing projects.
        num_layers: How many transformer blocks it has.
        num_tokens: Length of its hidden sequence: a token a patch, and whatever stands before them.
        fingerprint: Hash of weights, dtype and preprocessing: two encoders that share it make the same features.
    """

    name: str
    kind: str
    image_size: int
    width: int
    projection_dim: int
    num_layers: int
    num_tokens: int
    fingerprint: str

    def feature_width(self, layer: Layer) -> int:
        """Width of the features of a layer."""
        return self.projection_dim if layer == "image_embeds" else self.width


@runtime_checkable
class ImageEncoder(Protocol):
    """Pictures in, features out."""

    @property
    def spec(self) -> EncoderSpec:
        """What it is."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its features are."""
        ...

    def encode(self, images: Sequence[Image.Image], *, layer: Layer, index: int = -2, fit: Fit = "crop") -> Tensor:
        """Turn RGB pictures into features.

        Args:
            images: One picture or more, of any size.
            layer: `"image_embeds"`, the pooled output (projected in CLIP), or `"hidden_states"`, a layer's sequence.
            index: Which hidden state: 0 before the first block, -1 after the last, -2 after the last but one.
            fit: What becomes of pictures that are not square.

        Returns:
            `[images, projection_dim]` or `[images, num_tokens, width]`, without gradients.
        """
        ...

    def encode_null(self, *, layer: Layer, index: int = -2) -> Tensor:
        """Turn pixels that are zero after normalisation into features, as training did where it dropped the picture.

        That is the mean colour. An adapter whose null image is black wants `encode` of a black picture.

        Returns:
            `[1, projection_dim]` or `[1, num_tokens, width]`.
        """
        ...
