"""A picture is encoded once, and a damaged file costs no more than encoding it again."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from imprompt.core.errors import ImageError
from imprompt.core.images import Fit
from imprompt.encoders.base import EncoderSpec, ImageEncoder, Layer
from imprompt.encoders.cache import CachedEncoder, FeatureCache, FeatureKey

RED, BLUE = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
KEY = FeatureKey("encoder", "image", "image_embeds", 0, "crop")


class CountingEncoder:
    """Makes features of a picture's mean colour, and counts what it was given."""

    device = torch.device("cpu")

    def __init__(self, fingerprint: str = "a") -> None:
        self.spec = EncoderSpec("counting", "test", 4, 3, 3, 1, 2, fingerprint)
        self.num_pictures = 0

    def encode(self, images: Sequence[Image.Image], *, layer: Layer, index: int = -2, fit: Fit = "crop") -> Tensor:
        if not images:
            raise ImageError("There is no picture.")
        self.num_pictures += len(images)
        features = torch.tensor([image.getpixel((0, 0)) for image in images], dtype=torch.float32)
        return features if layer == "image_embeds" else features[:, None].expand(-1, 2, -1) + index

    def encode_null(self, *, layer: Layer, index: int = -2) -> Tensor:
        self.num_pictures += 1
        return torch.zeros(1, 3) if layer == "image_embeds" else torch.full((1, 2, 3), float(index))


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_cached_encoder_is_an_encoder() -> None:
    assert isinstance(CachedEncoder(CountingEncoder()), ImageEncoder)


def test_only_new_pictures_are_encoded() -> None:
    encoder = CountingEncoder()
    cached = CachedEncoder(encoder)
    first = cached.encode([RED, RED], layer="image_embeds")
    both = cached.encode([BLUE, RED.copy()], layer="image_embeds")
    assert encoder.num_pictures == 2
    assert torch.equal(first[0], both[1])
    assert torch.equal(both, encoder.encode([BLUE, RED], layer="image_embeds"))


def test_layers_indices_and_fits_are_kept_apart() -> None:
    encoder = CountingEncoder()
    cached = CachedEncoder(encoder)
    cached.encode([RED], layer="image_embeds")
    assert cached.encode([RED], layer="hidden_states", index=-2).shape == (1, 2, 3)
    cached.encode([RED], layer="hidden_states", index=-1)
    cached.encode([RED], layer="image_embeds", fit="pad")
    assert encoder.num_pictures == 4
    cached.encode([RED], layer="image_embeds", index=-1)  # pooled features have no index
    assert encoder.num_pictures == 4


def test_no_picture_is_cached_too() -> None:
    encoder = CountingEncoder()
    cached = CachedEncoder(encoder)
    for _ in range(2):
        assert torch.equal(cached.encode_null(layer="hidden_states", index=-2), torch.full((1, 2, 3), -2.0))
        assert torch.equal(cached.encode_null(layer="hidden_states", index=-1), torch.full((1, 2, 3), -1.0))
    assert encoder.num_pictures == 2


def test_encoders_do_not_share_features() -> None:
    cache, other = FeatureCache(), CountingEncoder("b")
    CachedEncoder(CountingEncoder("a"), cache).encode([RED], layer="image_embeds")
    CachedEncoder(other, cache).encode([RED], layer="image_embeds")
    assert other.num_pictures == 1


def test_an_empty_list_is_the_encoders_to_refuse() -> None:
    with pytest.raises(ImageError):
        CachedEncoder(CountingEncoder()).encode([], layer="image_embeds")


def test_memory_forgets_what_was_used_longest_ago() -> None:
    cache = FeatureCache(max_items=2)
    keys = [FeatureKey("encoder", name, "image_embeds", 0, "crop") for name in "abc"]
    cache.put(keys[0], torch.zeros(1))
    cache.put(keys[1], torch.zeros(1))
    cache.get(keys[0])
    cache.put(keys[2], torch.zeros(1))
    assert [cache.get(key) is not None for key in keys] == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_features_outlive_the_process_on_disk(tmp_path: Path, dtype: torch.dtype) -> None:
    features = torch.randn(2, 3).to(dtype)
    FeatureCache(folder=tmp_path).put(KEY, features)
    assert len(entries(tmp_path)) == 1
    found = FeatureCache(folder=tmp_path).get(KEY)
    assert found is not None
    assert torch.equal(found, features)
    assert FeatureCache(folder=tmp_path).get(FeatureKey("other", "image", "image_embeds", 0, "crop")) is None


def spoil_the_end(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("spoil", [lambda content: b"", lambda content: content[:40], spoil_the_end])
def test_a_damaged_file_is_made_again_and_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil) -> None:
    encoder = CountingEncoder()
    whole = CachedEncoder(encoder, FeatureCache(folder=tmp_path)).encode([RED], layer="image_embeds")
    (entry,) = entries(tmp_path)
    content = entry.read_bytes()
    entry.write_bytes(spoil(content))
    assert torch.equal(CachedEncoder(encoder, FeatureCache(folder=tmp_path)).encode([RED], layer="image_embeds"), whole)
    assert encoder.num_pictures == 2
    assert entry.read_bytes() == content
    assert "will be made again" in caplog.text


def test_a_file_under_a_wrong_name_is_not_believed(tmp_path: Path) -> None:
    cache = FeatureCache(folder=tmp_path)
    cache.put(KEY, torch.zeros(1))
    (entry,) = entries(tmp_path)
    other = FeatureKey("encoder", "other", "image_embeds", 0, "crop")
    (tmp_path / other.name[:2]).mkdir(exist_ok=True)
    entry.rename(tmp_path / other.name[:2] / f"{other.name}.safetensors")
    assert FeatureCache(folder=tmp_path).get(other) is None


def test_a_disk_that_takes_nothing_does_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    cache = FeatureCache(folder=tmp_path / "file")
    cache.put(KEY, torch.zeros(1))
    assert cache.get(KEY) is not None
    assert "could not be kept" in caplog.text


def test_a_callers_tensor_may_change_afterwards() -> None:
    cache, features = FeatureCache(), torch.zeros(2)
    cache.put(KEY, features)
    features += 1
    found = cache.get(KEY)
    assert found is not None
    assert found.sum() == 0
