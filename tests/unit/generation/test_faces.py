"""What adapters of faces read: which features, which stand for no face, and what a prompt may say of them."""

from typing import Any

import pytest
import torch

from imprompt import ImagePrompt
from imprompt.core.errors import PromptError
from imprompt.encoders.cache import FeatureCache
from imprompt.encoders.vision import VisionEncoder
from imprompt.generation.faces import FaceFeatures, crop_size
from imprompt.generation.provenance import describe_prompt
from imprompt.generation.resolve import image_tokens
from imprompt.prompts.expand import expand
from tests import tiny, tiny_faces

EMBEDDING, ASPECT = torch.ones(tiny_faces.FACE), torch.ones(5, tiny_faces.CROP)


@pytest.fixture(scope="module")
def clip() -> VisionEncoder:
    return VisionEncoder(tiny.vision_tower(), tiny.image_processor())


def source(kind: str, clip: VisionEncoder, **options: Any) -> tuple[Any, FaceFeatures]:
    adapter = tiny_faces.adapter(tiny_faces.host("kolors" if "kolors" in kind else "small"), kind)

    def load(_source: Any) -> Any:
        raise AssertionError("an encoder at hand was loaded again")

    return adapter, FaceFeatures(adapter.spec, tiny_faces.faces(**options), clip, load, FeatureCache())


@pytest.mark.parametrize(("pixels", "side"), [(16, 224), (224, 224), (336, 336), (384, 448)])
def test_faces_are_aligned_at_the_size_that_the_encoder_looks_at(pixels: int, side: int) -> None:
    assert crop_size(pixels) == side


@pytest.mark.parametrize("kind", ["faceid-plusv2", "kolors-faceid"])
def test_no_face_is_a_zero_identity_beside_no_picture(kind: str, clip: VisionEncoder) -> None:
    """The official code encodes zero pixels for h94's files; Kolors' takes zeros for both."""
    adapter, faces = source(kind, clip)
    picture = tiny_faces.portrait(1)
    features, crop = faces.features([picture]), faces.crop_features([picture])
    _, null = image_tokens(features, adapter, faces, crop=crop, structure=0.5)
    empty = torch.zeros_like(crop) if "kolors" in kind else clip.encode_null(layer="hidden_states", index=-2)
    assert torch.equal(null, adapter.project(torch.zeros_like(features), crop=empty, structure=0.5)[0])


@pytest.mark.parametrize("kind", ["faceid", "portrait-unnorm"])
def test_the_adapter_says_whether_embeddings_have_unit_length(kind: str, clip: VisionEncoder) -> None:
    lengths = []
    for normalised in (True, False):
        _, faces = source(kind, clip, normalised=normalised)
        lengths.append(float(faces.features([tiny_faces.portrait(1)]).norm()))
    assert lengths[0] == lengths[1]
    assert (abs(lengths[0] - 1) < 1e-5) == (kind == "faceid")


def test_a_face_is_sought_once_for_both_halves_and_embedded_once(clip: VisionEncoder) -> None:
    _, faces = source("faceid-plus", clip)
    picture, detector = tiny_faces.portrait(1, 2), faces._encoder().detector
    for _ in range(2):
        faces.features([picture])
        faces.crop_features([picture])
    assert detector.num_pictures == 1  # pyright: ignore


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": "a.png", "face": "smallest"}, "face must be 'largest', a number counted from 0"),
        ({"image": "a.png", "face": -1}, "got -1"),
        ({"features": EMBEDDING, "face": 0}, "this prompt has features"),
        ({"image": "a.png", "crop_features": ASPECT}, "goes with features"),
        ({"features": EMBEDDING, "crop_features": EMBEDDING}, r"got \[512\]"),
        ({"image": "a.png", "structure": float("nan")}, "structure must be a finite number"),
    ],
)
def test_prompts_that_make_no_sense(fields: dict[str, Any], message: str, unchecked: None) -> None:
    with pytest.raises(PromptError, match=message):
        ImagePrompt(**fields)


def test_provenance_tells_of_faces() -> None:
    assert "structure" not in describe_prompt(ImagePrompt(features=EMBEDDING))
    told = describe_prompt(ImagePrompt(tiny_faces.portrait(1), face=EMBEDDING, structure=2.0))
    assert told["structure"] == 2.0 and len(told["face"]) == 64
    given = describe_prompt(ImagePrompt(features=EMBEDDING, crop_features=ASPECT))
    assert len(given["crop_features_sha256"]) == 64


def test_masks_for_each_face_part_both_features() -> None:
    pair = ImagePrompt(
        features=torch.stack([EMBEDDING, 2 * EMBEDDING]),
        crop_features=torch.stack([ASPECT, 3 * ASPECT]),
        mask=[torch.ones(4, 4), torch.zeros(4, 4)],
    )
    for factor, part in enumerate(expand(pair), 1):
        assert part.features is not None and torch.equal(part.features, factor * EMBEDDING[None])
        assert part.crop_features is not None and torch.equal(part.crop_features, (2 * factor - 1) * ASPECT[None])
