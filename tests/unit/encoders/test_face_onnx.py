"""Detectors and embedders from ONNX files: known answers, and every file that is none."""

import logging
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from imprompt.core.errors import CheckpointError, ImageError, ImpromptError
from imprompt.encoders import face_onnx
from imprompt.encoders.face_base import FaceDetector, FaceEmbedder
from imprompt.encoders.face_onnx import OnnxDetector, OnnxEmbedder, find_face_models
from tests import faces


def square(column: int, row: int, width: int = 128, height: int = 128) -> Image.Image:
    """A picture with a red cell of the tiny detector's grid of 16 pixels."""
    picture = Image.new("RGB", (width, height))
    picture.paste("red", (16 * column, 16 * row, 16 * column + 16, 16 * row + 16))
    return picture


def crops(count: int) -> list[Image.Image]:
    random = np.random.default_rng(1)
    return [Image.fromarray(random.integers(0, 256, (112, 112, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(("strides", "anchors"), [((8, 16, 32), 2), ((8, 16, 32, 64, 128), 1)])
def test_a_face_is_where_the_picture_shows_it(
    tmp_path: Path, strides: tuple[int, ...], anchors: int, batched: bool
) -> None:
    path = faces.scrfd(tmp_path / "d.onnx", strides=strides, anchors=anchors, batched=batched)
    detector = OnnxDetector(path, size=128)
    assert isinstance(detector, FaceDetector)
    (face,) = detector.detect(square(3, 5))
    reach, points = 16 * np.array(faces.REACH), 16 * np.array(faces.KEYPOINTS).reshape(5, 2)
    assert face.score == pytest.approx(0.996, abs=0.01)
    assert face.box == pytest.approx(np.array([48 - reach[0], 80 - reach[1], 48 + reach[2], 80 + reach[3]]), abs=1e-4)
    assert face.keypoints == pytest.approx(points + (48.0, 80.0), abs=1e-4)


def test_pictures_of_any_size_are_scaled_and_boxes_scaled_back(tmp_path: Path) -> None:
    detector = OnnxDetector(faces.scrfd(tmp_path / "d.onnx"), size=128)
    for width, height in ((1280, 640), (320, 1280)):
        factor = max(width, height) // 128
        picture = square(0, 2).crop((0, 0, width // factor, height // factor))
        (face,) = detector.detect(picture.resize((width, height), Image.Resampling.NEAREST))
        assert face.box[:2] == pytest.approx(factor * np.array([0 - 16, 32 - 32]), abs=1e-3)
    assert detector.detect(Image.new("RGB", (1, 400))) == []


def test_faces_too_large_for_the_detector_are_found_in_a_smaller_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, tight = OnnxDetector(faces.YUNET), []
    for portrait, *_ in faces.portraits():
        left, top, right, bottom = detector.detect(portrait)[0].box.round().astype(int).tolist()
        margin = (right - left) // 3
        tight.append(portrait.crop((left - margin, top - margin, right + margin, bottom + margin)))
    assert all(len(detector.detect(picture)) == 1 for picture in tight)
    monkeypatch.setattr(face_onnx, "_FILLS", (1.0,))
    assert not all(detector.detect(picture) for picture in tight)


def test_a_score_too_low_is_no_face(tmp_path: Path) -> None:
    path = faces.scrfd(tmp_path / "d.onnx")
    assert OnnxDetector(path, size=128, min_score=0.999).detect(square(3, 5)) == []
    assert OnnxDetector(path, min_score=0.7).spec.fingerprint != OnnxDetector(path).spec.fingerprint
    assert OnnxDetector(path).spec.fingerprint == OnnxDetector(path).spec.fingerprint


def test_yunet_finds_every_drawn_face() -> None:
    """A real network, on drawings: eyes above the nose, the nose above the mouth, left of it left."""
    detector = OnnxDetector(faces.YUNET)
    for expressions in faces.portraits():
        for portrait in expressions:
            (face,) = detector.detect(portrait)
            left_eye, right_eye, nose, left_mouth, right_mouth = face.keypoints
            assert face.score > 0.8
            assert left_eye[0] < right_eye[0]
            assert left_mouth[0] < right_mouth[0]
            assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
            assert (face.box[:2] < face.keypoints.min(axis=0)).all()
            assert (face.keypoints.max(axis=0) < face.box[2:]).all()


def test_yunet_finds_nothing_where_nothing_is() -> None:
    assert OnnxDetector(faces.YUNET).detect(Image.new("RGB", (300, 200), "white")) == []


@pytest.mark.parametrize("scales_itself", [False, True])
@pytest.mark.parametrize("batch", [None, 1, 4])
def test_embeddings_are_the_networks_own(tmp_path: Path, scales_itself: bool, batch: int | None) -> None:
    embedder = OnnxEmbedder(faces.arcface(tmp_path / "e.onnx", scales_itself=scales_itself, batch=batch))
    assert isinstance(embedder, FaceEmbedder)
    assert (embedder.spec.image_size, embedder.spec.width) == (112, 512)
    given = crops(6)
    embeddings = embedder.embed(given)
    assert embeddings.dtype == torch.float32
    expected = np.stack([faces.expected_embedding(crop) for crop in given])
    assert np.allclose(embeddings.numpy(), expected, atol=1e-4)


def test_many_faces_are_embedded_in_parts(tmp_path: Path) -> None:
    embedder = OnnxEmbedder(faces.arcface(tmp_path / "e.onnx", width=64))
    given = crops(70)
    torch.testing.assert_close(embedder.embed(given)[69:], embedder.embed(given[69:]))


def test_crops_of_another_size_or_none_are_refused(tmp_path: Path) -> None:
    embedder = OnnxEmbedder(faces.arcface(tmp_path / "e.onnx"))
    with pytest.raises(ImageError, match="112 x 112 pixels; got one of 64 x 64"):
        embedder.embed([*crops(1), Image.new("RGB", (64, 64))])
    with pytest.raises(ImageError, match="got none"):
        embedder.embed([])


def test_a_pack_is_told_apart_by_what_its_files_do(tmp_path: Path) -> None:
    embedder = faces.arcface(tmp_path / "a.onnx")
    detector = faces.scrfd(tmp_path / "b.onnx")
    faces.other_network(tmp_path / "c.onnx")
    faces.other_network(tmp_path / "d.onnx", (None, 3, 192, 192))
    (tmp_path / "e.onnx").write_bytes(b"damaged")
    assert find_face_models(tmp_path) == (detector, embedder)


def test_a_pack_in_a_folder_of_its_own(tmp_path: Path) -> None:
    inner = tmp_path / "antelopev2"
    inner.mkdir()
    embedder, detector = faces.arcface(inner / "a.onnx"), faces.scrfd(inner / "b.onnx")
    assert find_face_models(str(tmp_path)) == (detector, embedder)


def test_a_folder_without_one_of_each(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no ONNX file"):
        find_face_models(tmp_path)
    faces.arcface(tmp_path / "a.onnx")
    faces.arcface(tmp_path / "b.onnx", seed=1)
    faces.other_network(tmp_path / "c.onnx")
    (tmp_path / "d.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError) as raised:
        find_face_models(tmp_path)
    assert "has 0 and 2: a.onnx (embedder), b.onnx (embedder)" in str(raised.value)
    assert "c.onnx (a network of 1 outputs that reads [1, 3, 96, 96])" in str(raised.value)
    assert "d.onnx (unreadable: " in str(raised.value)
    with pytest.raises(CheckpointError, match="is no folder"):
        find_face_models(tmp_path / "absent")


def test_the_wrong_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a SCRFD or YuNet face detector"):
        OnnxDetector(faces.arcface(tmp_path / "e.onnx"))
    with pytest.raises(CheckpointError, match="not a face embedder"):
        OnnxEmbedder(faces.scrfd(tmp_path / "d.onnx"))


def test_missing_damaged_and_oversized_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="There is no file"):
        OnnxEmbedder(tmp_path / "absent.onnx")
    path = faces.arcface(tmp_path / "e.onnx")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut short"):
        OnnxEmbedder(path)
    monkeypatch.setattr(face_onnx, "MAX_BYTES", 1000)
    with pytest.raises(CheckpointError, match="at most 1,000 are read"):
        OnnxEmbedder(path)


def test_weights_in_other_files_are_not_followed(tmp_path: Path) -> None:
    path = faces.arcface(tmp_path / "e.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights", size_threshold=0)
    with pytest.raises(CheckpointError, match="keeps weights in other files"):
        OnnxEmbedder(path)


def test_operators_that_onnxruntime_does_not_know_are_refused(tmp_path: Path) -> None:
    path = faces.arcface(tmp_path / "e.onnx")
    model = onnx.load(path)
    model.graph.node[-1].op_type = "RunThis"
    model.graph.node[-1].domain = "own"
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match="onnxruntime cannot load"):
        OnnxEmbedder(path)


def test_a_network_that_fails_when_it_runs(tmp_path: Path) -> None:
    path = faces.arcface(tmp_path / "e.onnx")
    model = onnx.load(path)
    mix = model.graph.initializer[0]
    mix.dims[0], mix.dims[1] = 512, 147  # as many values, in a shape that fits nothing
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match="cannot load|failed to run"):
        OnnxEmbedder(path)


def test_licences_are_stated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="imprompt"):
        assert OnnxDetector(faces.YUNET).spec.licence == "MIT"
        OnnxEmbedder(faces.arcface(tmp_path / "mine.onnx"))
    known, unknown = caplog.records
    assert known.levelno == logging.INFO
    assert "YuNet 2023mar" in known.message
    assert known.message.endswith("licence of its weights: MIT")
    assert unknown.levelno == logging.WARNING
    assert "mine" in unknown.message
    assert "not known here" in unknown.message
    assert "non-commercial" in unknown.message


def test_without_onnxruntime_the_message_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = faces.arcface(tmp_path / "e.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImpromptError, match=r"pip install 'imprompt\[face\]'"):
        OnnxEmbedder(path)
