"""A tiny pipeline with an image encoder, and adapters for it."""

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def pipe():
    return tiny.pipeline(image_encoder=tiny.vision_tower(), feature_extractor=tiny.image_processor())


@pytest.fixture(scope="session")
def adapters(pipe):
    return {kind: tiny.adapter(pipe.unet, kind) for kind in tiny.PROJECTORS}


@pytest.fixture
def cat(tmp_path):
    path = tmp_path / "cat.png"
    tiny.picture(seed=1).save(path)
    return path


@pytest.fixture
def street(tmp_path):
    path = tmp_path / "street.png"
    tiny.picture(seed=2).save(path)
    return path
