"""Pictures, features and batches of `train_step.py`: the same for the published scripts' step and for ours."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from official_step import OfficialBatch
from PIL import Image
from step_models import TEXT_LENGTH, Models, Size
from torch import Tensor

from imprompt.encoders.preprocess import prepare_pixels
from imprompt.encoders.vision import VisionEncoder
from imprompt.recipes import config_named
from imprompt.training.adapters.inputs import FEATURES, AdapterBatch
from imprompt.training.adapters.stores import LATENTS
from imprompt.training.bases import base_of
from imprompt.training.config import BaseModelConfig, TrainConfig
from imprompt.training.features.shards import Columns, write_shard
from imprompt.training.features.store import FeatureKind, FeatureSpec, FeatureStore, feature_folder, write_spec
from imprompt.training.loop.batches import Portion
from imprompt.training.overrides import override
from imprompt.training.run import Run

NUM_PICTURES = 32
CAPTION = "a small red house by the sea, in the evening"


def write_pictures(folder: Path, pixels: int) -> None:
    """Pictures of noise with captions, in `pictures/`."""
    folder = folder / "pictures"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    lines = []
    for number in range(NUM_PICTURES):
        noise = torch.randint(0, 256, (pixels, pixels, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(_file(folder, number))
        lines.append(json.dumps({"file_name": _file(folder, number).name, "text": f"{CAPTION}, {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


@torch.no_grad()
def write_features(models: Models, folder: Path, device: torch.device) -> None:
    """Latents and pooled features of all pictures, in `features/`, as `imprompt features` keeps them."""
    base = base_of(copy.deepcopy(models).pipeline(), BaseModelConfig())  # of a copy: it is laid out for our step
    encoder = VisionEncoder(models.vision, models.processor)
    latents, embeds = [], []
    for number in range(NUM_PICTURES):
        image = Image.open(_file(folder / "pictures", number))
        latents.append(base.encode_latents(_pixels(image)[None].to(device))[0].cpu())
        shown = prepare_pixels(image, encoder.preprocessing)[None].to(device)
        embeds.append(encoder.encode_pixels(shown, "image_embeds")[0].cpu())
    _write_store(folder, "latents", latents)
    _write_store(folder, "image_embeds", embeds)


def _write_store(folder: Path, kind: FeatureKind, rows: list[Tensor]) -> None:
    store = _store(folder, kind)
    write_spec(store, FeatureSpec(kind, kind, {}, len(rows), 1, "float16", len(rows), ("0",)))
    samples: dict[str, Columns | str] = {str(number): {kind: row[None]} for number, row in enumerate(rows)}
    write_shard(store, 0, "0", samples, "float16")


def _store(folder: Path, kind: FeatureKind) -> Path:
    return feature_folder(folder / "features", kind, kind)


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:03d}.png"


def _pixels(image: Image.Image) -> Tensor:
    """A picture in [-1, 1]."""
    values = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return values.view(image.height, image.width, 3).permute(2, 0, 1).float() / 127.5 - 1.0


def prepare_run(models: Models, folder: Path, size: Size, device: torch.device, dtype: str) -> Run:
    """Our run on a copy of the models; nothing is loaded or computed again."""
    run = Run(_configuration(folder, size, device, dtype))
    copied = copy.deepcopy(models)
    for part in (copied.unet, copied.vae, copied.vision, *copied.texts):
        part.to(getattr(torch, dtype))
    run.encoder = VisionEncoder(copied.vision, copied.processor)
    run.base = base_of(copied.pipeline(), run.config.base)
    run.stores = {
        LATENTS: FeatureStore.open(_store(folder, "latents")),
        FEATURES: FeatureStore.open(_store(folder, "image_embeds")),
    }
    return run


def _configuration(folder: Path, size: Size, device: torch.device, dtype: str) -> TrainConfig:
    """The published recipe on our pictures."""
    settings = [
        f"data.source={folder / 'pictures'}",
        f"loop.output={folder / 'run'}",
        f"loop.device={device}",
        f"loop.batch_size={size.batch}",
        f"loop.autocast={'no' if dtype == 'float32' else dtype}",
        f"data.num_workers={0 if device.type == 'cpu' else 2}",
        f"data.resolution={size.pixels}",
        "data.buckets=false",
        f"base.dtype={dtype}",
        "validation.every=0",
        "validation.sheet_every=0",
    ]
    return override(config_named(size.recipe), settings)


def official_batch(run: Run, models: Models, portion: Portion) -> OfficialBatch:
    """The pictures and texts of one of our batches, as the published scripts' loader gives them."""
    batch: AdapterBatch = portion.batch
    assert run.encoder is not None
    texts = ["" if is_dropped else text for text, is_dropped in zip(batch.captions, batch.no_text, strict=True)]
    options: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids = models.tokenizer(texts, max_length=TEXT_LENGTH, **options).input_ids
    images = [run.manifest.image(number) for number in run.inputs.members[portion.draw.samples].tolist()]
    return OfficialBatch(
        images=torch.stack([_pixels(image) for image in images]),
        clip_images=torch.stack([prepare_pixels(image, run.encoder.preprocessing) for image in images]),
        token_ids=(ids,) * len(models.texts),
        dropped=batch.no_image,
        sizes=batch.targets.sizes,
        noise=batch.noise,
        timesteps=batch.timesteps,
    )
