"""The packaged base, on which ControlNet, T2I-Adapter, LoRA and fine-tuning are trained.

They are trained on what users have, and not on what a running stage has reached: the image prompt adapters that ship
were trained on it too, and shall work on all of them unchanged.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextModel

from imprompt.core.files import sha256_file
from imprompt.emoji.bundle import bundle_folder
from imprompt.generation.pipelines import load_pipeline
from imprompt.recipes.emoji.unet import Denoiser


def base_fingerprint() -> str:
    """First digits of the hash of the packaged denoiser's weights."""
    return sha256_file(bundle_folder() / "unet" / "diffusion_pytorch_model.safetensors")[:8]


def base_stage(stage: str) -> str:
    """Name of a stage's run on the packaged base; another base begins another run."""
    return f"{stage}-{base_fingerprint()}"


def load_base(bundle: Path | None = None) -> Denoiser:
    """The packaged denoiser and its text tower, or those of another bundle, in single precision, frozen."""
    bundle = bundle or bundle_folder()
    unet = UNet2DConditionModel.from_pretrained(bundle / "unet", torch_dtype=torch.float32)
    text_encoder = CLIPTextModel.from_pretrained(bundle / "text_encoder", dtype=torch.float32)
    return Denoiser(unet, text_encoder).requires_grad_(False).eval()


def base_pipeline(
    kind: Any = None, unet: UNet2DConditionModel | None = None, bundle: Path | None = None, **parts: Any
) -> Any:
    """A pipeline of the packaged parts, or of another bundle's.

    Args:
        kind: Class of the pipeline; `StableDiffusionPipeline` by default.
        unet: In place of the packaged denoiser.
        bundle: In place of what is packaged.
        **parts: What the class takes beside the packaged parts, such as `controlnet`.
    """
    pipeline = load_pipeline(bundle, device="cpu", dtype=torch.float32)
    if unet is not None:
        pipeline.unet = unet
    if kind is not None:
        pipeline = kind.from_pipe(pipeline, vae=pipeline.vae, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
