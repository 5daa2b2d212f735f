"""Judges against the networks of transformers that they wrap, and what they are recorded as."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imprompt.core.errors import CheckpointError
from imprompt.evaluation.errors import EvaluationError
from imprompt.evaluation.items import items_of
from imprompt.evaluation.judges import DinoJudge, load_judges
from imprompt.evaluation.layouts import read_folder
from imprompt.evaluation.metrics.table import METRICS
from imprompt.evaluation.scoring import score_pictures, set_features, set_value
from tests import tiny_judges


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_judges.clip_folder(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    random, files = np.random.default_rng(0), []
    for number in range(5):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(files[-1])
    return files


def test_a_clip_judges_pictures_and_texts_as_transformers_does(clip_folder: Path, pictures: list[Path]) -> None:
    judge = load_judges({"clip": str(clip_folder)}, ["clip"], None)["clip"]
    model, processor, tokenizer = tiny_judges.load_clip(clip_folder)
    images = processor(images=[Image.open(path) for path in pictures], return_tensors="pt")
    texts = tokenizer(["a cat", "a dog on the moon"], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        outputs = model(**images, **texts)
    unit = torch.nn.functional.normalize
    assert torch.allclose(unit(judge.pooled(pictures), dim=1), outputs.image_embeds, atol=1e-5)
    assert torch.allclose(unit(judge.text(["a cat", "a dog on the moon"]), dim=1), outputs.text_embeds, atol=1e-5)
    said = judge.describe()
    assert len(said["fingerprint"]) == len(said["texts_fingerprint"]) == 64
    assert said["texts_fingerprint"] != said["fingerprint"]


def test_dino_is_its_class_token(pictures: list[Path]) -> None:
    model = tiny_judges.vit()
    judge = DinoJudge(model, "tiny")
    with torch.no_grad():
        states = model(tiny_judges.dino_pixels(pictures)).last_hidden_state
    assert torch.allclose(judge.pooled(pictures), states[:, 0], atol=1e-5)


def test_what_is_no_dino_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    tiny_judges.vit().save_pretrained(tmp_path / "dino")
    assert load_judges({"dino": str(tmp_path / "dino")}, ["dino"], None)
    with pytest.raises(CheckpointError, match="is no DINO: it lacks"):
        load_judges({"dino": str(clip_folder)}, ["dino"], None)
    weights = tmp_path / "dino" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="holds no ViT that can be read"):
        load_judges({"dino": str(tmp_path / "dino")}, ["dino"], None)


def test_a_dino_is_told_by_its_weights_and_what_it_does_to_pictures() -> None:
    said, again = (DinoJudge(tiny_judges.vit(), name).describe() for name in ("one", "other"))
    assert said["preprocessing"]["crop_size"] == 224 and said["fingerprint"] == again["fingerprint"]
    model = tiny_judges.vit()
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    assert DinoJudge(model, "one").describe()["fingerprint"] != said["fingerprint"]
    model.config.image_size = 448
    assert DinoJudge(model, "one").describe()["preprocessing"]["crop_size"] == 448


def test_scores_do_not_depend_on_how_many_are_looked_at_at_once_and_are_the_same_again(
    clip_folder: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seventy pictures, each of which is read: of the same one twice, the features of the first time would be taken."""
    random = np.random.default_rng(1)
    for number in range(5, 70):
        pictures.append(pictures[0].with_name(f"{number}.png"))
        Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(pictures[-1])
    for path in pictures:
        path.with_suffix(".txt").write_text(f"picture {path.stem}")
    items = items_of(read_folder(pictures[0].parent, ()), scales=(1.0,), num_seeds=1, seed=0, controls=False)
    references = [item.case.references[0] for item in items]
    shuffled = references[1:] + references[:1]
    found = []
    for number in (1, 7, 64):
        monkeypatch.setattr("imprompt.evaluation.judges._BATCH", number)
        monkeypatch.setattr("imprompt.evaluation.scoring._PATCHES", number)
        judges = load_judges({"clip": str(clip_folder)}, ["clip"], None)
        judges["dinov2"] = judges["clip"]
        found.append([score_pictures(METRICS[name], items, shuffled, judges) for name in ("clip_i", "clip_t", "style")])
    for other in found[1:]:
        assert np.allclose(found[0], other, rtol=0, atol=1e-6)
    assert np.array(found).std(axis=2).min() > 1e-4
    assert np.allclose(score_pictures(METRICS["clip_i"], items, references, judges), 1.0, atol=1e-6)


def test_a_picture_without_a_face_is_counted_apart(pictures: list[Path]) -> None:
    items = items_of(read_folder(pictures[0].parent, ()), scales=(1.0,), num_seeds=1, seed=0, controls=False)
    judge = tiny_judges.FacesOf({path.name: torch.eye(5)[index] for index, path in enumerate(pictures)})
    made = pictures[:2] + pictures[:1] * 3
    made[2] = pictures[0].with_name("faceless.png")
    assert score_pictures(METRICS["face"], items, made, {"face": judge})[:3] == [1.0, 1.0, None]
    with pytest.raises(EvaluationError, match="references without a face: 1.png"):
        del judge.known["1.png"]
        score_pictures(METRICS["face"], items, made, {"face": judge})


def test_sets_that_are_too_small_are_refused(clip_folder: Path, pictures: list[Path]) -> None:
    judges = {"dinov2": load_judges({"clip": str(clip_folder)}, ["clip"], None)["clip"]}
    same = set_features(METRICS["frechet"], pictures, pictures, judges)
    assert set_value(METRICS["frechet"], *same)[0] == pytest.approx(0, abs=1e-4)
    with pytest.raises(EvaluationError, match="5 pictures against 5 references; it wants 10"):
        set_features(METRICS["kernel"], pictures, pictures, judges)


def test_a_judge_that_is_wanted_and_not_named_is_asked_for() -> None:
    with pytest.raises(EvaluationError, match="--judge face=FOLDER"):
        load_judges({}, ["face"], None)
    with pytest.raises(EvaluationError, match="no judge 'clipp'"):
        load_judges({"clipp": "x"}, [], None)
    with pytest.raises(EvaluationError, match="'mobilenet' comes from a package"):
        load_judges({"mobilenet": "x"}, ["mobilenet"], None)
