"""The fixtures of published files are those files: numbers of weights, and sizes to the byte, are as published."""

from math import prod
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.published import (
    PUBLISHED,
    SD1_KEYS,
    SD1_LORA,
    SDXL_KEYS,
    SDXL_LORA,
    Published,
    Shapes,
    content_of,
    header_of,
    write_safetensors,
)

SAFETENSORS = [name for name, published in PUBLISHED.items() if not published.is_pickle]
PICKLES = [name for name, published in PUBLISHED.items() if published.is_pickle]
# Of a tensor in a pickle, key, shape and place take some hundred bytes, and in an archive up to four hundred.
MAX_PICKLE_OVERHEAD = 512


def count(shapes: Shapes) -> int:
    return sum(prod(shape) for shape in shapes.values())


@pytest.fixture(params=PUBLISHED)
def published(request: pytest.FixtureRequest) -> Published:
    return PUBLISHED[request.param]


def test_number_of_parameters(published: Published) -> None:
    assert count(published.shapes) == published.num_parameters


@pytest.mark.parametrize("name", [name for name in SAFETENSORS if PUBLISHED[name].num_bytes])
def test_the_header_fills_the_published_file_to_the_byte(name: str) -> None:
    """A key that is spelt otherwise, a shape of other digits or another format would move it."""
    published = PUBLISHED[name]
    assert published.num_bytes is not None
    rest = published.num_bytes - published.num_weight_bytes - len(header_of(published))
    if "metadata" in published.unverified:
        assert 400 < rest < 500  # a text of its author's, which changes nothing else
    else:
        assert rest == 0


@pytest.mark.parametrize("name", [name for name in PICKLES if PUBLISHED[name].num_bytes])
def test_the_weights_fill_the_published_pickle(name: str) -> None:
    published = PUBLISHED[name]
    assert published.num_bytes is not None
    overhead = published.num_bytes - published.num_weight_bytes
    assert 0 < overhead < MAX_PICKLE_OVERHEAD * len(published.shapes)


@pytest.mark.parametrize(
    ("name", "gigabytes"), [("flux.1-dev-ip-adapter", 5.29), ("sd3.5-large-ip-adapter", 1.60), ("pulid_v1", 1.58)]
)
def test_sizes_that_are_known_roughly(name: str, gigabytes: float) -> None:
    assert PUBLISHED[name].num_weight_bytes / 1e9 == pytest.approx(gigabytes, abs=0.005)


def test_sites_of_stable_diffusion() -> None:
    assert count(SD1_KEYS) == 19_169_280
    assert count(SD1_LORA) == 25_509_888
    widths = {int(key.split(".")[0]): shape[0] for key, shape in SD1_KEYS.items()}
    assert list(widths) == list(range(1, 32, 2))
    assert [widths[number] for number in (1, 5, 9, 13, 19, 25, 31)] == [320, 640, 1280, 1280, 640, 320, 1280]


def test_sites_of_stable_diffusion_xl() -> None:
    assert count(SDXL_KEYS) == 340_787_200
    assert count(SDXL_LORA) == 185_794_560
    widths = {int(key.split(".")[0]): shape[0] for key, shape in SDXL_KEYS.items()}
    assert list(widths) == list(range(1, 140, 2))
    assert [widths[number] for number in (7, 9, 107, 109, 119, 121)] == [640, 1280, 1280, 640, 640, 1280]


@pytest.mark.parametrize("name", ["ip-adapter-plus_sd15", "flux-ip-adapter", "ip-adapter-faceid-portrait_sdxl_unnorm"])
def test_a_file_of_true_size_takes_no_disk(name: str, tmp_path: Path) -> None:
    published = PUBLISHED[name]
    path = write_safetensors(published, tmp_path / "file.safetensors")
    assert path.stat().st_size == published.num_weight_bytes + len(header_of(published))
    assert path.stat().st_blocks * 512 < 2**20
    with safe_open(path, framework="pt") as file:
        assert {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()} == published.shapes
        assert {key: file.get_slice(key).get_dtype() for key in file.keys()} == {
            key: published.format_of(key) for key in published.shapes
        }


def test_the_content_of_a_pickle() -> None:
    content = content_of(PUBLISHED["kolors-ip-adapter-faceid-plus"])
    assert set(content) == {"image_proj", "adapter_modules"}
    assert content["adapter_modules"]["1.to_k_ip.weight"].shape == (640, 2048)
    assert content["image_proj"]["latents" if "latents" in content["image_proj"] else "norm.weight"].is_meta
    flat = content_of(PUBLISHED["pulid_v1"])
    assert flat["id_adapter.body.0.weight"].dtype == torch.float32


def test_what_is_recognised_is_complete(published: Published) -> None:
    assert published.family in ("sd1", "sdxl", "kolors", "flux", "sd3")
    assert published.layer in ("image_embeds", "hidden_states", "face_embeds", "tokens")
    assert published.null_image in ("zero_features", "zero_pixels", "black_pixels", "none")
    assert (published.index is not None) == (published.layer == "hidden_states")
    assert (published.face_crop is not None) == (published.shortcut is not None)
    assert published.is_pickle == published.path.endswith(".bin")
