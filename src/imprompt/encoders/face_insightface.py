"""Face detectors and embedders through the package `insightface`, with its own pre- and postprocessing.

The package's code is under the MIT licence; its model packs (buffalo_l, antelopev2) are for non-commercial research
only, unless their author has sold another licence. A pack is given as a folder, and nothing is ever downloaded.
"""

import hashlib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imprompt.core.errors import CheckpointError, ImageError, ImpromptError, first_line
from imprompt.encoders.face_base import DetectorSpec, EmbedderSpec, Face
from imprompt.encoders.face_known import NON_COMMERCIAL, state_licence
from imprompt.encoders.face_onnx import read_onnx

_MIN_SCORE = 0.5
# The first is what FaceID adapters were trained with; the others see faces that are too large for it.
_SIZES = ((640, 640), (320, 320), (160, 160))


class InsightFaceDetector:
    """The detector of a pack."""

    def __init__(self, model: Any, spec: DetectorSpec) -> None:
        """Take a detector of `insightface.model_zoo` as it stands."""
        self._model = model
        self.spec = spec

    def detect(self, image: Image.Image) -> list[Face]:
        """Find all faces of an RGB picture; see `FaceDetector.detect`.

        Raises:
            CheckpointError: The detector is one without keypoints.
        """
        boxes, keypoints = self._model.detect(_bgr(image), det_thresh=self.spec.min_score)
        if keypoints is None:
            raise CheckpointError(
                f"{self.spec.name} finds no keypoints, by which faces are aligned; take another pack."
            )
        return [
            Face(box[:4].astype(np.float64), points.astype(np.float64), float(box[4]))
            for box, points in zip(boxes, keypoints, strict=True)
        ]


class InsightFaceEmbedder:
    """The embedder of a pack."""

    def __init__(self, model: Any, spec: EmbedderSpec) -> None:
        """Take an embedder of `insightface.model_zoo` as it stands."""
        self._model = model
        self.spec = spec

    def embed(self, crops: Sequence[Image.Image]) -> Float[Tensor, "faces width"]:
        """Turn aligned crops into embeddings, not normalised; see `FaceEmbedder.embed`.

        Raises:
            ImageError: There is no crop.
        """
        if not crops:
            raise ImageError(f"{self.spec.name} reads aligned faces; got none.")
        vectors = [np.asarray(self._model.get_feat(_bgr(crop))).reshape(-1) for crop in crops]
        return torch.from_numpy(np.stack(vectors).astype(np.float32))


def load_insightface(
    folder: str | Path, *, providers: Sequence[str], min_score: float | None = None
) -> tuple[InsightFaceDetector, InsightFaceEmbedder]:
    """Load detector and embedder of a pack; the log states their licence.

    Args:
        folder: The folder with the pack's ONNX files.
        providers: Where onnxruntime runs them, in order of preference.
        min_score: How sure the detector must be of a face, 0 to 1; insightface's 0.5 if None.

    Raises:
        CheckpointError: There is no such folder, a file of it is damaged or reaches for others, or it is no pack.
        ImpromptError: insightface is not installed.
    """
    min_score = _MIN_SCORE if min_score is None else min_score
    folder = Path(folder).expanduser()
    files = sorted(folder.glob("*.onnx"))
    if not files:  # insightface would take a name that is no folder for one to download
        raise CheckpointError(f"'{folder}' is no folder with ONNX files; give an unpacked InsightFace model pack.")
    for file in files:
        read_onnx(file)
    try:
        analysis = import_module("insightface.app").FaceAnalysis
    except ModuleNotFoundError as error:
        raise ImpromptError(
            "The package insightface is not installed; run: pip install 'imprompt[insightface]', or load the pack "
            "without it (FaceEncoder.from_folder)."
        ) from error
    try:
        pack = analysis(
            name=str(folder.resolve()), allowed_modules=["detection", "recognition"], providers=list(providers)
        )
        pack.prepare(ctx_id=0, det_thresh=min_score, det_size=list(_SIZES))
        models = pack.models["detection"], pack.models["recognition"]
    except Exception as error:  # whatever it asserts, looks up or lets onnxruntime raise
        raise CheckpointError(
            f"insightface cannot load '{folder}' as a model pack ({first_line(error)}); unpack it again."
        ) from error
    return _detector(models[0], min_score), _embedder(models[1])


def _detector(model: Any, min_score: float) -> InsightFaceDetector:
    file = read_onnx(model.model_file)
    name, licence = state_licence(file.path, file.sha256, "detector", otherwise=NON_COMMERCIAL)
    fingerprint = hashlib.sha256(f"insightface:{file.sha256}:{min_score}:{_SIZES}".encode()).hexdigest()
    return InsightFaceDetector(model, DetectorSpec(name, licence, fingerprint, min_score))


def _embedder(model: Any) -> InsightFaceEmbedder:
    file = read_onnx(model.model_file)
    name, licence = state_licence(file.path, file.sha256, "embedder", otherwise=NON_COMMERCIAL)
    side = int(model.input_size[0])
    width = np.asarray(model.get_feat(np.zeros((side, side, 3), np.uint8))).size
    return InsightFaceEmbedder(model, EmbedderSpec(name, licence, file.sha256, side, width))


def _bgr(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])
