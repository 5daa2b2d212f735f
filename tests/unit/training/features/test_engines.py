"""Whoever computes features, and whatever happens to them, the files are the same to the last byte."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from imprompt.core.errors import ImpromptError
from imprompt.training.config import DataConfig
from imprompt.training.data.manifest import Manifest, write_manifest
from imprompt.training.features.compute import Computed, compute_features
from imprompt.training.features.jobs import plan_store
from imprompt.training.features.latents import LatentsJob
from imprompt.training.features.pictures import PictureJob
from imprompt.training.features.shards import record_file, shard_file
from imprompt.training.features.store import FeatureStore, StaleFeatures, feature_folder, find_store
from imprompt.training.features.work import ComputeOptions
from tests import tiny

OPTIONS = ComputeOptions(batch_size=2, num_threads=2, device="cpu", shard_size=3)
DATA = DataConfig(resolution=32, bucket_step=8, num_views=2, mirror=True)


def content(folder: Path) -> dict[str, bytes]:
    """Every file but those that killed writers have left."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name[0] != "."}


def compute(manifest: Manifest, job: Any, root: Path, options: ComputeOptions = OPTIONS, **more: Any) -> Computed:
    return compute_features(manifest, job, root, options=options, **more)


@pytest.fixture
def job(base: Path) -> LatentsJob:
    return LatentsJob(base / "vae", DATA)


@pytest.fixture
def uninterrupted(manifest: Manifest, job: LatentsJob, tmp_path: Path) -> dict[str, bytes]:
    return content(compute(manifest, job, tmp_path / "uninterrupted").folder)


