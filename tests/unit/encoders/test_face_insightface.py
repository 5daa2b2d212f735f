"""The route through the package insightface, which a stand-in takes the place of here; see test_face_published."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from imprompt.core.errors import CheckpointError, ImageError, ImpromptError
from imprompt.encoders.face import FaceEncoder
from imprompt.encoders.face_base import FaceDetector, FaceEmbedder
from imprompt.encoders.face_insightface import load_insightface
from imprompt.encoders.face_known import NON_COMMERCIAL
from tests import faces

KEYPOINTS = np.array([[38, 51], [73, 51], [56, 71], [41, 92], [70, 92]], np.float32)


class Detection:
    def __init__(self, folder: Path) -> None:
        self.model_file = str(folder / "d.onnx")

    def detect(self, image: np.ndarray, det_thresh: float) -> tuple[np.ndarray, np.ndarray | None]:
        """One face where the picture is blue: insightface reads BGR."""
        found = int(image[0, 0, 0] > 128)
        boxes = np.array([[10, 20, 110, 120, 0.8]] * found, np.float32).reshape(found, 5)
        return boxes, np.stack([KEYPOINTS] * found) if found else np.zeros((0, 5, 2), np.float32)


class Recognition:
    input_size = (112, 112)

    def __init__(self, folder: Path) -> None:
        self.model_file = str(folder / "e.onnx")

    def get_feat(self, image: np.ndarray) -> np.ndarray:
        return np.repeat(image.mean(axis=(0, 1)), 2)[None].astype(np.float32)


class Analysis:
    """`insightface.app.FaceAnalysis` as far as it is used."""

    def __init__(self, name: str, allowed_modules: list[str], providers: list[str]) -> None:
        assert Path(name).is_absolute()
        assert (allowed_modules, providers) == (["detection", "recognition"], ["CPUExecutionProvider"])
        self.models = {"detection": Detection(Path(name))}
        if (Path(name) / "e.onnx").exists():
            self.models["recognition"] = Recognition(Path(name))

    def prepare(self, ctx_id: int, det_thresh: float, det_size: list[tuple[int, int]]) -> None:
        assert (ctx_id, det_thresh, det_size[0]) == (0, 0.5, (640, 640))


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = ModuleType("insightface")
    monkeypatch.setitem(sys.modules, "insightface", package)
    monkeypatch.setitem(sys.modules, "insightface.app", SimpleNamespace(FaceAnalysis=Analysis))
    faces.scrfd(tmp_path / "d.onnx")
    faces.arcface(tmp_path / "e.onnx")
    return tmp_path


def test_a_pack_becomes_an_encoder(pack: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = FaceEncoder.from_insightface(pack, normalised=False)
    assert isinstance(encoder.detector, FaceDetector)
    assert isinstance(encoder.embedder, FaceEmbedder)
    blue, red = Image.new("RGB", (130, 130), (20, 40, 200)), Image.new("RGB", (130, 130), "red")
    (face,) = encoder.faces(blue)
    assert face.box.tolist() == [10, 20, 110, 120]
    assert face.score == pytest.approx(0.8)
    assert encoder.faces(red) == []
    (embedding,) = encoder.encode([blue])
    assert embedding[:2].mean() > embedding[2:4].mean() > embedding[4:].mean() > 0  # blue, green, red
    assert encoder.spec.width == 6
    assert caplog.text.count(NON_COMMERCIAL) == 2


def test_both_routes_read_one_anothers_embeddings(pack: Path) -> None:
    assert (
        FaceEncoder.from_insightface(pack).embedder.spec.fingerprint
        == FaceEncoder.from_folder(pack).embedder.spec.fingerprint
    )


def test_a_detector_without_keypoints(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, embedder = load_insightface(pack, providers=("CPUExecutionProvider",))
    monkeypatch.setattr(Detection, "detect", lambda *_, **__: (np.zeros((1, 5), np.float32), None))
    with pytest.raises(CheckpointError, match="finds no keypoints"):
        detector.detect(Image.new("RGB", (10, 10)))
    with pytest.raises(ImageError, match="got none"):
        embedder.embed([])
    assert isinstance(embedder.embed([Image.new("RGB", (112, 112))]), torch.Tensor)


def test_a_folder_that_is_no_pack(pack: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder with ONNX files"):
        FaceEncoder.from_insightface("buffalo_l")
    (pack / "e.onnx").unlink()
    with pytest.raises(CheckpointError, match="cannot load .* as a model pack"):
        FaceEncoder.from_insightface(pack)
    (pack / "e.onnx").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be read"):
        FaceEncoder.from_insightface(pack)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "insightface", None)
    faces.scrfd(tmp_path / "d.onnx")
    with pytest.raises(ImpromptError, match=r"pip install 'imprompt\[insightface\]'"):
        FaceEncoder.from_insightface(tmp_path)
