"""Where targets and references come from: features that were computed once, or pictures that are read at every step."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from imprompt.core.errors import ImageError
from imprompt.encoders.preprocess import Preprocessing, prepare_pixels
from imprompt.training.adapters.inputs import BadSample, References, Targets
from imprompt.training.data.buckets import Buckets, Shape, told_of, view_of
from imprompt.training.data.manifest import Manifest
from imprompt.training.data.references import augmented
from imprompt.training.features.store import FeatureStore
from imprompt.training.loop.task import Draw


@dataclass(frozen=True)
class CachedTargets:
    """Latents that were computed once; see `TargetSource`.

    Attributes:
        store: Latents of all views.
        sizes: Height and width of every picture.
        buckets: Which shape each was brought to.
        mirror: Whether odd views are mirrored.
        latent_channels: Of the base.
        pixels_per_latent: Along each side.
    """

    store: FeatureStore
    sizes: Int[Tensor, "samples 2"]
    buckets: Buckets
    mirror: bool
    latent_channels: int
    pixels_per_latent: int

    @property
    def num_views(self) -> int:
        """Views a sample."""
        return self.store.spec.views

    def shape(self, bucket: int) -> tuple[int, int, int]:
        """Channels, height and width of a bucket's latents."""
        return _latent_shape(self.buckets, bucket, self.latent_channels, self.pixels_per_latent)

    def read(self, samples: Int[Tensor, " rows"], views: Int[Tensor, " rows"], bucket: int) -> Targets:
        """Latents of samples, and what is told of their sizes."""
        return Targets(
            latents=self.store.rows(views, samples),
            pixels=None,
            sizes=told_sizes(self.sizes[samples], self.buckets.shapes[bucket], views, mirror=self.mirror),
        )


@dataclass(frozen=True)
class PictureTargets:
    """Pictures that are read, cut and encoded at every step; see `TargetSource`.

    Attributes:
        manifest: Of the pictures.
        buckets: Which shape each is brought to.
        num_views: Views a sample.
        mirror: Whether odd views are mirrored.
        latent_channels: Of the base.
        pixels_per_latent: Along each side.
    """

    manifest: Manifest
    buckets: Buckets
    num_views: int
    mirror: bool
    latent_channels: int
    pixels_per_latent: int

    def shape(self, bucket: int) -> tuple[int, int, int]:
        """Channels, height and width of a bucket's latents."""
        return _latent_shape(self.buckets, bucket, self.latent_channels, self.pixels_per_latent)

    def read(self, samples: Int[Tensor, " rows"], views: Int[Tensor, " rows"], bucket: int) -> Targets:
        """Pixels of samples, and what is told of their sizes.

        Raises:
            BadSample: A picture cannot be read.
        """
        shape = self.buckets.shapes[bucket]
        rows = enumerate(zip(samples.tolist(), views.tolist(), strict=True))
        pictures = [
            view_of(_image(self.manifest, number, row), shape, view, mirror=self.mirror) for row, (number, view) in rows
        ]
        return Targets(
            latents=None,
            pixels=torch.stack([pixels for pixels, _ in pictures]),
            sizes=torch.stack([sizes for _, sizes in pictures]).float(),
        )


@dataclass(frozen=True)
class CachedReferences:
    """Features that were computed once, of pictures or of the faces in them; see `ReferenceSource`.

    Attributes:
        stores: By what the adapter reads.
    """

    stores: Mapping[str, FeatureStore]

    def read(
        self, samples: Int[Tensor, "rows references"], views: Int[Tensor, "rows references"], draw: Draw
    ) -> References:
        """Features of samples; a mirrored view has the features of the mirror image, where those were computed.

        Raises:
            BadSample: A reference has none.
        """
        features = {name: _rows(store, samples, views) for name, store in self.stores.items()}
        return References(features=features, pixels={}, present=first_places(samples))


@dataclass(frozen=True)
class PictureReferences:
    """Pictures that are read, augmented and encoded at every step; see `ReferenceSource`.

    Attributes:
        manifest: Of the pictures.
        name: What the adapter reads of them.
        preprocessing: How the encoder wants them.
        smallest: Least part of a picture that its random crop keeps.
        mirror: Whether half of them are mirrored.
        stores: What else the adapter reads, computed once.
    """

    manifest: Manifest
    name: str
    preprocessing: Preprocessing
    smallest: float
    mirror: bool
    stores: Mapping[str, FeatureStore]

    def read(
        self, samples: Int[Tensor, "rows references"], views: Int[Tensor, "rows references"], draw: Draw
    ) -> References:
        """Pixels of samples, each with an augmentation of its own.

        Raises:
            BadSample: A picture cannot be read.
        """
        generators = draw.row_generators("augmentation")
        pixels = [
            torch.stack([self._pixels(number, row, generator) for number in samples[row].tolist()])
            for row, generator in enumerate(generators)
        ]
        features = {name: _rows(store, samples, views) for name, store in self.stores.items()}
        return References(features=features, pixels={self.name: torch.stack(pixels)}, present=first_places(samples))

    def _pixels(self, number: int, row: int, generator: torch.Generator) -> Float[Tensor, "3 side side"]:
        image = augmented(_image(self.manifest, number, row), generator, smallest=self.smallest, mirror=self.mirror)
        return prepare_pixels(image, self.preprocessing)


def told_sizes(
    sizes: Int[Tensor, "rows 2"], shape: Shape, views: Int[Tensor, " rows"], *, mirror: bool
) -> Float[Tensor, "rows 6"]:
    """What a base may be told of pictures: original size, top and left of the crop, size; as `view_of` tells it."""
    pairs = zip(sizes.tolist(), views.tolist(), strict=True)
    return torch.stack(
        [told_of((height, width), shape, view, mirror=mirror) for (height, width), view in pairs]
    ).float()


def first_places(chosen: Int[Tensor, "rows references"]) -> Bool[Tensor, "rows references"]:
    """Where each row names a reference for the first time: a row that has fewer than others repeats its own."""
    same = chosen[:, :, None] == chosen[:, None, :]
    return ~same.tril(diagonal=-1).any(dim=2)


def _rows(
    store: FeatureStore, samples: Int[Tensor, "rows references"], views: Int[Tensor, "rows references"]
) -> Float[Tensor, "rows references ..."]:
    holes = (~store.available[samples]).nonzero()
    if len(holes):
        row, place = holes[0].tolist()
        raise BadSample(int(samples[row, place]), row, f"its {store.spec.kind} could not be computed")
    return store.rows(views.flatten(), samples.flatten()).unflatten(0, tuple(samples.shape))


def _image(manifest: Manifest, number: int, row: int) -> Image.Image:
    try:
        return manifest.image(number)
    except ImageError as error:
        raise BadSample(number, row, str(error)) from error


def _latent_shape(buckets: Buckets, bucket: int, channels: int, pixels_per_latent: int) -> tuple[int, int, int]:
    height, width = buckets.shapes[bucket]
    return channels, height // pixels_per_latent, width // pixels_per_latent
