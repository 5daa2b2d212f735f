"""The way back from a bundle: on a new machine, training goes on from the weights that shipped last.

What the bundle holds becomes the finished models, in single precision, and checkpoint 0 of every stage that can go on
from it; 'vision' begins with the finished tower. Two things do not ship: optimizer states, and the heads that read
the vision tower in its training.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPVisionModelWithProjection

from imprompt.adapter.checkpoint import load_adapter
from imprompt.core.errors import BundleError
from imprompt.core.files import atomic_write
from imprompt.emoji.bundle import ADAPTER_FILES
from imprompt.recipes.emoji.card import read_figures
from imprompt.recipes.emoji.paths import earlier_figures_file, models_folder, stage_folder
from imprompt.recipes.emoji.unet import Denoiser
from imprompt.training.loop.checkpointing import Checkpoint, save_checkpoint

_NETWORKS: dict[str, Any] = {
    "vae": AutoencoderTiny,
    "unet": UNet2DConditionModel,
    "text_encoder": CLIPTextModel,
    "image_encoder": CLIPVisionModelWithProjection,
}


def restore(bundle: Path) -> Path:
    """Unpack a bundle into the recipe's cache, where no model is yet.

    Args:
        bundle: A folder that the bundle stage wrote.

    Returns:
        Folder of the finished models.

    Raises:
        BundleError: The cache holds models already.
    """
    target = models_folder()
    if target.exists():
        raise BundleError(
            f"'{target}' holds models already, which restoring would replace; move it and the folder 'stages' beside "
            "it away, or name another cache in IMPROMPT_CACHE"
        )
    building = target.with_name(f".{target.name}.part")
    shutil.rmtree(building, ignore_errors=True)
    networks = {name: _widen(kind, bundle / name, building / name) for name, kind in _NETWORKS.items()}
    for name in ("tokenizer", "feature_extractor", "adapters"):
        shutil.copytree(bundle / name, building / name)
    _begin("unet", Denoiser(networks["unet"], networks["text_encoder"]))
    for kind, file in ADAPTER_FILES.items():
        _begin(f"adapter-{kind}", load_adapter(bundle / "adapters" / file))
    with atomic_write(earlier_figures_file()) as path:
        path.write_text(json.dumps(read_figures((bundle / "README.md").read_text()), indent=1))
    building.rename(target)
    return target


def _widen(kind: Any, source: Path, target: Path) -> Any:
    """A network in single precision, as its stage would have handed it on."""
    network = kind.from_pretrained(source, torch_dtype=torch.float32)
    network.save_pretrained(target)
    return network


def _begin(stage: str, model: nn.Module) -> None:
    """Write the checkpoint that a run of the stage takes up before its first step."""
    weights = model.state_dict()
    tensors = {"model": weights, "average": weights, "optimizer": {}}
    save_checkpoint(stage_folder(stage) / "checkpoints", 0, Checkpoint(tensors, {"step": 0, "samples": 0}))
