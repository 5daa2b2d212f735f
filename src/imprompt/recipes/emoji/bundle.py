"""Stage 5: the finished parts as one folder that `StableDiffusionPipeline.from_pretrained` opens, in half precision."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from imprompt.adapter.checkpoint import load_adapter, save_adapter
from imprompt.core.errors import BundleError
from imprompt.emoji.bundle import ADAPTER_FILES, PART_FILES
from imprompt.emoji.styles import STYLES
from imprompt.recipes.emoji import dataset
from imprompt.recipes.emoji.card import model_card, notice, read_figures, read_quality
from imprompt.recipes.emoji.paths import cache_folder, earlier_figures_file, models_folder, quality_file
from imprompt.recipes.emoji.pipeline import build_pipeline
from imprompt.recipes.emoji.sources import slug

LIMIT_BYTES = 48_000_000
NUM_REFERENCES = 24
PART_STAGES = ("controlnet-", "t2i_adapter-", "lora-")
"""How the runs begin that train parts on a packaged base; its fingerprint follows."""


@dataclass(frozen=True)
class BundleConfig:
    """Of the packaged model.

    Attributes:
        target: Folder that the bundle replaces.
    """

    target: Path


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
    _write_pipeline(models, building)
    _write_adapters(models, building)
    write_parts(building, packaged=config.target)
    _write_references(building)
    _write_texts(building, packaged=config.target)
    _check(building)
    shutil.rmtree(config.target, ignore_errors=True)
    building.rename(config.target)
    return config.target


def run_parts(config: BundleConfig) -> Path:
    """Put what was trained on the packaged base beside it: ControlNet, T2I-Adapter, LoRA. The base stays as it is.

    Returns:
        The bundle's folder.

    Raises:
        BundleError: The whole is larger than what ships.
    """
    card = config.target / "README.md"
    text = card.read_text()
    write_parts(config.target, packaged=config.target)
    card.write_text(model_card(read_figures(text) | _part_figures(training_figures()), read_quality(text)))
    (config.target / "NOTICE").write_text(notice())
    _check(config.target)
    return config.target


def write_parts(target: Path, *, packaged: Path) -> None:
    """Write each part in half precision: as it was trained last, else as it is packaged already."""
    for name, file in PART_FILES.items():
        sources = [folder / name for folder in (models_folder(), packaged) if (folder / name / file).is_file()]
        if not sources or sources[0] == target / name:
            continue
        shutil.rmtree(target / name, ignore_errors=True)
        shutil.copytree(sources[0], target / name)
        _halve(target / name / file)
        for settings in (target / name).glob("config.json"):
            _clean(settings)


def _write_pipeline(models: Path, target: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(models / "unet")
    build_pipeline(models, unet).save_pretrained(target)
    for file in target.rglob("*.safetensors"):
        _halve(file)
    for file in target.rglob("config.json"):
        _clean(file)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(models / "tokenizer" / name, target / "tokenizer" / name)


def _halve(file: Path) -> None:
    """Store weights in half precision; configurations keep float32, in which everything computes unless told."""
    weights = {name: value.half() for name, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


def _clean(file: Path) -> None:
    """Drop where the model was made, and a value that `AutoencoderTiny` derives itself and warns about."""
    settings = json.loads(file.read_text())
    settings.pop("_name_or_path", None)
    if settings.get("_class_name") == "AutoencoderTiny":
        settings.pop("block_out_channels", None)
    file.write_text(json.dumps(settings, indent=2) + "\n")


def _write_adapters(models: Path, target: Path) -> None:
    (target / "adapters").mkdir()
    for file in ADAPTER_FILES.values():
        if (models / "adapters" / file).is_file():
            adapter = load_adapter(models / "adapters" / file)
            save_adapter(adapter, target / "adapters" / file, dtype=torch.float16)


def _write_references(target: Path) -> None:
    """Held-out pictures to try image prompts with: other subjects in turn, each in the next style."""
    pictures = dataset.load()
    members = pictures.split("held_out_subject")
    subjects = np.unique(pictures.subject_indices[members])[:NUM_REFERENCES]
    (target / "references").mkdir()
    for number, subject in enumerate(subjects):
        drawings = members[pictures.subject_indices[members] == subject].tolist()
        index = drawings[number % len(drawings)]
        name = f"{slug(pictures.subject_of(index).label)}_{STYLES[pictures.styles[index]].word}"
        Image.fromarray(pictures.images[index]).save(target / "references" / f"{name}.png", optimize=True)


def _write_texts(target: Path, *, packaged: Path) -> None:
    card = packaged / "README.md"
    parts = _part_figures(read_figures(card.read_text())) if card.is_file() else {}
    (target / "README.md").write_text(model_card(parts | training_figures(), _read_quality()))
    (target / "NOTICE").write_text(notice())


def training_figures() -> dict[str, dict[str, Any]]:
    """Last log line of every stage's training, and those of the runs before them that a restored bundle told of."""
    figures: dict[str, dict[str, Any]] = {}
    for log in sorted((cache_folder() / "stages").glob("*/log.jsonl")):
        figures[log.parent.name] = _last_of_training(log.read_text())
    file = earlier_figures_file()
    for name, last in json.loads(file.read_text()).items() if file.is_file() else ():
        while name in figures:
            name = f"{name}, before"
        figures[name] = last
    return dict(sorted(figures.items()))


def _last_of_training(log: str) -> dict[str, Any]:
    """The last line that tells how far training is; lines of validations and sheets come between."""
    return next(line for line in map(json.loads, reversed(log.splitlines())) if "samples" in line)


def _part_figures(figures: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: last for name, last in figures.items() if name.startswith(PART_STAGES)}


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
