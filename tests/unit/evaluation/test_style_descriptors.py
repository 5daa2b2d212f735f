"""CSD: the judge that is given by folder computes the cosine of the paper's style descriptors (arXiv 2404.01292)."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from imprompt.core.images import load_image
from imprompt.evaluation.errors import EvaluationError
from imprompt.evaluation.items import Case, Item
from imprompt.evaluation.judges import load_judges
from imprompt.evaluation.metrics.table import METRICS
from imprompt.evaluation.scoring import score_pictures
from tests import tiny

SIDE, WIDTH, DESCRIPTOR = 32, 16, 10


@pytest.fixture(scope="module")
def last_layer_style() -> Tensor:
    """What CSD trains on top of a CLIP, as its checkpoint has it: `[width, descriptor]`."""
    return torch.randn(WIDTH, DESCRIPTOR, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def network(last_layer_style: Tensor) -> CLIPVisionModelWithProjection:
    torch.manual_seed(4)
    model = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
            patch_size=8, projection_dim=DESCRIPTOR,
        )
    )  # fmt: skip
    with torch.no_grad():
        for weight in model.parameters():  # else all pictures are nearly alike
            if weight.ndim > 1:
                weight.copy_(torch.randn_like(weight) * (0.6 if weight.ndim == 2 else 2.0))
        model.visual_projection.weight.copy_(last_layer_style.T)  # as the guide says
    return model.eval()


@pytest.fixture(scope="module")
def folder(network: CLIPVisionModelWithProjection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("csd")
    network.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(
        folder
    )
    return folder


def descriptor(network: CLIPVisionModelWithProjection, style: Tensor, path: Path) -> Tensor:
    """The paper's: the class token after the last norm, times the style matrix, at length 1."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    pixels = processor(images=[load_image(path)], return_tensors="pt")["pixel_values"]
    tower = network.vision_model
    with torch.no_grad():
        token = tower(pixel_values=pixels).last_hidden_state[:, 0]
        norm = tower.post_layernorm
        feature = functional.layer_norm(token, (WIDTH,), norm.weight, norm.bias, norm.eps)
    return functional.normalize(feature @ style, dim=1)[0]


def test_it_is_the_cosine_of_descriptors_to_the_style_picture(
    network: CLIPVisionModelWithProjection, folder: Path, last_layer_style: Tensor, tmp_path: Path
) -> None:
    pictures = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(pictures):
        tiny.picture(seed=number).save(path)
    subject, style, *made = pictures
    cases = [
        Case(subject="s", prompt_name="p", references=(subject,), prompt="", caption="", style=kept)
        for kept in (style, style, None)
    ]
    items = [Item(case=case, arm="adapter", scale=1.0, seed=0) for case in cases]
    judges = load_judges({"csd": str(folder)}, ["csd"], None)
    found = score_pictures(METRICS["csd"], items, [made[0], style, made[1]], judges)
    descriptors = {path: descriptor(network, last_layer_style, path) for path in pictures}
    pairs = [(made[0], style), (style, style), (made[1], subject)]  # the reference, where there is no style picture
    expected = [float(descriptors[one] @ descriptors[other]) for one, other in pairs]
    assert found == pytest.approx(expected, abs=1e-5)
    assert expected[1] == pytest.approx(1) and max(expected[0], expected[2]) < 0.99


def test_the_weights_are_told_and_have_no_default(folder: Path) -> None:
    judge = load_judges({"csd": str(folder)}, ["csd"], None)["csd"]
    assert len(judge.describe()["fingerprint"]) > 8 and judge.describe()["texts_fingerprint"] is None
    with pytest.raises(EvaluationError, match="--judge csd=FOLDER"):
        load_judges({}, ["csd"], None)
