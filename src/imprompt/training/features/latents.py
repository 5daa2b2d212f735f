"""The job over targets: latents of views of every sample, in the shape of its bucket."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from imprompt.training.config import DataConfig
from imprompt.training.data.buckets import Buckets, plan_buckets, view_of
from imprompt.training.data.manifest import Manifest
from imprompt.training.data.table import REFERENCE
from imprompt.training.features.autoencoder import encode_latents, load_autoencoder
from imprompt.training.features.fingerprint import fingerprint_of_folder
from imprompt.training.features.jobs import NOT_A_TARGET, NotWanted, describe_rows
from imprompt.training.features.shards import Columns, Storage


@dataclass(frozen=True)
class LatentsJob:
    """Latents of an autoencoder.

    Attributes:
        folder: Of the autoencoder.
        data: What says how samples are cut: resolution, buckets, views.
        variant: Of its files, such as "fp16".
        dtype: Number format that it computes in.
        storage: Number format in files.
    """

    folder: Path
    data: DataConfig
    variant: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    storage: Storage = "float16"
    kind: Literal["latents"] = "latents"

    @property
    def num_views(self) -> int:
        """As the data's configuration has it."""
        return self.data.num_views

    def ingredients(self, manifest: Manifest) -> dict[str, str]:
        """Weights on disk, number formats and what views are; the bucket of each sample is part of its row."""
        return {
            "kind": self.kind,
            "encoder": fingerprint_of_folder(self.folder, self.variant),
            "dtype": self.dtype,
            "storage": self.storage,
            "views": json.dumps([self.data.num_views, self.data.mirror]),
        }

    def rows(self, manifest: Manifest, start: int, stop: int) -> list[str]:
        """Name, content, size and bucket of each picture."""
        buckets = _plan(manifest, self)
        shapes = [buckets.shapes[bucket] for bucket in buckets.bucket_of[start:stop].tolist()]
        splits = manifest.table["split"].slice(start, stop - start).to_pylist()
        wanted = [split != REFERENCE for split in splits]
        return describe_rows(manifest, start, stop, manifest.sizes[start:stop].tolist(), shapes, wanted)

    def load(self, manifest: Manifest, device: torch.device) -> "LatentsEncoder":
        """Load the autoencoder."""
        vae = load_autoencoder(self.folder, self.variant, getattr(torch, self.dtype), device)
        return LatentsEncoder(self, manifest, vae)


class LatentsEncoder:
    """A loaded autoencoder."""

    def __init__(self, job: LatentsJob, manifest: Manifest, vae: Any) -> None:
        self.job = job
        self.manifest = manifest
        self.vae = vae
        self.buckets = _plan(manifest, job)

    def shape_of(self, number: int) -> tuple[int, int]:
        """Height and width of its bucket."""
        return self.buckets.shape_of(number)

    def prepare(self, number: int) -> Tensor:
        """Pixels `[views, 3, height, width]` as bytes.

        Raises:
            ImageError: The picture cannot be read.
            NotWanted: Nothing is trained towards it.
        """
        if self.manifest.table["split"][number].as_py() == REFERENCE:
            raise NotWanted(NOT_A_TARGET)
        image, shape = self.manifest.image(number), self.shape_of(number)
        views = range(self.job.num_views)
        return torch.stack([view_of(image, shape, view, mirror=self.job.data.mirror)[0] for view in views])

    def encode(self, prepared: Sequence[Tensor]) -> Columns:
        """Latents `[samples, views, channels, rows, columns]`."""
        pixels = torch.cat(list(prepared)).to(self.vae.device).float() / 127.5 - 1
        return {"latents": encode_latents(self.vae, pixels).unflatten(0, (len(prepared), self.job.num_views))}

    def null(self) -> Columns:
        """There is no picture to train towards none of."""
        return {}


@lru_cache(maxsize=2)
def _plan(manifest: Manifest, job: LatentsJob) -> Buckets:
    """Buckets of a whole manifest, planned once for all of its shards."""
    return plan_buckets(manifest.sizes, job.data)