def test_what_is_done_is_not_done_again(manifest: Manifest, job: LatentsJob, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    first = compute(manifest, job, tmp_path, on_progress=lambda *progress: told.append(progress))
    assert (first.num_computed, first.num_shards, first.num_missing) == (5, 5, 0)
    assert told[0] == (0, 13) and told[-1] == (13, 13) and told == sorted(told)
    before = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert compute(manifest, job, tmp_path).num_computed == 0
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == before


def test_two_halves_are_one_whole(
    manifest: Manifest, job: LatentsJob, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    first = compute(manifest, job, tmp_path, split=(1, 2))
    assert (first.num_computed, first.num_missing) == (2, 3)
    with pytest.raises(StaleFeatures, match="3 of 5 shards"):
        FeatureStore.open(first.folder)
    assert compute(manifest, job, tmp_path, split=(0, 2)).num_missing == 0
    assert content(first.folder) == uninterrupted
    with pytest.raises(ImpromptError, match="got 2 of 2"):
        compute(manifest, job, tmp_path, split=(2, 2))


def test_damage_is_found_when_it_is_looked_for(
    manifest: Manifest, job: LatentsJob, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    folder = compute(manifest, job, tmp_path).folder
    damaged = bytearray(shard_file(folder, 2).read_bytes())
    damaged[-1] ^= 1
    shard_file(folder, 2).write_bytes(damaged)
    record_file(folder, 3).unlink()
    assert compute(manifest, job, tmp_path, replace(OPTIONS, verify=True)).num_computed == 2
    assert content(folder) == uninterrupted


def die_at(name: str, count: int) -> None:
    """Have this process killed at a certain call of a function of `os`."""
    function: Callable[..., Any] = getattr(os, name)
    calls = 0

    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(os, name, dying)


def compute_and_die(manifest: Manifest, job: LatentsJob, root: Path, name: str, count: int) -> None:
    torch.set_num_threads(1)
    die_at(name, count)
    compute(manifest, job, root)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(("name", "counts"), [("replace", range(1, 12, 2)), ("fsync", range(1, 23, 5))])
def test_killed_at_any_write_and_gone_on_is_uninterrupted(
    manifest: Manifest, job: LatentsJob, tmp_path: Path, uninterrupted: dict[str, bytes], name: str, counts: range
) -> None:
    for count in counts:
        root = tmp_path / f"{name} {count}"
        process = get_context("fork").Process(target=compute_and_die, args=(manifest, job, root, name, count))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        done = compute(manifest, job, root)
        assert done.num_computed < 5 or count < 4
        assert content(done.folder) == uninterrupted


SCRIPT = """
import sys
from pathlib import Path
from imprompt.training.config import DataConfig
from imprompt.training.data.manifest import Manifest
from imprompt.training.features.compute import compute_features
from imprompt.training.features.latents import LatentsJob
from imprompt.training.features.work import ComputeOptions

manifest, vae, root = sys.argv[1:]
job = LatentsJob(Path(vae), DataConfig(resolution=32, bucket_step=8, num_views=2, mirror=True))
options = ComputeOptions(batch_size=2, num_threads=2, device="cpu", shard_size=3)
compute_features(Manifest.read(manifest), job, Path(root), options=options)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_killed_from_outside_and_gone_on_is_uninterrupted(
    manifest: Manifest, job: LatentsJob, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    folder = feature_folder(tmp_path, "latents", plan_store(manifest, job, 3).fingerprint)
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, manifest.path, job.folder, tmp_path])
    deadline = time.monotonic() + 120
    while not any(folder.glob("0*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert compute(manifest, job, tmp_path).num_computed < 5
    assert content(folder) == uninterrupted


def test_an_interrupt_loses_the_shard_at_hand_only(
    manifest: Manifest, job: LatentsJob, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done >= 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute(manifest, job, tmp_path, on_progress=interrupt)
    rest = compute(manifest, job, tmp_path)
    assert rest.num_computed == 3
    assert content(rest.folder) == uninterrupted


def test_processes_of_this_machine_compute_the_same(
    manifest: Manifest, job: LatentsJob, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    told: list[tuple[int, int]] = []
    done = compute(manifest, job, tmp_path, processes=2, on_progress=lambda *progress: told.append(progress))
    assert told[-1] == (13, 13)
    assert content(done.folder) == uninterrupted


def test_an_error_in_a_process_is_told_by_its_sentence(manifest: Manifest, job: LatentsJob, tmp_path: Path) -> None:
    missing = replace(job, dtype="float16")
    (folder := tmp_path / "vae").mkdir()
    for path in job.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ImpromptError, match="holds no autoencoder of diffusers"):
        compute(manifest, replace(missing, folder=folder), tmp_path, processes=2)


def test_a_manifest_that_has_grown_keeps_the_shards_it_had(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    job = PictureJob("image_embeds", base / "image_encoder")
    for number in range(6):
        tiny.picture(seed=number).save(folder / f"{number}.png")
    first = compute(write_manifest(folder, tmp_path / "one.parquet"), job, tmp_path / "features")
    for number in range(6, 8):
        tiny.picture(seed=number).save(folder / f"{number}.png")
    grown = write_manifest(folder, tmp_path / "two.parquet")
    second = compute(grown, job, tmp_path / "features")
    assert (second.num_adopted, second.num_computed, second.num_shards) == (2, 1, 3)
    assert second.folder != first.folder
    afresh = compute(grown, job, tmp_path / "afresh")
    assert content(afresh.folder) == content(second.folder)


class Changes:
    """What a run may change, each of which asks for features of its own."""

    @staticmethod
    def weights(job: LatentsJob, manifest: Manifest, folder: Path) -> Any:
        tiny.autoencoder(seed=99).save_pretrained(folder / "vae")
        return replace(job, folder=folder / "vae"), manifest

    @staticmethod
    def configuration(job: LatentsJob, manifest: Manifest, folder: Path) -> Any:
        (vae := folder / "vae").mkdir()
        for path in job.folder.iterdir():
            (vae / path.name).write_bytes(path.read_bytes().replace(b'"scaling_factor": 0', b'"scaling_factor": 1'))
        return replace(job, folder=vae), manifest

    @staticmethod
    def dtype(job: LatentsJob, manifest: Manifest, folder: Path) -> Any:
        return replace(job, dtype="bfloat16"), manifest

    @staticmethod
    def storage(job: LatentsJob, manifest: Manifest, folder: Path) -> Any:
        return replace(job, storage="float32"), manifest

    @staticmethod
    def resolution(job: LatentsJob, manifest: Manifest, folder: Path) -> Any:
        return replace(job, data=DATA.model_copy(update={"resolution": 24})), manifest

    @staticmethod
    def buckets(job: LatentsJob, manifest: Manifest, folder: Path) -> Any:
        return replace(job, data=DATA.model_copy(update={"buckets": False})), manifest

    @staticmethod
    def views(job: LatentsJob, manifest: Manifest, folder: Path) -> Any:
        return replace(job, data=DATA.model_copy(update={"num_views": 3})), manifest

    @staticmethod
    def mirror(job: LatentsJob, manifest: Manifest, folder: Path) -> Any:
        return replace(job, data=DATA.model_copy(update={"mirror": False})), manifest

    @staticmethod
    def pictures(job: LatentsJob, manifest: Manifest, folder: Path) -> Any:
        for number in range(len(manifest)):
            manifest.image(number).rotate(180).save(folder / f"{number:02d}.png")
        return job, write_manifest(folder, folder / "manifest.parquet")


@pytest.mark.parametrize("change", [name for name in vars(Changes) if not name.startswith("_")])
def test_features_made_of_anything_else_are_not_used(
    manifest: Manifest, job: LatentsJob, tmp_path: Path, change: str
) -> None:
    before = plan_store(manifest, job)
    (folder := tmp_path / "other").mkdir()
    other, other_manifest = getattr(Changes, change)(job, manifest, folder)
    after = plan_store(other_manifest, other)
    assert after.fingerprint != before.fingerprint and not set(after.shards) & set(before.shards)
    root = tmp_path / "features"
    feature_folder(root, "latents", before.fingerprint).mkdir(parents=True)
    (feature_folder(root, "latents", before.fingerprint) / "store.json").write_text("{}")
    with pytest.raises(StaleFeatures) as error:
        find_store(root, "latents", after.fingerprint, "imprompt features emoji")
    assert before.fingerprint[:12] in str(error.value) and after.fingerprint[:12] in str(error.value)
    assert str(error.value).endswith("compute them with: imprompt features emoji")


def test_captions_are_nothing_to_latents(manifest: Manifest, job: LatentsJob, pictures: Path, tmp_path: Path) -> None:
    for path in pictures.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / f"{path.stem}.txt").write_text("another caption")
    other = write_manifest(tmp_path, tmp_path / "manifest.parquet")
    assert plan_store(other, job).fingerprint == plan_store(manifest, job).fingerprint
    assert plan_store(manifest, job, 5).fingerprint == plan_store(manifest, job, 100).fingerprint


def test_ray_is_asked_for_where_it_is_missing(
    manifest: Manifest, job: LatentsJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImpromptError, match=r"pip install 'imprompt\[ray\]'"):
        compute(manifest, job, tmp_path, engine="ray")


@pytest.mark.ray
def test_ray_computes_the_same(
    manifest: Manifest, job: LatentsJob, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        done = compute(manifest, job, tmp_path, engine="ray")
        assert content(done.folder) == uninterrupted
        assert compute(manifest, job, tmp_path, engine="ray").num_computed == 0
        with pytest.raises(ImpromptError, match="holds no autoencoder"):
            (folder := tmp_path / "vae").mkdir()
            tiny.unet().save_pretrained(folder)
            compute(manifest, replace(job, folder=folder), tmp_path, engine="ray")
    finally:
        ray.shutdown()
