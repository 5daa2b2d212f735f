"""The face encoder: which face, in which form, and what it says where there is none."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from imprompt.core.errors import CheckpointError, EncoderMismatch, FaceError, ImageError
from imprompt.core.images import load_image
from imprompt.encoders.alignment import template_points
from imprompt.encoders.base import ImageEncoder
from imprompt.encoders.cache import CachedEncoder, FeatureCache
from imprompt.encoders.face import FaceEncoder
from imprompt.encoders.face_base import DetectorSpec, EmbedderSpec, Face
from imprompt.encoders.face_embeddings import average, normalise, similarities
from tests import faces


class MarkedFaces:
    """Takes every patch of one colour, 112 pixels wide, for an aligned face; counts the pictures it is shown."""

    def __init__(self, fingerprint: str = "detector") -> None:
        self.spec = DetectorSpec("marks", "none", fingerprint, 0.5)
        self.num_pictures = 0

    def detect(self, image: Image.Image) -> list[Face]:
        self.num_pictures += 1
        pixels = np.asarray(image).astype(int)
        found = []
        for colour in {tuple(value) for value in pixels.reshape(-1, 3)} - {(255, 255, 255)}:
            rows, columns = np.nonzero((pixels == colour).all(axis=2))
            left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            keypoints = template_points(112) * ((right - left) / 112) + (left, top)
            found.append(Face(np.array([left, top, right, bottom], float), keypoints, 0.9))
        return sorted(found, key=lambda face: -face.box[0])


class MeanColour:
    """Embeds the mean colour of the middle."""

    def __init__(self, fingerprint: str = "embedder") -> None:
        self.spec = EmbedderSpec("mean colour", "none", fingerprint, 112, 3)

    def embed(self, crops: Sequence[Image.Image]) -> Tensor:
        assert all(crop.size == (112, 112) for crop in crops)
        return torch.stack(
            [torch.from_numpy(np.asarray(crop)[40:80, 40:80].mean(axis=(0, 1))).float() for crop in crops]
        )


def group(*marks: tuple[str, int], width: int = 600) -> Image.Image:
    """A white picture with marks of a colour and a side, from left to right."""
    picture = Image.new("RGB", (width, 240), "white")
    for place, (colour, side) in enumerate(marks):
        picture.paste(colour, (20 + 200 * place, 20, 20 + 200 * place + side, 20 + side))
    return picture


def encoder(choice: "str | int | Tensor" = "largest", *, normalised: bool = False) -> FaceEncoder:
    return FaceEncoder(MarkedFaces(), MeanColour(), choice=choice, normalised=normalised)  # pyright: ignore


RED, GREEN, BLUE = (torch.tensor([values]) for values in ([255.0, 0, 0], [0, 128.0, 0], [0, 0, 255.0]))
THREE = group(("red", 112), ("green", 168), ("blue", 120))
EMPTY = group()


def test_it_is_an_image_encoder() -> None:
    assert isinstance(encoder(), ImageEncoder)
    spec = encoder().spec
    assert (spec.kind, spec.width, spec.projection_dim, spec.feature_width("face_embeds")) == ("face", 3, 3, 3)
    assert repr(encoder()) == "FaceEncoder(marks + mean colour: width 3, raw)"


def test_the_largest_face_by_default() -> None:
    assert torch.equal(encoder().encode([THREE]), GREEN)
    assert torch.equal(encoder().encode([group(("blue", 112)), THREE]), torch.cat([BLUE, GREEN]))


def test_unit_length_or_raw() -> None:
    assert torch.equal(encoder(normalised=True).encode([THREE]), GREEN / 128)


def test_faces_are_counted_from_the_left() -> None:
    assert [face.box[0] for face in encoder().faces(THREE)] == [20, 220, 420]
    assert torch.equal(torch.cat([encoder(n).encode([THREE]) for n in range(3)]), torch.cat([RED, GREEN, BLUE]))
    with pytest.raises(FaceError, match=r"The picture shows 3 faces, counted from 0 at the left; there is no 3\."):
        encoder(3).encode([THREE])
    with pytest.raises(FaceError, match=r"Picture 2 of 2 shows one face"):
        encoder(1).encode([THREE, group(("red", 112))])


def test_the_face_most_like_a_reference() -> None:
    dark_blue = torch.tensor([10.0, 10.0, 90.0])
    assert torch.equal(encoder(dark_blue).encode([THREE]), BLUE)
    assert torch.equal(encoder(torch.cat([RED, RED * 2])).encode([THREE]), RED)
    assert torch.equal(encoder().choosing(BLUE).encode([THREE]), BLUE)


@pytest.mark.parametrize("choice", ["smallest", -1, True, 1.5, None])
def test_choices_that_are_none(choice: object, unchecked: None) -> None:
    with pytest.raises(ImageError, match="choice must be 'largest'"):
        FaceEncoder(MarkedFaces(), MeanColour(), choice=choice)  # pyright: ignore


@pytest.mark.parametrize("reference", [torch.ones(4), torch.ones(1, 1, 3), torch.ones(0, 3)])
def test_references_of_another_shape(reference: Tensor) -> None:
    with pytest.raises(ImageError, match="embedding of width 3; got the shape"):
        encoder(reference)
    with pytest.raises(FaceError, match="zero or not finite"):
        encoder(torch.zeros(3))


def test_a_picture_without_a_face_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FaceError, match=r"^No face was found in the picture \(600 x 240 pixels\) by marks with a score of 0.5"
    ):
        encoder().encode([EMPTY])
    with pytest.raises(FaceError, match=r"in picture 2 of 3 "):
        encoder().encode([THREE, EMPTY, THREE])
    EMPTY.save(tmp_path / "cat.png")
    with Image.open(tmp_path / "cat.png") as opened, pytest.raises(FaceError, match=r"in '.*cat\.png' "):
        encoder().encode([opened])


def test_without_pictures() -> None:
    with pytest.raises(ImageError, match="at least one"):
        encoder().encode([])
    with pytest.raises(ImageError, match="at least one"):
        encoder().identity([])


@pytest.mark.parametrize("layer", ["image_embeds", "hidden_states"])
def test_other_layers_are_refused(layer: str) -> None:
    with pytest.raises(EncoderMismatch, match=f"got layer '{layer}'"):
        encoder().encode([THREE], layer=layer)  # pyright: ignore
    with pytest.raises(EncoderMismatch):
        encoder().encode_null(layer=layer)  # pyright: ignore


def test_no_face_is_zeros() -> None:
    assert torch.equal(encoder().encode_null(layer="face_embeds"), torch.zeros(1, 3))


@pytest.mark.parametrize("size", [112, 224, 336])
def test_the_crop_for_clip_shows_the_same_face(size: int) -> None:
    (crop,) = encoder().crops([THREE], size)
    assert crop.size == (size, size)
    assert crop.getpixel((size // 2, size // 2)) == (0, 128, 0)
    with pytest.raises(ImageError, match="got 100"):
        encoder().crops([THREE], 100)


def test_a_picture_is_searched_once() -> None:
    one = encoder()
    one.encode([THREE])
    one.crops([THREE.copy()])
    one.identity([THREE])
    assert one.detector.num_pictures == 1  # pyright: ignore


def test_several_pictures_of_one_person(caplog: pytest.LogCaptureFixture) -> None:
    pictures = [group(("red", 112)), EMPTY, group(("blue", 112))]
    with pytest.raises(FaceError, match="picture 2 of 3"):
        encoder().identity(pictures)
    identity = encoder().identity(pictures, skip_missing=True)
    assert torch.allclose(identity, torch.tensor([[1.0, 0.0, 1.0]]) * 255 / 2**0.5)
    assert "left out: No face was found in picture 2 of 3" in caplog.text
    with pytest.raises(FaceError, match="None of 2 pictures"):
        encoder().identity([EMPTY, EMPTY], skip_missing=True)


def test_embeddings_are_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "person.safetensors"
    encoder().save(path, encoder().encode([THREE]))
    assert torch.equal(encoder().load(path), GREEN)
    assert torch.equal(encoder(normalised=True).load(path), GREEN / 128)
    with pytest.raises(EncoderMismatch):
        FaceEncoder(MarkedFaces(), MeanColour("other")).load(path)


def test_the_fingerprint_follows_all_that_features_depend_on() -> None:
    same = [encoder().spec.fingerprint, encoder().spec.fingerprint]
    others = [
        encoder(0),
        encoder(1),
        encoder(RED),
        encoder(BLUE),
        encoder(normalised=True),
        FaceEncoder(MarkedFaces("other"), MeanColour(), normalised=False),
        FaceEncoder(MarkedFaces(), MeanColour("other"), normalised=False),
    ]
    assert len({*same, *(other.spec.fingerprint for other in others)}) == 8


def test_features_are_cached(tmp_path: Path) -> None:
    one = encoder()
    cached = CachedEncoder(one, FeatureCache(folder=tmp_path))
    for _ in range(2):
        assert torch.equal(cached.encode([THREE, THREE], layer="face_embeds"), torch.cat([GREEN, GREEN]))
    assert torch.equal(cached.encode_null(layer="face_embeds"), torch.zeros(1, 3))
    again = encoder()
    assert torch.equal(CachedEncoder(again, FeatureCache(folder=tmp_path)).encode([THREE], layer="face_embeds"), GREEN)
    assert again.detector.num_pictures == 0  # pyright: ignore


def test_keypoints_of_no_face_name_the_picture() -> None:
    one = encoder()
    one.detector.detect = lambda image: [Face(np.zeros(4), np.zeros((5, 2)), 0.9)]  # pyright: ignore
    with pytest.raises(FaceError, match="In picture 1 of 2: The keypoints found lie as on no face"):
        one.encode([THREE, THREE])


# From here on with a real detector, on drawings, and an embedder whose answer is known.


@pytest.fixture
def drawn(tmp_path: Path) -> FaceEncoder:
    (tmp_path / "detector.onnx").write_bytes(faces.YUNET.read_bytes())
    faces.arcface(tmp_path / "embedder.onnx")
    return FaceEncoder.from_folder(tmp_path)


def test_the_same_person_with_another_expression_is_nearest(drawn: FaceEncoder) -> None:
    portraits = [portrait for expressions in faces.portraits() for portrait in expressions]
    embeddings = drawn.encode(portraits)
    assert embeddings.shape == (12, 512)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(12))
    likeness = embeddings @ embeddings.T
    likeness.fill_diagonal_(-1.0)
    assert (likeness.argmax(dim=1) // faces.EXPRESSIONS).tolist() == [n // faces.EXPRESSIONS for n in range(12)]


def test_embeddings_are_those_of_the_crops(drawn: FaceEncoder) -> None:
    portrait = faces.portraits()[1][0]
    expected = normalise(torch.from_numpy(faces.expected_embedding(drawn.crops([portrait], 112)[0]))[None].float())
    torch.testing.assert_close(drawn.encode([portrait]), expected, atol=1e-5, rtol=1e-5)


def test_a_person_is_found_in_a_group(drawn: FaceEncoder) -> None:
    people = faces.portraits()
    picture = Image.new("RGB", (4 * faces.TILE, faces.TILE))
    for place, expressions in enumerate(people):
        picture.paste(expressions[0], (place * faces.TILE, 0))
    assert len(drawn.faces(picture)) == 4
    for place, (_, *others) in enumerate(people):
        reference = drawn.identity(others)
        chosen = drawn.choosing(reference)
        (crop,), (wanted,) = chosen.crops([picture]), drawn.choosing(place).crops([picture])
        assert np.array_equal(np.asarray(crop), np.asarray(wanted))
        assert similarities(chosen.encode([picture]), reference).item() > 0.9


def test_a_picture_and_its_averaged_expressions(drawn: FaceEncoder) -> None:
    expressions = faces.portraits()[0]
    torch.testing.assert_close(drawn.identity(expressions), average(drawn.encode(expressions)))


def test_pictures_without_faces_on_real_paths(drawn: FaceEncoder, tmp_path: Path) -> None:
    Image.new("RGB", (90, 60), "grey").save(tmp_path / "grey.png")
    with pytest.raises(FaceError, match=r"\(90 x 60 pixels\) by YuNet 2023mar with a score of 0\.6 or more"):
        drawn.encode([load_image(tmp_path / "grey.png")])


def test_a_folder_that_is_no_pack(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        FaceEncoder.from_folder(tmp_path)


def test_files_by_name(tmp_path: Path) -> None:
    embedder = faces.arcface(tmp_path / "e.onnx", width=128)
    chosen = FaceEncoder.from_files(faces.YUNET, embedder, choice=0, normalised=False)
    assert repr(chosen) == "FaceEncoder(YuNet 2023mar + e: width 128, raw)"
    strict = FaceEncoder.from_files(faces.YUNET, embedder, min_score=0.99)
    with pytest.raises(FaceError, match="with a score of 0.99 or more"):
        strict.encode([faces.portraits()[0][0]])
