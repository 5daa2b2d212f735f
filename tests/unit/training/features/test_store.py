"""Shards and stores: what is written comes back, at random, in workers, and never half or stale."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from imprompt.core.errors import CheckpointError, ImpromptError
from imprompt.training.features.shards import (
    Columns,
    Storage,
    is_done,
    quantise,
    read_record,
    record_file,
    shard_file,
    write_shard,
)
from imprompt.training.features.store import (
    FeatureKind,
    FeatureSpec,
    FeatureStore,
    StaleFeatures,
    feature_folder,
    find_store,
    write_null,
    write_spec,
)


def write_store(
    root: Path,
    samples: list[Columns | str],
    *,
    kind: FeatureKind = "latents",
    views: int = 1,
    storage: Storage = "float32",
    shard_size: int = 4,
    fingerprint: str = "a" * 64,
) -> Path:
    folder = feature_folder(root, kind, fingerprint)
    named = {f"sample {number}": columns for number, columns in enumerate(samples)}
    ids = list(named)
    shards = [ids[start : start + shard_size] for start in range(0, len(ids), shard_size)]
    prints = tuple(f"shard {number}" for number in range(len(shards)))
    write_spec(folder, FeatureSpec(kind, fingerprint, {}, len(samples), views, storage, shard_size, prints))
    for number, members in enumerate(shards):
        write_shard(folder, number, prints[number], {name: named[name] for name in members}, storage)
    return folder


def random_samples(*shapes: tuple[int, ...], name: str = "latents") -> list[Columns | str]:
    generator = torch.Generator().manual_seed(0)
    return [{name: torch.randn(shape, generator=generator)} for shape in shapes]


def values_of(sample: Columns | str) -> Tensor:
    assert not isinstance(sample, str)
    return next(iter(sample.values()))


def test_rows_come_back_in_any_order_over_shards_and_views(tmp_path: Path) -> None:
    samples = random_samples(*[(3, 4, 2, 2)] * 11)
    store = FeatureStore.open(write_store(tmp_path, samples, views=3))
    numbers, views = torch.tensor([10, 0, 7, 7, 3, 4]), torch.tensor([2, 0, 1, 2, 0, 1])
    expected = torch.stack([values_of(samples[number])[view] for number, view in zip(numbers, views, strict=True)])
    assert torch.equal(store.rows(views, numbers), expected)
    assert torch.equal(store.rows(views + 3, numbers), expected)  # views beyond the last begin anew
    assert store.spec.shape == (4, 2, 2)
    assert len(store) == 11 and bool(store.available.all())


def test_buckets_of_a_shard_keep_their_shapes(tmp_path: Path) -> None:
    samples = random_samples(*[(1, 4, 2, 8), (1, 4, 4, 4)] * 5)
    store = FeatureStore.open(write_store(tmp_path, samples))
    wide = torch.arange(0, 10, 2).flip(0)
    assert torch.equal(
        store.rows(torch.zeros(5, dtype=torch.int64), wide), torch.stack([values_of(samples[n])[0] for n in wide])
    )
    assert store.spec.shape is None
    with pytest.raises(ImpromptError, match="needs samples of one bucket"):
        store.rows(torch.zeros(2, dtype=torch.int64), torch.tensor([0, 1]))


def test_a_hole_is_known_and_not_read(tmp_path: Path) -> None:
    samples = random_samples(*[(1, 3)] * 6)
    samples[1] = "cut short"
    folder = write_store(tmp_path, samples)
    store = FeatureStore.open(folder)
    assert store.available.tolist() == [True, False, True, True, True, True]
    assert torch.equal(store.rows(torch.tensor([0]), torch.tensor([2])), values_of(samples[2]))
    with pytest.raises(ImpromptError, match=r"samples \[1\] have no latents"):
        store.rows(torch.zeros(2, dtype=torch.int64), torch.tensor([0, 1]))
    record = read_record(folder, 0)
    assert record is not None and record.holes == {"sample 1": "cut short"}


def test_several_features_of_a_sample_come_as_columns(tmp_path: Path) -> None:
    samples: list[Columns | str] = [{"states": torch.randn(1, 5, 4), "pooled": torch.randn(1, 3)} for _ in range(3)]
    store = FeatureStore.open(write_store(tmp_path, samples, kind="text"))
    columns = store.columns(torch.tensor([0, 0]), torch.tensor([2, 1]))
    assert {name: tuple(value.shape) for name, value in columns.items()} == {"pooled": (2, 3), "states": (2, 5, 4)}
    with pytest.raises(ImpromptError, match="ask for them with columns"):
        store.rows(torch.tensor([0]), torch.tensor([2]))


def test_float16_and_int8_keep_what_they_promise(tmp_path: Path) -> None:
    samples = random_samples(*[(1, 7, 16)] * 3, name="hidden_states")
    every, view = torch.arange(3), torch.zeros(3, dtype=torch.int64)
    exact = torch.cat([values_of(sample) for sample in samples])
    half = FeatureStore.open(write_store(tmp_path, samples, kind="hidden_states", storage="float16")).rows(view, every)
    assert torch.equal(half, exact.half().float())
    eight = write_store(tmp_path, samples, kind="hidden_states", storage="int8", fingerprint="b" * 64)
    error = (FeatureStore.open(eight).rows(view, every) - exact).abs()
    largest = exact.abs().amax(dim=-1, keepdim=True)
    assert bool((error <= largest / 127 * (0.5 + 2**-9)).all())  # half a step, and what float16 adds to a step
    assert load_file(shard_file(eight, 0))["hidden_states.0"].dtype == torch.int8


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-6, 1.0, 1e5])
def test_quantising_holds_for_every_magnitude(size: float) -> None:
    values = torch.randn(9, 33, generator=torch.Generator().manual_seed(1)) * size
    codes, scale = quantise(values)
    assert int(codes.abs().max()) <= 127
    assert bool(((codes.float() * scale.float()[:, None] - values).abs() <= scale.float()[:, None] * 0.5001).all())


def test_numbers_that_float16_does_not_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not finite in torch.float16"):
        write_shard(tmp_path, 0, "x", {"a": {"latents": torch.full((1, 2), 1e6)}}, "float16")
    assert not is_done(tmp_path, 0, "x")


def test_a_shard_counts_only_when_it_is_whole_and_of_the_right_origin(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, "origin", {"a": {"latents": torch.ones(1, 64)}}, "float32")
    assert is_done(tmp_path, 0, "origin", rehash=True)
    assert not is_done(tmp_path, 0, "other origin")
    path = shard_file(tmp_path, 0)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert is_done(tmp_path, 0, "origin")  # the length is right
    assert not is_done(tmp_path, 0, "origin", rehash=True)
    path.write_bytes(content[:-1])
    assert not is_done(tmp_path, 0, "origin")
    record_file(tmp_path, 0).write_text("{")
    assert read_record(tmp_path, 0) is None


def test_another_fingerprint_is_refused_in_one_sentence(tmp_path: Path) -> None:
    write_store(tmp_path, random_samples((1, 2)))
    with pytest.raises(StaleFeatures, match=r"wants latents with the fingerprint bbbbbbbbbbbb.*aaaaaaaaaaaa.*: do it$"):
        find_store(tmp_path, "latents", "b" * 64, "do it")
    with pytest.raises(StaleFeatures, match="has none"):
        find_store(tmp_path, "image_embeds", "b" * 64, "do it")
    same_folder = "a" * 16 + "c" * 48
    with pytest.raises(StaleFeatures, match="have the fingerprint aaaaaaaaaaaa, the run wants"):
        find_store(tmp_path, "latents", same_folder, "do it")
    assert len(find_store(tmp_path, "latents", "a" * 64, "do it")) == 1


def test_an_unfinished_store_is_refused(tmp_path: Path) -> None:
    folder = write_store(tmp_path, random_samples(*[(1, 2)] * 9))
    record_file(folder, 1).unlink()
    with pytest.raises(StaleFeatures, match="1 of 3 shards of latents"):
        FeatureStore.open(folder)
    with pytest.raises(StaleFeatures, match="no features in"):
        FeatureStore.open(tmp_path)


def test_a_damaged_description_is_told(tmp_path: Path) -> None:
    folder = write_store(tmp_path, random_samples((1, 2)))
    (folder / "store.json").write_text(json.dumps({"kind": "latents"}))
    with pytest.raises(CheckpointError, match="does not describe a feature store"):
        FeatureStore.open(folder)


def test_the_null_image_is_kept(tmp_path: Path) -> None:
    folder = write_store(tmp_path, random_samples((1, 2)), kind="image_embeds")
    with pytest.raises(ImpromptError, match="have no null image"):
        _ = FeatureStore.open(folder).null
    write_null(folder, {"image_embeds": torch.full((1, 2), 0.5)})
    assert torch.equal(FeatureStore.open(folder).null, torch.full((1, 2), 0.5))


class Rows(Dataset[Tensor]):
    def __init__(self, store: FeatureStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, number: int) -> Tensor:
        return self.store.rows(torch.tensor([0]), torch.tensor([number]))[0]


def test_workers_read_what_the_process_reads(tmp_path: Path) -> None:
    samples = random_samples(*[(1, 3)] * 9)
    store = FeatureStore.open(write_store(tmp_path, samples))
    store.rows(torch.tensor([0]), torch.tensor([8]))  # a file is open here
    loader = DataLoader(Rows(store), batch_size=2, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat(list(loader)), torch.cat([values_of(sample) for sample in samples]))


def test_a_pickled_store_holds_no_open_file(tmp_path: Path) -> None:
    store = FeatureStore.open(write_store(tmp_path, random_samples(*[(1, 512, 512)] * 3)))
    before = len(pickle.dumps(store))
    store.rows(torch.tensor([0]), torch.tensor([0]))
    assert len(pickle.dumps(store)) == before
    copy, row = pickle.loads(pickle.dumps(store)), (torch.tensor([0]), torch.tensor([2]))
    assert torch.equal(copy.rows(*row), store.rows(*row))
