"""Jobs over pictures: what an image encoder or face networks make of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal

import torch
from PIL import Image, ImageOps
from torch import Tensor

from imprompt.core.errors import ImageError
from imprompt.core.files import sha256_file
from imprompt.encoders.face import FaceEncoder
from imprompt.encoders.preprocess import prepare_pixels, preprocessor_file
from imprompt.encoders.vision import VisionEncoder
from imprompt.training.data.manifest import Manifest
from imprompt.training.features.fingerprint import fingerprint_of_folder
from imprompt.training.features.jobs import describe_rows
from imprompt.training.features.shards import Columns, Storage

CROP = 224
"""Side of the aligned face that FaceID-Plus reads."""


@dataclass(frozen=True)
class PictureJob:
    """Features of an image encoder, of pictures or of the aligned faces in them.

    Attributes:
        kind: Which layer.
        folder: Of the encoder.
        index: Which hidden state; without meaning for the pooled one.
        dtype: Number format that it computes in.
        storage: Number format in files.
        mirror: Keep a second view of each picture, its mirror image.
        faces: Folder of face networks, to encode the aligned face in place of the picture.
    """

    kind: Literal["image_embeds", "hidden_states"]
    folder: Path
    index: int = -2
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    storage: Storage = "float16"
    mirror: bool = False
    faces: Path | None = None

    @property
    def num_views(self) -> int:
        """The picture, and perhaps its mirror image."""
        return 2 if self.mirror else 1

    def ingredients(self, manifest: Manifest) -> dict[str, str]:
        """Weights and preprocessing on disk, layer, number formats, views and face networks."""
        preprocessor = preprocessor_file(self.folder)
        return {
            "kind": self.kind,
            "encoder": fingerprint_of_folder(self.folder),
            "preprocessing": "" if preprocessor is None else preprocessor.read_text(),
            "layer": str(self.index) if self.kind == "hidden_states" else "pooled",
            "dtype": self.dtype,
            "storage": self.storage,
            "views": json.dumps(["crop", *(["mirror"] if self.mirror else [])]),
            "faces": "" if self.faces is None else FaceEncoder.from_folder(self.faces).spec.fingerprint,
        }

    def rows(self, manifest: Manifest, start: int, stop: int) -> list[str]:
        """Name and content of each picture."""
        return describe_rows(manifest, start, stop)

    def load(self, manifest: Manifest, device: torch.device) -> "PictureEncoder":
        """Load the encoder."""
        encoder = VisionEncoder.from_folder(self.folder, dtype=getattr(torch, self.dtype), device=device)
        faces = None if self.faces is None else Faces(FaceEncoder.from_folder(self.faces))
        return PictureEncoder(self, manifest, encoder, faces)


class PictureEncoder:
    """A loaded image encoder."""

    def __init__(
        self, job: PictureJob, manifest: Manifest, encoder: VisionEncoder, faces: "Faces | None" = None
    ) -> None:
        self.job = job
        self.manifest = manifest
        self.encoder = encoder
        self.faces = faces

    def shape_of(self, number: int) -> int:
        """The encoder makes all pictures alike."""
        return 0

    def prepare(self, number: int) -> Tensor:
        """Pixels `[views, 3, height, width]` of a picture, or of the face in it.

        Raises:
            ImageError: It cannot be read, or shows no face.
        """
        image = self.manifest.image(number)
        if self.faces is not None:
            image = self.faces.crop(image)
        views = [image, ImageOps.mirror(image)] if self.job.mirror else [image]
        return torch.stack([prepare_pixels(view, self.encoder.preprocessing) for view in views])

    def encode(self, prepared: Sequence[Tensor]) -> Columns:
        """Features of pictures `[pictures, views, *length, width]`."""
        features = self.encoder.encode_pixels(torch.cat(list(prepared)), self.job.kind, self.job.index)
        return {self.job.kind: features.unflatten(0, (len(prepared), self.job.num_views))}

    def null(self) -> Columns:
        """Features of pixels that are zero after normalisation."""
        return {self.job.kind: self.encoder.encode_null(layer=self.job.kind, index=self.job.index)}


class Faces:
    """Face networks that threads take turns at."""

    def __init__(self, encoder: FaceEncoder) -> None:
        self.encoder = encoder
        self._turn = Lock()

    def crop(self, image: Image.Image) -> Image.Image:
        """The aligned face in a picture.

        Raises:
            FaceError: It shows none.
        """
        with self._turn:
            return self.encoder.crops([image], CROP)[0]

    def embed(self, image: Image.Image) -> Tensor:
        """The embedding of the face in a picture.

        Raises:
            FaceError: It shows none.
        """
        with self._turn:
            return self.encoder.encode([image])[0]


@dataclass(frozen=True)
class FaceJob:
    """Face embeddings: those that the data brings, and of all other pictures those that face networks make.

    Attributes:
        width: Of an embedding.
        faces: Folder of face networks; None where the data brings every embedding.
        normalised: Whether networks' embeddings are brought to unit length; files are taken as they are.
        storage: Number format in files.
    """

    width: int = 512
    faces: Path | None = None
    normalised: bool = True
    storage: Storage = "float32"
    kind: Literal["face_embeds"] = "face_embeds"
    num_views: int = 1

    def ingredients(self, manifest: Manifest) -> dict[str, str]:
        """The networks, and the number format."""
        encoder = "" if self.faces is None else self._networks(self.faces).spec.fingerprint
        return {"kind": self.kind, "encoder": encoder, "storage": self.storage, "width": str(self.width)}

    def rows(self, manifest: Manifest, start: int, stop: int) -> list[str]:
        """Name and content of each picture, and of the file that holds its embedding."""
        files = manifest.table["id_embed"].slice(start, stop - start).to_pylist()
        contents = [_content_of(manifest.root / name) if name else "" for name in files]
        return describe_rows(manifest, start, stop, contents)

    def load(self, manifest: Manifest, device: torch.device) -> "FaceFeatures":
        """Load the networks, if any."""
        return FaceFeatures(self, manifest, None if self.faces is None else Faces(self._networks(self.faces)))

    def _networks(self, folder: Path) -> FaceEncoder:
        return FaceEncoder.from_folder(folder, normalised=self.normalised)


class FaceFeatures:
    """Embeddings from files, or from loaded networks."""

    def __init__(self, job: FaceJob, manifest: Manifest, faces: Faces | None) -> None:
        self.job = job
        self.manifest = manifest
        self.faces = faces

    def shape_of(self, number: int) -> int:
        """All embeddings are alike."""
        return 0

    def prepare(self, number: int) -> Tensor:
        """The embedding of a sample.

        Raises:
            ImageError: There is no face, nobody to find it, or an embedding of another width.
            DataError: Its file cannot be read.
        """
        embedding = self.manifest.id_embed(number)
        if embedding is None:
            if self.faces is None:
                raise ImageError("it has no id_embed, and no face networks are given (adapter.face_networks=FOLDER)")
            embedding = self.faces.embed(self.manifest.image(number)).cpu()
        if embedding.shape != (self.job.width,):
            raise ImageError(f"its face embedding has the shape {list(embedding.shape)}; expected [{self.job.width}]")
        return embedding

    def encode(self, prepared: Sequence[Tensor]) -> Columns:
        """Embeddings `[samples, 1, width]`."""
        return {"face_embeds": torch.stack(list(prepared))[:, None]}

    def null(self) -> Columns:
        """Zeros: what FaceID is trained with where the face is dropped."""
        return {"face_embeds": torch.zeros(1, self.job.width)}


def _content_of(path: Path) -> str:
    """What tells that a small file has changed."""
    return sha256_file(path) if path.is_file() else "missing"
