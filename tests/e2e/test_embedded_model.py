"""The embedded model, end to end: the command, the effect of weight, the reach of a mask."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import imprompt
from imprompt import ImagePrompt, emoji

NUM_STEPS = 8


@pytest.fixture(scope="module")
def pipe():
    pipe = imprompt.load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def references():
    return [Image.open(path).convert("RGB") for path in list(emoji.reference_pictures().values())[:16]]


def sample(pipe, prompts, seed=0):
    generators = [torch.Generator().manual_seed(seed + row) for row in range(len(prompts))]
    return pipe(prompts, num_inference_steps=NUM_STEPS, generator=generators, output_type="np").images


def thumbnails(pictures):
    tensors = torch.stack([torch.from_numpy(np.array(picture, dtype=np.float32)) for picture in pictures])
    return torch.nn.functional.adaptive_avg_pool2d(255 - tensors.permute(0, 3, 1, 2), 8).flatten(1)


def fidelity(pictures, references):
    """How much more alike pictures are to their own references than to the others.

    Mean cosine of 8 x 8 thumbnails: palette and silhouette, by no network at all. Pictures that know nothing of their
    references have a fidelity of about 0.
    """
    ours, theirs = thumbnails([255 * picture for picture in pictures]), thumbnails(references)
    cosines = torch.nn.functional.cosine_similarity(ours[:, None], theirs[None], dim=-1)
    others = cosines[~torch.eye(len(cosines), dtype=torch.bool)]
    return (cosines.diagonal().mean() - others.mean()).item()


@pytest.mark.parametrize("name", ["global", "plus"])
def test_similarity_rises_with_weight(pipe, references, name):
    measured = []
    with imprompt.attach(pipe, imprompt.load_adapter(emoji.adapter_file(name))) as images:
        for weight in (0.0, 0.25, 1.0):
            images.set(rows=[[ImagePrompt(reference, weight=weight)] for reference in references])
            measured.append(fidelity(sample(pipe, [""] * len(references)), references))
    assert measured[0] < measured[1] < measured[2]
    assert measured[2] > measured[0] + 0.05


def test_a_mask_confines_the_change(pipe, references):
    left = np.zeros((64, 64), dtype=np.float32)
    left[:, :32] = 1
    prompts = ["a red apple"] * len(references)
    plain = sample(pipe, prompts)
    with imprompt.attach(pipe, imprompt.load_adapter(emoji.adapter_file())) as images:
        images.set(rows=[[ImagePrompt(reference, mask=left)] for reference in references])
        masked = sample(pipe, prompts)
    change = np.abs(masked - plain).mean(axis=(0, 1, 3))
    assert change[:24].mean() > 2 * change[40:].mean()


def test_pictures_are_clear_and_differ(pipe):
    pictures = sample(pipe, ["red apple, noto style emoji", "elephant, noto style emoji"])
    assert all(picture.std() > 0.1 for picture in pictures)  # neither grey nor blank
    assert np.abs(pictures[0] - pictures[1]).mean() > 0.05


def test_generate_command(tmp_path):
    reference = next(iter(emoji.reference_pictures().values()))
    output = tmp_path / "out.png"
    command = [sys.executable, "-m", "imprompt", "generate", "--image", reference, "--steps", "4", "--seed", "3"]
    done = subprocess.run([*command, "--output", output], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with Image.open(output) as picture:
        provenance = json.loads(picture.info["imprompt"])
    assert "3" in json.dumps(provenance["seeds"] if "seeds" in provenance else provenance)
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
