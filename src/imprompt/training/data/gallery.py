"""A look at training data as training sees them: the crop that is learnt, and what it follows from."""

import torch
from PIL import Image

from imprompt.core.sheet import contact_sheet
from imprompt.training.config import DataConfig
from imprompt.training.data.buckets import plan_buckets, view_of
from imprompt.training.data.looks import picture_or_none
from imprompt.training.data.manifest import Manifest
from imprompt.training.data.references import choose
from imprompt.training.loop.order import generator_at
from imprompt.training.loop.task import Draw

MAX_LETTERS = 90


def gallery(manifest: Manifest, config: DataConfig, *, num: int, split: str, seed: int) -> Image.Image:
    """Draw samples: caption, the crop of its bucket, the references of one step.

    Args:
        manifest: Whose samples.
        config: Resolution, buckets and references.
        num: How many samples.
        split: Of which.
        seed: Which of them, and which references.
    """
    members = manifest.split(split)
    samples = members[torch.randperm(len(members), generator=generator_at(seed, "gallery"))[:num]]
    draw = Draw(0, seed, samples, torch.arange(len(samples)), max(len(samples), 1))
    references = choose(manifest, samples, config.references, config.num_references, draw) if len(samples) else samples
    buckets = plan_buckets(manifest.sizes, config)
    rows = [
        [_crop(manifest, number, buckets.shape_of(number)), *(picture_or_none(manifest, other) for other in others)]
        for number, others in zip(samples.tolist(), references.tolist(), strict=True)
    ]
    labels = [_label(manifest, number) for number in samples.tolist()]
    return contact_sheet(rows, ["target", *["reference"] * config.num_references], labels)


def _crop(manifest: Manifest, number: int, bucket: tuple[int, int]) -> Image.Image | None:
    picture = picture_or_none(manifest, number)
    return None if picture is None else Image.fromarray(view_of(picture, bucket)[0].permute(1, 2, 0).numpy())


def _label(manifest: Manifest, number: int) -> str:
    text = next(iter(manifest.captions(number)), "(no caption)")
    return text if len(text) <= MAX_LETTERS else f"{text[:MAX_LETTERS]} ..."
