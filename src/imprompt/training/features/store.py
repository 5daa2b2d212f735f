"""Features of a whole data set, read at random by sample and view."""

import json
from collections import OrderedDict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from imprompt.core.errors import CheckpointError, ImpromptError, first_line
from imprompt.core.files import atomic_write
from imprompt.training.features.shards import Columns, ShardReader, ShardRecord, Storage, read_record, shard_file

FeatureKind: TypeAlias = Literal["latents", "image_embeds", "hidden_states", "face_embeds", "text"]

STORE = "store.json"
NULL = "null.safetensors"
SHOWN = 12  # letters of a fingerprint in messages
_FOLDER_LETTERS = 16
_OPEN_SHARDS = 256


class StaleFeatures(ImpromptError):
    """Features that are missing, unfinished, or made of something else than is wanted."""


@dataclass(frozen=True)
class FeatureSpec:
    """What a store holds.

    Attributes:
        kind: Of what.
        fingerprint: Hash of `ingredients` and of the manifest's rows.
        ingredients: What the features are made of, in words and hashes: encoder, preprocessing, number format, views.
        num_samples: Of the manifest, holes too.
        views: How many each sample has.
        dtype: Number format in the files.
        shard_size: Samples a shard, the last one apart.
        shards: Fingerprint of each shard.
        shape: Of one row of a store with a single feature of a single shape; None otherwise. Known once it is open.
    """

    kind: FeatureKind
    fingerprint: str
    ingredients: dict[str, str]
    num_samples: int
    views: int
    dtype: Storage
    shard_size: int
    shards: tuple[str, ...]
    shape: tuple[int, ...] | None = None


def feature_folder(root: Path, kind: FeatureKind, fingerprint: str) -> Path:
    """Where features of a kind and fingerprint are."""
    return root / kind / fingerprint[:_FOLDER_LETTERS]


def write_spec(folder: Path, spec: FeatureSpec) -> None:
    """Say what a store is going to hold, before there is any of it."""
    with atomic_write(folder / STORE) as temporary:
        temporary.write_text(json.dumps(asdict(replace(spec, shape=None)), indent=1, sort_keys=True))


def read_spec(folder: Path) -> FeatureSpec:
    """What a store holds or is going to hold.

    Raises:
        StaleFeatures: There is none.
        CheckpointError: Its description is damaged.
    """
    path = folder / STORE
    if not path.is_file():
        raise StaleFeatures(f"there are no features in '{folder}'; compute them with: imprompt features")
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return FeatureSpec(**{**content, "shards": tuple(content["shards"]), "shape": None})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"'{path}' does not describe a feature store ({first_line(error)}); delete the folder and compute it again"
        ) from error


def write_null(folder: Path, null: Columns) -> None:
    """Keep the features of no picture."""
    with atomic_write(folder / NULL) as temporary:
        save_file({name: value.float().contiguous() for name, value in null.items()}, temporary)


def find_store(root: Path, kind: FeatureKind, fingerprint: str, command: str) -> "FeatureStore":
    """Open the features that are wanted, and no other.

    Args:
        root: Folder of all features.
        kind: Of what.
        fingerprint: What they must be made of.
        command: What computes them, for the message.

    Raises:
        StaleFeatures: There are none, only others, or not all of them yet.
    """
    folder = feature_folder(root, kind, fingerprint)
    if (folder / STORE).is_file():
        return FeatureStore.open(folder, fingerprint=fingerprint, command=command)
    others = sorted(path.parent.name[:SHOWN] for path in (root / kind).glob(f"*/{STORE}"))
    found = f"those in '{root / kind}' were made for {', '.join(others)}" if others else f"'{root}' has none"
    raise StaleFeatures(
        f"the run wants {kind} with the fingerprint {fingerprint[:SHOWN]}, and {found}; compute them with: {command}"
    )


