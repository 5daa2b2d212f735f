"""What a kind of features asks of whoever computes it, and how its store is planned."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from imprompt.core.errors import ImpromptError
from imprompt.training.data.manifest import Manifest
from imprompt.training.features.fingerprint import hash_of, hash_rows
from imprompt.training.features.shards import Columns, Storage
from imprompt.training.features.store import FeatureKind, FeatureSpec

SHARD_SIZE = 1024
"""Samples a shard: what a kill costs at most, and what processes take turns at."""

FORMAT = "1"
"""To be raised where the same encoder, settings and picture begin to give other features."""


NOT_A_TARGET = "it is a reference only"


class NotWanted(ImpromptError):
    """A sample that a kind of features is not wanted of: a hole that nobody misses."""


@runtime_checkable
class Encoder(Protocol):
    """A loaded encoder, bound to a manifest: how a sample is read, and what is made of several."""

    def shape_of(self, number: int) -> Any:
        """What samples must share to be encoded in one batch; equal for all where encoders make all pictures alike."""
        ...

    def prepare(self, number: int) -> Any:
        """Read a sample; called in threads, ahead of `encode`.

        Raises:
            ImageError: It cannot be read, or does not show what is wanted; it will be a hole.
            DataError: Likewise.
            NotWanted: Nobody needs it.
        """
        ...

    def encode(self, prepared: Sequence[Any]) -> Columns:
        """Features `[samples, views, ...]` of what `prepare` returned."""
        ...

    def null(self) -> Columns:
        """Features `[1, ...]` of no picture; nothing where there is no such thing."""
        ...


@runtime_checkable
class FeatureJob(Protocol):
    """Features of a kind: a picklable description that any process can load an encoder by."""

    @property
    def kind(self) -> FeatureKind:
        """Of what."""
        ...

    @property
    def num_views(self) -> int:
        """Views a sample."""
        ...

    @property
    def storage(self) -> Storage:
        """Number format in files."""
        ...

    def ingredients(self, manifest: Manifest) -> dict[str, str]:
        """All that features depend on beside their row of the manifest; read without loading weights."""
        ...

    def rows(self, manifest: Manifest, start: int, stop: int) -> list[str]:
        """What the features of each of some samples depend on, a line a sample."""
        ...

    def load(self, manifest: Manifest, device: torch.device) -> Encoder:
        """Load the encoder."""
        ...


def plan_store(manifest: Manifest, job: FeatureJob, shard_size: int = SHARD_SIZE) -> FeatureSpec:
    """Say what a job's store will hold, without loading anything."""
    ingredients = {"format": FORMAT, **job.ingredients(manifest)}
    hashes = hash_rows(hash_of(ingredients), _rows_of_shards(manifest, job, shard_size))
    return FeatureSpec(
        kind=job.kind,
        fingerprint=hashes.whole,
        ingredients=ingredients,
        num_samples=len(manifest),
        views=job.num_views,
        dtype=job.storage,
        shard_size=shard_size,
        shards=hashes.shards,
    )


def default_root(manifest: Manifest) -> Path:
    """Where features are kept if nobody says otherwise: beside the manifest."""
    return manifest.path.parent / "features"


def describe_rows(manifest: Manifest, start: int, stop: int, *more: Sequence[Any]) -> list[str]:
    """A line a sample: its name, the hash of its picture or where that lies, and what else features depend on."""
    columns = [manifest.table[name].slice(start, stop - start).to_pylist() for name in ("sample_id", "sha256")]
    places = [manifest.table[name].slice(start, stop - start).to_pylist() for name in ("source", "offset", "row")]
    lines = zip(*columns, zip(*places, strict=True), *more, strict=True)
    return [repr((name, digest or place, *rest)) for name, digest, place, *rest in lines]


def _rows_of_shards(manifest: Manifest, job: FeatureJob, shard_size: int) -> Iterator[list[str]]:
    for start in range(0, len(manifest), shard_size):
        yield job.rows(manifest, start, min(start + shard_size, len(manifest)))


def lost(holes: Mapping[str, str]) -> dict[str, str]:
    """Those of a shard's holes that should not be there."""
    return {name: reason for name, reason in holes.items() if reason != NOT_A_TARGET}
