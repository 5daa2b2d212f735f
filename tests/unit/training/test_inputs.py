"""Batches are pure functions of the draw, and of a sample that cannot be read another takes the place."""

import pickle
from dataclasses import replace

import pytest
import torch

from imprompt.encoders.preprocess import Preprocessing
from imprompt.training.adapters.inputs import AdapterInputs
from imprompt.training.adapters.sources import PictureReferences, PictureTargets, first_places, told_sizes
from imprompt.training.config import DataConfig, DropoutConfig, ObjectiveConfig
from imprompt.training.data.buckets import plan_buckets, view_of
from imprompt.training.data.manifest import write_manifest
from imprompt.training.data.quarantine import Quarantine
from imprompt.training.errors import DataError
from imprompt.training.loop.task import Draw
from imprompt.training.objective.noise import noise_process
from imprompt.training.run import successors
from tests import tiny
from tests.training_data import picture_folder

COUNT = 12
CONFIG = DataConfig(resolution=32, bucket_step=8)


@pytest.fixture
def inputs(tmp_path):
    """Pictures that are read at every step; sizes differ, so that there are two buckets."""
    folder = picture_folder(tmp_path / "pictures", COUNT, validation=0)
    manifest = write_manifest(folder, tmp_path / "manifest.parquet", validation=0.0)
    buckets = plan_buckets(manifest.sizes, CONFIG)
    return AdapterInputs(
        manifest=manifest,
        members=torch.arange(COUNT),
        successors=successors(buckets.bucket_of),
        quarantine=Quarantine(tmp_path / "quarantine", 0.2, COUNT),
        targets=PictureTargets(manifest, buckets, num_views=2, mirror=True, latent_channels=4, pixels_per_latent=2),
        references=PictureReferences(manifest, "features", Preprocessing.openai(16), 0.5, mirror=True, stores={}),
        noise=noise_process(tiny.scheduler(), ObjectiveConfig()),
        token_side=1,
        dropout=DropoutConfig(image=0.3, text=0.3, both=0.1),
    )


def draw_of(inputs, rows=None, step=0):
    bucket_of = inputs.targets.buckets.bucket_of
    samples = (bucket_of == bucket_of[1]).nonzero()[:, 0][:6]
    rows = torch.arange(len(samples)) if rows is None else torch.tensor(rows)
    return Draw(step, 0, samples[rows], rows, len(samples), int(bucket_of[1]))


def test_parts_of_a_batch_are_parts_of_the_whole(inputs):
    whole = inputs.batch(draw_of(inputs))
    again = pickle.loads(pickle.dumps(inputs)).batch(draw_of(inputs, [2, 3]))
    for name in ("noise", "timesteps", "no_image"):
        assert torch.equal(getattr(whole, name)[2:4], getattr(again, name))
    assert torch.equal(whole.targets.pixels[2:4], again.targets.pixels)
    assert torch.equal(whole.references.pixels["features"][2:4], again.references.pixels["features"])
    assert (whole.captions[2:4], whole.no_text[2:4]) == (again.captions, again.no_text)
    assert not torch.equal(whole.noise, inputs.batch(draw_of(inputs, step=1)).noise)


def test_references_have_an_augmentation_of_their_own(inputs):
    batch = inputs.batch(draw_of(inputs))
    plain = replace(inputs, references=replace(inputs.references, smallest=1.0, mirror=False)).batch(draw_of(inputs))
    assert torch.equal(batch.targets.pixels, plain.targets.pixels)
    assert not torch.equal(batch.references.pixels["features"], plain.references.pixels["features"])


def test_without_dropout_and_with_other_references(inputs):
    batch = inputs.batch(draw_of(inputs))
    assert any(batch.no_text) and batch.no_image.any()
    clean = batch.without_dropout()
    assert not any(clean.no_text) and not clean.no_image.any()
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    shuffled = batch.with_references(order)
    assert torch.equal(shuffled.references.pixels["features"], batch.references.pixels["features"][order])
    assert torch.equal(shuffled.noise, batch.noise) and shuffled.captions == batch.captions


def test_the_next_of_its_bucket_stands_in_for_what_cannot_be_read(inputs):
    draw = draw_of(inputs)
    whole = inputs.batch(draw)
    bad = int(draw.samples[0])
    (inputs.manifest.root / inputs.manifest.sample_id(bad)).write_bytes(b"no picture")
    batch = inputs.batch(draw)
    assert list(inputs.quarantine.losses()) == [inputs.manifest.sample_id(bad)]
    assert batch.captions[0] in inputs.manifest.captions(int(inputs.successors[bad]))
    assert torch.equal(batch.targets.pixels[1:], whole.targets.pixels[1:])
    assert torch.equal(batch.noise, whole.noise)


def test_more_lost_than_the_budget_stops_the_run(inputs):
    draw = draw_of(inputs)
    for number in draw.samples.tolist():
        (inputs.manifest.root / inputs.manifest.sample_id(number)).write_bytes(b"no picture")
    with pytest.raises(DataError, match="may be lost"):
        inputs.batch(draw)


def test_a_bucket_of_nothing_readable_is_named(inputs):
    draw = draw_of(inputs)
    lenient = replace(inputs, quarantine=Quarantine(inputs.quarantine.folder, 1.0, COUNT))
    for number in range(COUNT):
        (inputs.manifest.root / inputs.manifest.sample_id(number)).write_bytes(b"no picture")
    with pytest.raises(DataError, match="no sample of bucket"):
        lenient.batch(draw)


def test_sizes_are_told_of_sizes_alone(inputs):
    manifest, shape = inputs.manifest, (24, 40)
    for view in range(4):
        _, expected = view_of(manifest.image(3), shape, view, mirror=True)
        told = told_sizes(manifest.sizes[3:4], shape, torch.tensor([view]), mirror=True)
        assert torch.equal(told[0], expected.float())


def test_repeated_references_are_counted_once():
    chosen = torch.tensor([[3, 4, 3], [5, 5, 5]])
    assert first_places(chosen).tolist() == [[True, True, False], [True, False, False]]
