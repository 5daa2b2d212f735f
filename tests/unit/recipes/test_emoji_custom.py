"""Custom models stand on the base that they are given, in all its parts."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from imprompt import emoji
from imprompt.emoji.styles import STYLES
from imprompt.recipes.emoji import custom
from imprompt.recipes.emoji.dataset import EmojiPictures
from imprompt.recipes.emoji.sources import Subject

PARTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
SUBJECTS = (Subject("1F3B8", "guitar", ("thing", "toy"), (), "objects"),)


@pytest.fixture
def pictures():
    images = np.random.default_rng(0).integers(0, 255, (len(STYLES), 64, 64, 3), dtype=np.uint8)
    return EmojiPictures(images, np.arange(len(STYLES)), np.zeros(len(STYLES), np.int64), SUBJECTS)


@pytest.fixture
def other_base(tmp_path):
    """The packaged base with half of every weight."""
    folder = tmp_path / "base"
    shutil.copytree(emoji.bundle_folder(), folder)
    for part, file in PARTS.items():
        path = folder / part / file
        save_file({name: value / 2 for name, value in load_file(path).items()}, path, metadata={"format": "pt"})
    return folder


def test_a_custom_model_reads_every_part_from_the_base_that_is_given(pictures, other_base, tmp_path, monkeypatch):
    monkeypatch.setenv("IMPROMPT_CACHE", str(tmp_path / "cache"))
    config = custom.default_config("finetune")
    packaged, given = (
        custom.CustomTask(pictures, replace(config, bundle=each)) for each in (config.bundle, other_base)
    )
    assert config.bundle == emoji.bundle_folder()
    for name in ("model", "text_encoder"):
        before, now = (next(getattr(task, name).parameters()) for task in (packaged, given))
        torch.testing.assert_close(now, before / 2, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(given.examples.latents, packaged.examples.latents, atol=0.01)
