"""Whose face a picture shows, as the features that FaceID adapters read.

A detector finds faces and five keypoints of each, alignment cuts the chosen one out upright, an embedder turns it into
a vector that is alike for every picture of the same person. Which networks do that is the caller's choice (see
`face_onnx` and `face_insightface`), and so are their licences: adapters were trained with InsightFace's, whose weights
are for non-commercial research only.
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imprompt.core.errors import EncoderMismatch, FaceError, ImageError
from imprompt.core.images import Fit, image_hash
from imprompt.encoders.alignment import align_face
from imprompt.encoders.base import EncoderSpec, Layer
from imprompt.encoders.face_base import Face, FaceDetector, FaceEmbedder
from imprompt.encoders.face_embeddings import (
    average,
    load_embeddings,
    normalise,
    save_embeddings,
    similarities,
)
from imprompt.encoders.face_insightface import load_insightface
from imprompt.encoders.face_onnx import CPU, OnnxDetector, OnnxEmbedder, find_face_models

logger = logging.getLogger(__name__)

# The largest face, a face counted from 0 at the left, or the one nearest to an embedding `[width]` or several of them.
FaceChoice: TypeAlias = Literal["largest"] | int | Tensor

_ALIGNMENT = "arcface-5-points:1"  # part of the fingerprint: to be raised where crops change
_REMEMBERED = 256


class FaceEncoder:
    """Detector, alignment and embedder as one image encoder, whose layer is `"face_embeds"`."""

    def __init__(
        self,
        detector: FaceDetector,
        embedder: FaceEmbedder,
        *,
        choice: FaceChoice = "largest",
        normalised: bool = True,
        device: str | torch.device = "cpu",
    ) -> None:
        """Take a detector and an embedder as they stand.

        Args:
            detector: What finds faces.
            embedder: What tells whose they are.
            choice: Which face of a picture with several: `"largest"`, a number counted from 0 at the left, or an
                embedding (`[width]`, or several of one person as `[faces, width]`): the face most like it.
            normalised: Whether embeddings have unit length, as FaceID adapters read them; False for them as the network
                gives them, as InstantID and the "unnorm" portrait adapter do.
            device: Where features are returned.

        Raises:
            ImageError: The choice is none of these.
        """
        self.detector = detector
        self.embedder = embedder
        self.choice = _checked_choice(choice, embedder.spec.width)
        self.normalised = normalised
        self.device = torch.device(device)
        self._chosen: OrderedDict[str, Face] = OrderedDict()

    @classmethod
    def from_folder(
        cls, folder: str | Path, *, min_score: float | None = None, providers: Sequence[str] = CPU, **options: Any
    ) -> "FaceEncoder":
        """Load the one detector and the one embedder among a folder's ONNX files, through onnxruntime alone.

        This also reads InsightFace's packs (buffalo_l, antelopev2); their models are for non-commercial research only.

        Args:
            folder: The folder, on this machine; nothing is downloaded.
            min_score: How sure the detector must be of a face, 0 to 1; its authors' value if None.
            providers: Where onnxruntime runs them, in order of preference.
            options: As for the constructor: choice, normalised, device.

        Raises:
            CheckpointError: There is not exactly one of each, or a file cannot be used.
            ImpromptError: onnxruntime is not installed.
        """
        detector, embedder = find_face_models(folder)
        return cls.from_files(detector, embedder, min_score=min_score, providers=providers, **options)

    @classmethod
    def from_files(
        cls,
        detector: str | Path,
        embedder: str | Path,
        *,
        min_score: float | None = None,
        providers: Sequence[str] = CPU,
        **options: Any,
    ) -> "FaceEncoder":
        """Load a detector (SCRFD, YuNet) and an embedder (ArcFace and its kin) from an ONNX file each.

        Args:
            detector: The detector's file.
            embedder: The embedder's file.
            min_score: How sure the detector must be of a face, 0 to 1; its authors' value if None.
            providers: Where onnxruntime runs them, in order of preference.
            options: As for the constructor: choice, normalised, device.

        Raises:
            CheckpointError: A file cannot be used.
            ImpromptError: onnxruntime is not installed.
        """
        return cls(
            OnnxDetector(detector, min_score=min_score, providers=providers),
            OnnxEmbedder(embedder, providers=providers),
            **options,
        )

    @classmethod
    def from_insightface(
        cls, folder: str | Path, *, min_score: float | None = None, providers: Sequence[str] = CPU, **options: Any
    ) -> "FaceEncoder":
        """Load a model pack through the package `insightface`, whose detector and embedder FaceID was trained with.

        InsightFace's packs are for non-commercial research only, the package's code is under the MIT licence.

        Args:
            folder: The folder with the pack's files, on this machine; nothing is downloaded.
            min_score: How sure the detector must be of a face, 0 to 1; insightface's 0.5 if None.
            providers: Where onnxruntime runs them, in order of preference.
            options: As for the constructor: choice, normalised, device.

        Raises:
            CheckpointError: The folder is no pack.
            ImpromptError: insightface is not installed.
        """
        return cls(*load_insightface(folder, min_score=min_score, providers=providers), **options)

    def choosing(self, choice: FaceChoice) -> "FaceEncoder":
        """Return an encoder with the same networks that chooses another face.

        Raises:
            ImageError: The choice is none.
        """
        return FaceEncoder(self.detector, self.embedder, choice=choice, normalised=self.normalised, device=self.device)

    @property
    def spec(self) -> EncoderSpec:
        """What it is."""
        embedder = self.embedder.spec
        return EncoderSpec(
            name=embedder.name,
            kind="face",
            image_size=embedder.image_size,
            width=embedder.width,
            projection_dim=embedder.width,
            num_layers=0,
            num_tokens=1,
            fingerprint=self._fingerprint(),
        )

    def encode(
        self, images: Sequence[Image.Image], *, layer: Layer = "face_embeds", index: int = -2, fit: Fit = "crop"
    ) -> Float[Tensor, "images width"]:
        """Embed the chosen face of each RGB picture.

        Args:
            images: One picture or more, of any size.
            layer: `"face_embeds"`, the only one there is.
            index: Without meaning here; what other encoders take.
            fit: Likewise: faces are sought in whole pictures.

        Raises:
            ImageError: There is no picture.
            FaceError: A picture does not show the face that is wanted; the message names it.
            EncoderMismatch: Another layer is wanted.
        """
        _check_layer(layer)
        if not images:
            raise ImageError("There is no picture to encode; give at least one.")
        return self._embed(self.crops(images, self.embedder.spec.image_size)).to(self.device)

    def encode_null(self, *, layer: Layer = "face_embeds", index: int = -2) -> Float[Tensor, "1 width"]:
        """Return zeros: what FaceID adapters were trained with where the face was dropped.

        Raises:
            EncoderMismatch: Another layer is wanted.
        """
        _check_layer(layer)
        return torch.zeros(1, self.embedder.spec.width, device=self.device)

    def crops(self, images: Sequence[Image.Image], size: int = 224) -> list[Image.Image]:
        """Cut the chosen face of each picture out, aligned; at 224 pixels, what the CLIP half of FaceID-Plus reads.

        Args:
            images: RGB pictures.
            size: Side in pixels: a multiple of 112 (224, or 336 for Kolors), or of 128 (256) for a wider view.

        Raises:
            ImageError: No crop has this size.
            FaceError: A picture does not show the face that is wanted; the message names it.
        """
        names = [_name(image, place, len(images)) for place, image in enumerate(images)]
        return [self._crop(image, name, size) for image, name in zip(images, names, strict=True)]

    def faces(self, image: Image.Image) -> list[Face]:
        """Find all faces of a picture, from left to right: the order in which a choice by number counts."""
        return sorted(self.detector.detect(image), key=lambda face: float(face.box[0] + face.box[2]))

    def identity(self, images: Sequence[Image.Image], *, skip_missing: bool = False) -> Float[Tensor, "1 width"]:
        """Average the chosen faces of several pictures of one person into one embedding.

        Args:
            images: The pictures.
            skip_missing: Whether a picture without the face is left out, which the log tells, or an error.

        Raises:
            ImageError: There is no picture.
            FaceError: A picture, or every one of them, does not show the face that is wanted.
        """
        if not images:
            raise ImageError("There is no picture to encode; give at least one.")
        found = []
        for place, image in enumerate(images):
            try:
                self._choose(image, _name(image, place, len(images)))
            except FaceError as error:
                if not skip_missing:
                    raise
                logger.warning("left out: %s", error)
            else:
                found.append(image)
        if not found:
            raise FaceError(f"None of {len(images)} pictures shows the face that is wanted; the log tells why of each.")
        return average(self.encode(found))

    def save(self, path: str | Path, embeddings: Float[Tensor, "faces width"]) -> None:
        """Write embeddings that this encoder made as safetensors; see `face_embeddings.save_embeddings`.

        Raises:
            EncoderMismatch: They have another width.
        """
        save_embeddings(path, embeddings, self.embedder.spec, normalised=self.normalised)

    def load(self, path: str | Path) -> Float[Tensor, "faces width"]:
        """Read embeddings that the same network made; see `face_embeddings.load_embeddings`.

        Raises:
            CheckpointError: The file is missing, damaged or holds no embeddings.
            EncoderMismatch: Another network made them, or they have unit length and raw ones are wanted.
        """
        return load_embeddings(path, self.embedder.spec, normalised=self.normalised).to(self.device)

    def __repr__(self) -> str:
        embedder = self.embedder.spec
        length = "unit length" if self.normalised else "raw"
        return f"FaceEncoder({self.detector.spec.name} + {embedder.name}: width {embedder.width}, {length})"

    def _crop(self, image: Image.Image, name: str, size: int) -> Image.Image:
        face = self._choose(image, name)
        try:
            return align_face(image, face.keypoints, size)
        except FaceError as error:
            raise FaceError(f"In {name}: {error}") from error

    def _embed(self, crops: Sequence[Image.Image]) -> Float[Tensor, "faces width"]:
        embeddings = self.embedder.embed(crops)
        return normalise(embeddings) if self.normalised else embeddings

    def _choose(self, image: Image.Image, name: str) -> Face:
        """Find the face that is wanted; once for a picture, so that both halves of FaceID-Plus see the same."""
        key = image_hash(image)
        face = self._chosen.get(key)
        if face is None:
            face = self._chosen[key] = self._find(image, name)
            while len(self._chosen) > _REMEMBERED:
                self._chosen.popitem(last=False)
        return face

    def _find(self, image: Image.Image, name: str) -> Face:
        faces = self.faces(image)
        if not faces:
            detector = self.detector.spec
            raise FaceError(
                f"No face was found in {name} ({image.width} x {image.height} pixels) by {detector.name} with a score "
                f"of {detector.min_score:g} or more; give a picture that shows one from the front, with some space "
                "around it, or load the detector with a lower min_score."
            )
        if isinstance(self.choice, Tensor):
            crops = [align_face(image, face.keypoints, self.embedder.spec.image_size) for face in faces]
            return faces[int(similarities(self.embedder.embed(crops), self.choice).argmax())]
        if isinstance(self.choice, str):
            return max(faces, key=lambda face: face.area)
        if self.choice >= len(faces):
            count = "one face" if len(faces) == 1 else f"{len(faces)} faces"
            raise FaceError(
                f"{name[0].upper()}{name[1:]} shows {count}, counted from 0 at the left; there is no {self.choice}."
            )
        return faces[self.choice]

    def _fingerprint(self) -> str:
        choice = self.choice
        parts = [self.detector.spec.fingerprint, self.embedder.spec.fingerprint, _ALIGNMENT, str(self.normalised)]
        digest = hashlib.sha256(":".join(parts).encode())
        digest.update(choice.numpy().tobytes() if isinstance(choice, Tensor) else repr(choice).encode())
        return digest.hexdigest()


def _checked_choice(choice: FaceChoice, width: int) -> FaceChoice:
    given: Any = choice
    if isinstance(given, Tensor):
        reference = given.detach().float().cpu().reshape(-1, given.shape[-1]) if given.ndim in (1, 2) else given
        if reference.ndim != 2 or reference.shape[1] != width or len(reference) == 0:
            raise ImageError(f"A reference face is an embedding of width {width}; got the shape {list(given.shape)}.")
        average(reference)  # refuses zeros and NaN now rather than at the first picture
        return reference.contiguous()
    if given == "largest" or (isinstance(given, int) and not isinstance(given, bool) and given >= 0):
        return given
    raise ImageError(
        f"choice must be 'largest', a face's number counted from 0 at the left, or an embedding; got {given!r}."
    )


def _check_layer(layer: Layer) -> None:
    if layer != "face_embeds":
        raise EncoderMismatch(
            f"A face encoder makes 'face_embeds' only; got layer {layer!r}. The adapter wants an image encoder."
        )


def _name(image: Image.Image, place: int, count: int) -> str:
    """What to call a picture in a message: its file where it still knows it, else its place."""
    filename = getattr(image, "filename", "")
    if filename:
        return f"'{filename}'"
    return "the picture" if count == 1 else f"picture {place + 1} of {count}"
