"""A data set of small pictures of three shapes, one of them broken, and tiny encoders on disk."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from imprompt.training.data.manifest import Manifest, write_manifest
from tests import tiny

SHAPES = ((32, 32), (48, 24), (24, 48))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(13):
        tiny.picture(seed=number, size=SHAPES[number % 3]).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"a picture of {number}")
    return folder


@pytest.fixture(scope="session")
def manifest(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_manifest(pictures, tmp_path_factory.mktemp("data") / "manifest.parquet")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A whole base in diffusers' layout, with an image encoder beside it."""
    folder = tmp_path_factory.mktemp("base")
    tiny.pipeline().save_pretrained(folder)
    tiny.vision_tower().save_pretrained(folder / "image_encoder")
    tiny.image_processor().save_pretrained(folder / "image_encoder")
    yield folder
