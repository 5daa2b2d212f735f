"""Features kept by what they were made of, in memory and, if wanted, on disk."""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from imprompt.core.files import atomic_write
from imprompt.core.images import Fit, image_hash
from imprompt.encoders.base import EncoderSpec, ImageEncoder, Layer

logger = logging.getLogger(__name__)

_TENSOR = "features"
_ORIGIN = "origin"  # the one entry of the metadata: safetensors writes several in an order that changes


@dataclass(frozen=True)
class FeatureKey:
    """Everything that features depend on.

    Attributes:
        encoder: The encoder's fingerprint.
        image: The picture's hash; "null" for no picture.
        layer: Which output.
        index: Which hidden state; 0 for pooled features, which have none.
        fit: How the picture was made square.
    """

    encoder: str
    image: str
    layer: Layer
    index: int
    fit: Fit

    @property
    def name(self) -> str:
        """A file name that stands for all of it."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


class FeatureCache:
    """Features by key: the latest ones in memory, all of them in a folder if there is one."""

    def __init__(self, max_items: int = 256, folder: str | Path | None = None) -> None:
        """Open a cache.

        Args:
            max_items: How many pictures' features are kept in memory (a hidden layer of ViT-H takes 0.6 to 1.3 MB).
            folder: Where features outlive the process; only memory if None.
        """
        self.max_items = max_items
        self.folder = None if folder is None else Path(folder)
        self._items: OrderedDict[FeatureKey, Tensor] = OrderedDict()
        self._lock = Lock()

    def get(self, key: FeatureKey) -> Tensor | None:
        """Find features, on the CPU; None if there are none, or their file is damaged."""
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]
        features = self._read(key)
        if features is not None:
            self._remember(key, features)
        return features

    def put(self, key: FeatureKey, features: Tensor) -> None:
        """Keep features. A disk that cannot take them is reported and does no harm."""
        features = features.detach().cpu().contiguous().clone()
        self._remember(key, features)
        path = self._path(key)
        if path is None:
            return
        try:
            with atomic_write(path) as temporary:
                save_file({_TENSOR: features}, temporary, {_ORIGIN: _origin(key, features)})
        except (OSError, SafetensorError) as error:
            logger.warning("features could not be kept in '%s' (%s)", self.folder, error)

    def _remember(self, key: FeatureKey, features: Tensor) -> None:
        with self._lock:
            self._items[key] = features
            self._items.move_to_end(key)
            while len(self._items) > self.max_items:
                self._items.popitem(last=False)

    def _path(self, key: FeatureKey) -> Path | None:
        return None if self.folder is None else self.folder / key.name[:2] / f"{key.name}.safetensors"

    def _read(self, key: FeatureKey) -> Tensor | None:
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata, features = file.metadata() or {}, file.get_tensor(_TENSOR)
        except (OSError, SafetensorError) as error:
            logger.warning("cached features '%s' are damaged (%s) and will be made again", path, error)
            return None
        if metadata.get(_ORIGIN) != _origin(key, features):
            logger.warning("cached features '%s' are not what they were written as and will be made again", path)
            return None
        return features


class CachedEncoder:
    """An encoder that encodes a picture once."""

    def __init__(self, encoder: ImageEncoder, cache: FeatureCache | None = None) -> None:
        """Put a cache, by default one in memory, before an encoder."""
        self.encoder = encoder
        self.cache = FeatureCache() if cache is None else cache

    @property
    def spec(self) -> EncoderSpec:
        """What the encoder is."""
        return self.encoder.spec

    @property
    def device(self) -> torch.device:
        """Where features are returned."""
        return self.encoder.device

    def encode(self, images: Sequence[Image.Image], *, layer: Layer, index: int = -2, fit: Fit = "crop") -> Tensor:
        """Turn RGB pictures into features; only those that are new are encoded. See `ImageEncoder.encode`."""
        keys = [self._key(image_hash(image), layer, index, fit) for image in images]
        found = {key: features for key in keys if (features := self.cache.get(key)) is not None}
        missing = {key: image for key, image in zip(keys, images, strict=True) if key not in found}
        if missing or not keys:  # without pictures the encoder says what is wrong
            made = self.encoder.encode(list(missing.values()), layer=layer, index=index, fit=fit)
            for key, features in zip(missing, made, strict=True):
                self.cache.put(key, features)
                found[key] = features
        return torch.stack([found[key].to(self.device) for key in keys])

    def encode_null(self, *, layer: Layer, index: int = -2) -> Tensor:
        """Features of no picture; see `ImageEncoder.encode_null`."""
        key = self._key("null", layer, index, "crop")
        features = self.cache.get(key)
        if features is None:
            features = self.encoder.encode_null(layer=layer, index=index)[0]
            self.cache.put(key, features)
        return features[None].to(self.device)

    def _key(self, image: str, layer: Layer, index: int, fit: Fit) -> FeatureKey:
        index = 0 if layer == "image_embeds" else index
        return FeatureKey(self.encoder.spec.fingerprint, image, layer, index, fit)


def _origin(key: FeatureKey, features: Tensor) -> str:
    """What a file says about itself: whose features it holds, and their hash, since safetensors has none."""
    content = features.contiguous().view(torch.uint8).numpy().tobytes()
    return f"{key!r} sha256:{hashlib.sha256(content).hexdigest()}"
