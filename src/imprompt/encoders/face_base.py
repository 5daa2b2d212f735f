"""What finds faces, and what tells whose they are, to everybody who uses either."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Face:
    """A face in a picture.

    Attributes:
        box: Left, top, right and bottom in pixels.
        keypoints: x and y in pixels of eyes, nose and corners of the mouth, each pair from left to right as the viewer
            sees it.
        score: How sure the detector is, 0 to 1.
    """

    box: Float[np.ndarray, " 4"]
    keypoints: Float[np.ndarray, "5 2"]
    score: float

    @property
    def area(self) -> float:
        """Size of the box in pixels."""
        left, top, right, bottom = self.box
        return float((right - left) * (bottom - top))


@dataclass(frozen=True)
class DetectorSpec:
    """What a detector is.

    Attributes:
        name: What people call it.
        licence: Under which terms its weights may be used, as far as it is known.
        fingerprint: Hash of weights and settings: two detectors that share it find the same faces.
        min_score: How sure it must be of a face to report it, 0 to 1.
    """

    name: str
    licence: str
    fingerprint: str
    min_score: float


@dataclass(frozen=True)
class EmbedderSpec:
    """What an embedder is.

    Attributes:
        name: What people call it.
        licence: Under which terms its weights may be used, as far as it is known.
        fingerprint: Hash of weights: embeddings are comparable only where it is the same.
        image_size: Side of the aligned crop it reads, in pixels.
        width: Width of its embeddings.
    """

    name: str
    licence: str
    fingerprint: str
    image_size: int
    width: int


@runtime_checkable
class FaceDetector(Protocol):
    """Pictures in, faces out."""

    @property
    def spec(self) -> DetectorSpec:
        """What it is."""
        ...

    def detect(self, image: Image.Image) -> list[Face]:
        """Find all faces of an RGB picture, in any order; an empty list if there are none."""
        ...


@runtime_checkable
class FaceEmbedder(Protocol):
    """Aligned faces in, embeddings out."""

    @property
    def spec(self) -> EmbedderSpec:
        """What it is."""
        ...

    def embed(self, crops: Sequence[Image.Image]) -> Float[Tensor, "faces width"]:
        """Turn aligned RGB crops of `spec.image_size` pixels into embeddings as the network gives them, on the CPU."""
        ...