class FeatureStore:
    """Features of a data set. Opening reads descriptions only; pickled (for a worker), it opens files anew there."""

    def __init__(self, folder: Path, spec: FeatureSpec, records: list[ShardRecord], null: Columns | None) -> None:
        """Take what `open` has read."""
        shapes = {(name, shape) for record in records for group in record.groups for name, shape in group.items()}
        self.folder = folder
        self.spec = replace(spec, shape=next(iter(shapes))[1] if len(shapes) == 1 else None)
        self.available: Bool[Tensor, " samples"] = _available(records)
        self._null = null
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()

    @classmethod
    def open(
        cls, folder: str | Path, *, fingerprint: str | None = None, command: str = "imprompt features"
    ) -> "FeatureStore":
        """Open a finished store.

        Args:
            folder: Its folder, as `feature_folder` names it.
            fingerprint: What it must be made of; None takes it as it is.
            command: What computes it, for the message.

        Raises:
            StaleFeatures: It was made of something else, or is not finished.
            CheckpointError: It is damaged.
        """
        folder = Path(folder)
        spec = read_spec(folder)
        if fingerprint is not None and spec.fingerprint != fingerprint:
            raise StaleFeatures(
                f"the {spec.kind} in '{folder}' have the fingerprint {spec.fingerprint[:SHOWN]}, the run wants "
                f"{fingerprint[:SHOWN]}; compute them with: {command}"
            )
        records = [read_record(folder, number) for number in range(len(spec.shards))]
        whole = [
            record
            for record, wanted in zip(records, spec.shards, strict=True)
            if record is not None and record.fingerprint == wanted
        ]
        if len(whole) < len(records):
            raise StaleFeatures(
                f"{len(records) - len(whole)} of {len(records)} shards of {spec.kind} in '{folder}' are missing, "
                f"or stale; compute them with: {command}"
            )
        null = folder / NULL
        return cls(folder, spec, whole, load_file(null) if null.is_file() else None)

    def rows(self, views: Int[Tensor, " rows"], samples: Int[Tensor, " rows"]) -> Float[Tensor, "rows ..."]:
        """The one feature of some samples, all of one shape, in float32.

        Raises:
            ImpromptError: The store has several features, a sample is a hole, or shapes differ.
        """
        columns = self.columns(views, samples)
        if len(columns) != 1:
            raise ImpromptError(f"{self.spec.kind} are {', '.join(columns)}; ask for them with columns()")
        return next(iter(columns.values()))

    def columns(self, views: Int[Tensor, " rows"], samples: Int[Tensor, " rows"]) -> Columns:
        """Every feature of some samples, all of one shape, in float32.

        Args:
            views: Which view of each sample; numbers beyond the last begin anew.
            samples: Numbers of the samples in the manifest.

        Raises:
            ImpromptError: A sample is a hole or no sample, or shapes differ.
        """
        self._check(samples)
        views = views % self.spec.views
        shards, places = samples // self.spec.shard_size, samples % self.spec.shard_size
        parts = [(shard, (shards == shard).nonzero()[:, 0]) for shard in shards.unique().tolist()]
        shapes = [shape for shard, here in parts for shape in self._reader(shard).shapes(places[here])]
        out = {name: torch.empty(len(samples), *shape) for name, shape in _common(shapes).items()}
        for shard, here in parts:
            self._reader(shard).read_into(out, here.tolist(), places[here].tolist(), views[here].tolist())
        return out

    @property
    def null(self) -> Float[Tensor, "1 ..."]:
        """Features of no picture: what the encoder makes of pixels that are zero after normalisation.

        Raises:
            ImpromptError: The store is of targets.
        """
        return next(iter(self.null_columns.values()))

    @property
    def null_columns(self) -> Columns:
        """The same of every feature; of texts, what encoders make of the empty one.

        Raises:
            ImpromptError: The store is of targets.
        """
        if self._null is None:
            raise ImpromptError(f"{self.spec.kind} have no null image; take one of the references")
        return self._null

    def __len__(self) -> int:
        return self.spec.num_samples

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": OrderedDict()}

    def __repr__(self) -> str:
        holes = int((~self.available).sum())
        return (
            f"FeatureStore({self.spec.kind} {self.spec.fingerprint[:SHOWN]}: {len(self)} samples x {self.spec.views} "
            f"views, {self.spec.dtype}, {holes} holes)"
        )

    def _reader(self, shard: int) -> ShardReader:
        reader = self._readers.get(shard)
        if reader is None:
            reader = self._readers[shard] = ShardReader(shard_file(self.folder, shard))
            while len(self._readers) > _OPEN_SHARDS:
                self._readers.popitem(last=False)
        self._readers.move_to_end(shard)
        return reader

    def _check(self, samples: Tensor) -> None:
        if len(samples) == 0 or int(samples.min()) < 0 or int(samples.max()) >= len(self):
            raise ImpromptError(f"samples must be some numbers from 0 to {len(self) - 1}; got {samples.tolist()[:8]}")
        holes = samples[~self.available[samples]].tolist()
        if holes:
            raise ImpromptError(
                f"samples {holes[:8]} have no {self.spec.kind}, as their pictures could not be read; draw from those "
                "that are available"
            )


def _available(records: list[ShardRecord]) -> Bool[Tensor, " samples"]:
    return torch.tensor([name not in record.holes for record in records for name in record.sample_ids])


def _common(shapes: list[dict[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    """The shape of each feature that all samples share."""
    for shape in shapes:
        if shape != shapes[0]:
            raise ImpromptError(f"a batch needs samples of one bucket; got the shapes {shapes[0]} and {shape}")
    return shapes[0]
