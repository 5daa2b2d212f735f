"""Distances between sets: what is left without a group, how certain a value is, and which differences are real."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from imprompt.evaluation.errors import EvaluationError
from imprompt.evaluation.items import Case, items_of
from imprompt.evaluation.jackknife import NUM_GROUPS, LeftOut, group_sizes, groups_of, student
from imprompt.evaluation.metrics.distances import cmmd, frechet_distance, unbiased_kernel_mmd
from imprompt.evaluation.metrics.left_out import cmmd_left_out, frechet_left_out, kernel_left_out
from imprompt.evaluation.metrics.table import METRICS
from imprompt.evaluation.results import Results, compare, measure, read_results
from imprompt.evaluation.scoring import leave_out, set_value

SETS = ("frechet", "kernel", "cmmd")
WIDTH = 6
ADAPTER = ("adapter", 1.0)


def random_rows(seed: int, num: int, shift: float = 0.0) -> Tensor:
    return torch.randn(num, WIDTH, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize("rows_at_once", [4, 4096])
def test_what_is_left_is_the_distance_of_what_is_left(rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imprompt.evaluation.metrics.left_out._ROWS", rows_at_once)
    first, second = random_rows(0, 22), random_rows(1, 15, shift=0.5)
    groups, others = torch.arange(22) % 4, torch.arange(15) % 4
    rest = [(first, second), *((first[groups != number], second[others != number]) for number in range(4))]
    for found, distance in ((kernel_left_out, unbiased_kernel_mmd), (cmmd_left_out, cmmd)):
        expected = [distance(*pair) for pair in rest]
        assert found(first, second, groups, others) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    expected = [frechet_distance(*pair) for pair in rest[1:]]
    assert frechet_left_out(first, second, groups, others) == pytest.approx(expected, rel=1e-9)


def test_of_a_mean_it_is_the_textbook_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=25)
    without = tuple(np.delete(values, index).mean().item() for index in range(25))
    left = LeftOut(whole=values.mean().item(), values=without, sizes=(1,) * 25)
    assert left.standard_error == pytest.approx(values.std(ddof=1) / 5)
    interval = left.around(left.whole, 25)
    assert interval.high - interval.mean == pytest.approx(2.0639 * values.std(ddof=1) / 5, rel=1e-3)
    noisy = LeftOut(whole=left.whole, values=without, sizes=left.sizes, noise=left.standard_error)
    assert noisy.standard_error == pytest.approx(2**0.5 * left.standard_error)


def test_groups_of_unequal_sizes_weigh_as_they_are() -> None:
    """A mean's pseudo-values are the means of the groups, and theirs is a weighted variance."""
    values, numbers = np.random.default_rng(1).normal(size=11), np.arange(11) % 4
    without = tuple(values[numbers != number].mean().item() for number in range(4))
    sizes = tuple(np.bincount(numbers).tolist())
    means = np.array([values[numbers == number].mean() for number in range(4)])
    expected = np.mean(
        [(mean - values.mean()) ** 2 * size / (11 - size) for mean, size in zip(means, sizes, strict=True)]
    )
    left = LeftOut(whole=values.mean().item(), values=without, sizes=sizes)
    assert left.standard_error == pytest.approx(expected**0.5, rel=0.05)
    assert LeftOut(whole=1.0, values=(1.0,) * 4, sizes=sizes).standard_error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("freedom", "quantile"), [(4, 2.7764), (9, 2.2622), (29, 2.0452), (1000, 1.9623)])
def test_quantiles_are_those_of_tables(freedom: int, quantile: float) -> None:
    assert student(freedom) == pytest.approx(quantile, rel=3e-3)


def test_groups_depend_on_the_names_alone() -> None:
    names = [f"subject {number}" for number in range(NUM_GROUPS * 2 + 1)]
    assert groups_of(names) == groups_of([*reversed(names), names[0]])
    assert sorted(group_sizes(groups_of(names))) == [2] * (NUM_GROUPS - 1) + [3]
    assert group_sizes(groups_of(names[:7])) == (1,) * 7


@pytest.mark.parametrize("name", SETS)
def test_standard_errors_are_the_spread_of_fresh_samples(name: str) -> None:
    """Sixty evaluations of forty subjects with two pictures each: their spread against what each says of itself."""
    metric, groups = METRICS[name], torch.arange(40) % 20
    values, errors = [], []
    for seed in range(60):
        real = random_rows(seed, 40)
        made = real.repeat_interleave(2, 0) * 0.8 + 0.7 * random_rows(1000 + seed, 80, shift=0.5)
        whole, *without = leave_out(metric, made, real, groups.repeat_interleave(2), groups)
        values.append(set_value(metric, made, real)[0])
        errors.append(LeftOut(whole=whole, values=tuple(without), sizes=(2,) * 20).standard_error)
    assert 0.8 < np.mean(errors) / np.std(values) < 1.5  # the wide side is allowed, the narrow one less


class Known:
    """A judge that has the features of files by name."""

    def __init__(self, features: dict[str, Tensor]) -> None:
        self.features = features

    def pooled(self, paths: Sequence[Path]) -> Tensor:
        return torch.stack([self.features[path.name] for path in paths])


