"""What the table of quality asks and counts, on invented pictures whose answers are known."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from imprompt.emoji.styles import STYLES
from imprompt.evaluation.intervals import bootstrap
from imprompt.recipes.emoji import quality
from imprompt.recipes.emoji.augment import to_tensor
from imprompt.recipes.emoji.captions import full_caption
from imprompt.recipes.emoji.dataset import EmojiPictures
from imprompt.recipes.emoji.evidence.judging import pixels
from imprompt.recipes.emoji.judge import Verdict
from imprompt.recipes.emoji.sources import Subject

NUM_SUBJECTS, NUM_PICTURES = 200, 12
TEXT, IMAGE = "text alone: subject found among ten", "image alone: reference found among ten"
STYLE, PROBE = "text names another subject (weight 0.6): style recognised", "the probe itself: style recognised"


def see(images):
    """A judge that sees the colours of 4 x 4 cells as the subject, and how near the brightness is to styles' own."""
    values = images.float() / 255
    cells = functional.adaptive_avg_pool2d(values, 4).flatten(1)
    own = (64 + 16 * torch.arange(8)) / 255
    style = torch.exp(-((values.mean(dim=(1, 2, 3))[:, None] - own) / 0.03).square())
    return Verdict(functional.pad(cells, (0, 1280 - cells.shape[1])), style)


@pytest.fixture(scope="module")
def pictures():
    """Blocks of colours; a style lightens all of them a little."""
    random = np.random.default_rng(0)
    blocks = random.integers(0, 128, (NUM_SUBJECTS, 4, 4, 3)).astype(np.uint8)
    images = [np.kron(block + 16 * style, np.ones((16, 16, 1), np.uint8)) for style in range(8) for block in blocks]
    return EmojiPictures(
        images=np.stack(images),
        styles=np.repeat(np.arange(8), NUM_SUBJECTS),
        subject_indices=np.tile(np.arange(NUM_SUBJECTS), 8),
        subjects=tuple(
            Subject(f"{number:04X}", f"thing {number}", (), (), "objects") for number in range(NUM_SUBJECTS)
        ),
    )


@pytest.fixture
def measured(monkeypatch, pictures, tmp_path):
    """Measures a model that draws what it is told to, moved by so many rows; and what it was asked."""
    captions = [full_caption(pictures.subject_of(place), STYLES[style]) for place, style in enumerate(pictures.styles)]
    asked = []
    monkeypatch.setattr(quality.dataset, "load", lambda: pictures)
    monkeypatch.setattr(quality, "judge", see)
    monkeypatch.setattr(quality, "base_pipeline", lambda bundle: torch.nn.Identity())

    def measure(moved=0):
        def sample(pipe, settings, texts, seeds):
            assert len(set(seeds)) == len(texts)
            return to_tensor(pictures)[[captions.index(text) for text in texts]].roll(moved, 0)

        def drawer(pipe, settings, setting):
            def draw(references, seeds):
                assert len(set(seeds)) == len(references)
                asked.append((setting, references))
                return pixels(references).roll(moved, 0)

            return draw

        monkeypatch.setattr(quality, "sample", sample)
        monkeypatch.setattr(quality, "drawer", drawer)
        return quality.measure(quality.QualityConfig(bundle=tmp_path, num_pictures=NUM_PICTURES)), asked

    return measure


def test_who_draws_what_is_asked_for_is_found_by_every_question(measured):
    figures, asked = measured()
    settings = [f"{name} adapter, {split}" for name in ("global", "plus") for split in quality.SPLITS.values()]
    assert [(figure.question, figure.setting) for figure in figures] == [
        (TEXT, "training subjects"),
        *((question, setting) for setting in settings for question in (IMAGE, STYLE)),
        *((PROBE, f"real pictures, {split}") for split in ("held-out subjects", "held-out pairs")),
    ]
    assert {figure.share.num_values for figure in figures} == {NUM_PICTURES}
    shares = {(figure.question, figure.setting): figure.share.mean for figure in figures}
    assert {share for (question, _), share in shares.items() if question == IMAGE} == {1.0}
    assert shares[TEXT, "training subjects"] > 0.8  # nearest to its subject's mean over styles, of which it is one
    for setting in settings:  # the pictures themselves: as well as the probe knows them
        assert shares[STYLE, setting] == shares[PROBE, setting.replace(setting.split(",")[0], "real pictures")] > 0.5
    assert [(setting.adapter, setting.weight, setting.text) for setting, _ in asked[:2]] == [
        ("global", 1.0, "nothing"),
        ("global", 0.6, "other"),
    ]
    assert quality.table(figures).count("\n") == len(figures) + 1
    chances = {figure.chance for figure in figures if figure.question == STYLE}
    assert all(1 / 8 <= chance < 0.5 for chance in chances)


def test_a_row_tells_the_interval_over_subjects():
    few = quality.Figure(
        "text", "global", bootstrap([1.0, 0.0, 1.0, 1.0], [("a", 0), ("a", 1), ("b", 2), ("b", 3)]), 0.1
    )
    assert few.as_row() == "| text | global | 75.0 % [25.0 %, 100.0 %] | 10.0 % | 4 | 2 |"


def test_who_draws_something_else_is_not_found(measured):
    figures, _ = measured(moved=1)
    assert max(figure.share.mean for figure in figures if figure.question in (TEXT, IMAGE)) < 0.3


def test_the_other_text_names_a_subject_of_the_training(measured, pictures):
    _, asked = measured()
    labels = {pictures.subject_of(place).label for place in pictures.split("train").tolist()}
    references = [one for _, references in asked for one in references]
    assert all(one.other in labels and one.other != one.subject for one in references)
    assert all(pictures.split_name(one.number) == one.split for one in references)
