"""The parts of the embedded model put together as an ordinary `StableDiffusionPipeline`."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, velocity prediction, and an end that is pure noise."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )


def build_pipeline(models: Path, unet: UNet2DConditionModel, text_encoder: CLIPTextModel | None = None) -> Any:
    """Pipeline of the finished stages around a given denoiser.

    Args:
        models: Folder with `vae`, `tokenizer`, `text_encoder`, `image_encoder` and `feature_extractor`.
        unet: The denoiser, finished or not.
        text_encoder: The text tower that is trained with it; the finished one by default.
    """
    parts: dict[str, Any] = dict(
        vae=AutoencoderTiny.from_pretrained(models / "vae"),
        text_encoder=text_encoder or CLIPTextModel.from_pretrained(models / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(models / "tokenizer"),
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=CLIPImageProcessorPil.from_pretrained(models / "feature_extractor"),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(models / "image_encoder"),
        requires_safety_checker=False,
    )
    pipeline: Any = StableDiffusionPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def draw(
    pipeline: Any,
    prompts: list[str],
    *,
    num_steps: int = 20,
    guidance_scale: float = 4.0,
    seed: int = 0,
    **options: Any,
) -> torch.Tensor:
    """One picture in [-1, 1] for each prompt, each from noise of its own that depends on the seed alone.

    Args:
        pipeline: Any pipeline that draws from prompts.
        prompts: One for each picture.
        num_steps: Of the sampler.
        guidance_scale: Classifier-free guidance.
        seed: Of the first picture; each has the next one.
        **options: What else the pipeline is called with.
    """
    pipeline.to(pipeline.unet.device)
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(prompts))]
    images = pipeline(
        prompts,
        num_inference_steps=num_steps,
        guidance_scale=guidance_scale,
        generator=generators,
        output_type="np",  # which every pipeline knows
        **options,
    ).images
    return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1