@pytest.fixture
def evaluated(tmp_path: Path) -> Callable[..., Results]:
    """An evaluation of made-up features: references, and pictures that are like them but for a shift."""

    def call(
        *, shift: float = 0.0, seed: int = 0, num: int = 24, num_seeds: int = 2, measured: Sequence[str] = SETS
    ) -> Results:
        names = [f"{number}.png" for number in range(num)]
        cases = [Case(subject=name, prompt_name="p", references=(Path(name),), prompt="", caption="") for name in names]
        items = items_of(cases, scales=(1.0,), num_seeds=num_seeds, seed=0, controls=True)
        files = {item.key: Path(f"{item.key}.png") for item in items}
        features = dict(zip(names, random_rows(7, num), strict=True))
        noise = random_rows(100 + seed, len(items), shift)
        for item, row in zip(items, noise, strict=True):
            features[files[item.key].name] = 0.9 * features[item.case.subject] + 0.4 * row
        judges = {"dinov2": Known(features), "clip": Known(features)}
        rows, groups, sets = measure(items, files, [METRICS[name] for name in measured], judges, tmp_path)
        return Results(protocol={}, models={}, judges={}, rows=rows, groups=groups, sets=sets, versions={})

    return call


def test_the_same_evaluation_is_no_difference_and_a_shift_is_one(evaluated: Callable[..., Results]) -> None:
    before = evaluated()
    rows = {row.metric: row for row in compare(before, evaluated()) if row.series == ADAPTER}
    assert set(rows) == set(SETS)
    for row in rows.values():
        assert row.change.mean == 0 and not row.change.excludes_zero
    for row in (row for row in compare(before, evaluated(shift=1.0)) if row.series == ADAPTER):
        assert row.change.low > 0, row.metric
        assert row.change.mean == pytest.approx(row.second.mean - row.first.mean)
        assert (row.change.num_values, row.change.num_groups) == (48, 24)


def test_another_draw_of_the_same_is_no_difference(evaluated: Callable[..., Results]) -> None:
    rows = [row for row in compare(evaluated(), evaluated(seed=1)) if row.series == ADAPTER]
    assert len(rows) == 3 and not any(row.change.excludes_zero for row in rows)
    assert all(row.change.mean != 0 for row in rows)


def test_it_is_repeatable_and_survives_its_file(evaluated: Callable[..., Results], tmp_path: Path) -> None:
    before, after = evaluated(), evaluated(shift=0.2)
    for name, results in (("before", before), ("after", after)):
        results.save(tmp_path / f"{name}.json")
    read = [read_results(tmp_path / f"{name}.json") for name in ("before", "after")]
    assert compare(before, after) == compare(*read) == compare(evaluated(), evaluated(shift=0.2))
    row = read[0].set_row("frechet", ADAPTER)
    assert row is not None and row["low"] < row["value"] < row["high"]


@pytest.mark.parametrize("options", [{"num": 20}, {"num_seeds": 3}])
def test_sets_of_others_are_not_compared(
    evaluated: Callable[..., Results], caplog: pytest.LogCaptureFixture, options: dict[str, int]
) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(EvaluationError, match="share no picture"):
        compare(evaluated(), evaluated(**options))
    assert caplog.text.count("not of the same subjects, prompts and seeds") == 6  # of the adapter, of the text alone


@pytest.mark.parametrize("content", ["[]", "{}", '{"version": 2}', '"words"', "no json"])
def test_what_is_no_result_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(EvaluationError, match=r"is no results\.json"):
        read_results(tmp_path)
    with pytest.raises(EvaluationError, match="there is no"):
        read_results(tmp_path / "none")
    (tmp_path / "results.json").write_text('{"version": 1}')
    with pytest.raises(EvaluationError, match="has version 1, and this imprompt reads 2; evaluate again"):
        read_results(tmp_path)


def test_means_and_change_are_of_the_same_pictures(evaluated: Callable[..., Results]) -> None:
    first, second = evaluated(measured=["clip_i"]), evaluated(measured=["clip_i"], seed=1, num_seeds=3)
    (row,) = [row for row in compare(first, second) if row.series == ADAPTER]
    assert row.change.mean == pytest.approx(row.second.mean - row.first.mean)
    assert (row.num_first, row.num_second, row.change.num_values) == (48, 72, 48) and not row.is_of_all
    whole = second.interval("clip_i", ADAPTER)
    assert whole is not None and whole.mean != row.second.mean


def test_few_subjects_have_a_value_and_no_interval(
    evaluated: Callable[..., Results], caplog: pytest.LogCaptureFixture
) -> None:
    few = evaluated(num=4, measured=["cmmd", "frechet"])
    assert few.interval("cmmd", ADAPTER) is None and few.set_row("cmmd", ADAPTER) is not None
    with caplog.at_level(logging.WARNING), pytest.raises(EvaluationError, match="share no picture"):
        compare(few, evaluated(num=4, measured=["cmmd", "frechet"]))
    assert caplog.text.count("one has no interval") == 4  # two metrics, the adapter and the text alone
