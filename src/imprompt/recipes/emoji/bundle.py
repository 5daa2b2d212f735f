"""Stage 5: the finished parts as one folder that `StableDiffusionPipeline.from_pretrained` opens, in half precision."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image

from imprompt.adapter.checkpoint import load_adapter, save_adapter
from imprompt.core.errors import BundleError
from imprompt.core.files import atomic_write
from imprompt.emoji.bundle import ADAPTER_FILES
from imprompt.emoji.styles import STYLES
from imprompt.recipes.emoji import dataset
from imprompt.recipes.emoji.card import model_card, notice
from imprompt.recipes.emoji.paths import cache_folder, models_folder, quality_file, stage_folder
from imprompt.recipes.emoji.pipeline import build_pipeline
from imprompt.training.checkpointing import load_averaged_weights

LIMIT_BYTES = 32_000_000
NUM_REFERENCES = 24


@dataclass(frozen=True)
class BundleConfig:
    """Of the packaged model.

    Attributes:
        target: Folder that the bundle replaces.
        refresh_unet: Take the denoiser's newest checkpoint, also while it trains on.
    """

    target: Path
    refresh_unet: bool = True


def default_config() -> BundleConfig:
    """The bundle inside the package."""
    import imprompt.emoji

    return BundleConfig(Path(imprompt.emoji.__path__[0]) / "bundle")


def run(config: BundleConfig) -> Path:
    """Assemble, check and put in place the bundle.

    Returns:
        Its folder.

    Raises:
        BundleError: A part is missing, or the whole is larger than what ships.
    """
    models = models_folder()
    for part in ("vae", "tokenizer", "text_encoder", "image_encoder", "feature_extractor", "unet"):
        if not (models / part).is_dir():
            raise BundleError(f"the bundle needs '{models / part}'; train that stage first ('imprompt emoji train')")
    building = config.target.with_name(f".{config.target.name}.part")
    shutil.rmtree(building, ignore_errors=True)
    _write_pipeline(models, building, config)
    _write_adapters(models, building)
    _write_references(building)
    _write_texts(building)
    _check(building)
    shutil.rmtree(config.target, ignore_errors=True)
    building.rename(config.target)
    return config.target


def _write_pipeline(models: Path, target: Path, config: BundleConfig) -> None:
    unet = UNet2DConditionModel.from_pretrained(models / "unet")
    weights = load_averaged_weights(stage_folder("unet")) if config.refresh_unet else None
    if weights is not None:
        unet.load_state_dict(weights)
    build_pipeline(models, unet).to(dtype=torch.float16).save_pretrained(target)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(models / "tokenizer" / name, target / "tokenizer" / name)


def _write_adapters(models: Path, target: Path) -> None:
    (target / "adapters").mkdir()
    for file in ADAPTER_FILES.values():
        if (models / "adapters" / file).is_file():
            adapter = load_adapter(models / "adapters" / file)
            save_adapter(adapter, target / "adapters" / file, dtype=torch.float16)


def _write_references(target: Path) -> None:
    """Held-out pictures, spread over subjects and styles, to try image prompts with."""
    pictures = dataset.load()
    members = pictures.split("held_out_subject").tolist()
    (target / "references").mkdir()
    for index in members[:: max(1, len(members) // NUM_REFERENCES)][:NUM_REFERENCES]:
        style = STYLES[pictures.styles[index]].word
        name = f"{pictures.subject_of(index).label}_{style}".replace(" ", "-").replace("/", "-")
        with atomic_write(target / "references" / f"{name}.png") as path:
            Image.fromarray(pictures.images[index]).save(path, optimize=True)


def _write_texts(target: Path) -> None:
    quality = _read_quality()
    (target / "README.md").write_text(model_card(training_figures(), quality))
    (target / "NOTICE").write_text(notice())


def training_figures() -> dict[str, dict[str, float]]:
    """Last log line of every stage that has one."""
    figures = {}
    for log in sorted((cache_folder() / "stages").glob("*/log.jsonl")):
        figures[log.parent.name] = json.loads(log.read_text().splitlines()[-1])
    return figures


def _read_quality() -> str:
    """Table that the quality measurement wrote last, or an empty text."""
    file = quality_file()
    return file.read_text() if file.is_file() else ""


def _check(folder: Path) -> None:
    """Refuse a bundle that is too large or that the ordinary pipeline does not open."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LIMIT_BYTES:
        raise BundleError(f"the bundle has {size:,} bytes, at most {LIMIT_BYTES:,} ship; train a smaller model")
    StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
