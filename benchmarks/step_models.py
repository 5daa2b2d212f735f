"""Models of `train_step.py`: Stable Diffusion's true configurations with random weights, and the same narrowed.

Narrowed ones keep the depth, the levels and the places of attention of the true UNet at an eighth of its width. What
is narrowed is the number of heads, not their width: with eight heads of 5 instead of one of 40, softmax would take
most of the time. The other parts are narrowed so that their arithmetic keeps its true proportion to the UNet's, which
the benchmark prints.
"""

import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

TEXT_LENGTH = 77
VOCABULARY = 49408

_SD15: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "attention_head_dim": 8,
}
_SDXL: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
_VIT_H: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 1024,
    "hidden_act": "gelu",
}
_CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_CLIP_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}


@dataclass(frozen=True)
class Size:
    """Configurations of all parts, the picture's side, and the true arithmetic of the parts.

    Attributes:
        name: What is measured, in words.
        recipe: Of imprompt.
        unet: Its configuration.
        vae: Of the autoencoder.
        vision: Of the image encoder.
        texts: Of each text encoder.
        pixels: Side of the pictures.
        batch: Pictures a step.
        true_flops: GFLOP a picture of the published model at 512 pixels, by part (counted on the meta device).
    """

    name: str
    recipe: str
    unet: dict[str, Any]
    vae: dict[str, Any]
    vision: dict[str, Any]
    texts: tuple[dict[str, Any], ...]
    pixels: int
    batch: int
    true_flops: dict[str, float]


_SD15_FLOPS = {"VAE encode": 1116.7, "vision": 334.6, "text": 13.3, "UNet forward": 803.6, "UNet backward": 866.6}
_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
_SDXL_FLOPS = {"VAE encode": 1116.7, "vision": 334.6, "text": 111.2, "UNet forward": 1591.9, "UNet backward": 1595.6}

SD15 = Size(
    name="Stable Diffusion 1.5, true size",
    recipe="sd15-global",
    unet={**_SD15, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768},
    vae={"block_out_channels": (128, 256, 512, 512)},
    vision=_VIT_H,
    texts=(_CLIP_L,),
    pixels=512,
    batch=8,
    true_flops=_SD15_FLOPS,
)
SDXL = Size(
    name="Stable Diffusion XL, true size",
    recipe="sdxl-global",
    unet={
        **_SDXL,
        "block_out_channels": (320, 640, 1280),
        "cross_attention_dim": 2048,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    vae={"block_out_channels": (128, 256, 512, 512), "scaling_factor": 0.13025},
    vision=_VIT_H,
    texts=(_CLIP_L, _CLIP_G),
    pixels=512,
    batch=1,
    true_flops=_SDXL_FLOPS,
)
_NARROW_VIT: dict[str, Any] = {
    **_VIT_H,
    "hidden_size": 80,
    "intermediate_size": 320,
    "num_hidden_layers": 25,
    "num_attention_heads": 1,
    "projection_dim": 128,
}
_NARROW_CLIP_L: dict[str, Any] = {
    **_CLIP_L,
    "hidden_size": 96,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "projection_dim": 96,
}
_NARROW_CLIP_G: dict[str, Any] = {
    **_CLIP_G,
    "hidden_size": 160,
    "intermediate_size": 640,
    "num_hidden_layers": 8,
    "num_attention_heads": 2,
    "projection_dim": 160,
}
NARROW_SD15 = Size(
    name="Stable Diffusion 1.5 at an eighth of its width",
    recipe="sd15-global",
    unet={
        **_SD15,
        "block_out_channels": (40, 80, 160, 160),
        "cross_attention_dim": 96,
        "attention_head_dim": 1,  # so diffusers calls the number of heads
        "norm_num_groups": 8,
    },
    vae={"block_out_channels": (16, 32, 72, 80), "norm_num_groups": 8},
    vision=_NARROW_VIT,
    texts=(_NARROW_CLIP_L,),
    pixels=256,
    batch=4,
    true_flops=_SD15_FLOPS,
)
NARROW_SDXL = Size(
    name="Stable Diffusion XL at an eighth of its width",
    recipe="sdxl-global",
    unet={
        **_SDXL,
        "block_out_channels": (40, 80, 160),
        "cross_attention_dim": 256,
        "attention_head_dim": (1, 1, 2),
        "norm_num_groups": 8,
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 352,
    },
    vae={"block_out_channels": (16, 32, 64, 64), "norm_num_groups": 8, "scaling_factor": 0.13025},
    vision=_NARROW_VIT,
    texts=(_NARROW_CLIP_L, _NARROW_CLIP_G),
    pixels=256,
    batch=2,
    true_flops=_SDXL_FLOPS,
)


@dataclass
class Models:
    """All parts in single precision, frozen, on one device."""

    unet: Any
    vae: Any
    vision: Any
    texts: tuple[Any, ...]
    tokenizer: CLIPTokenizer
    scheduler: DDPMScheduler
    processor: CLIPImageProcessor

    def pipeline(self) -> Any:
        """The parts in diffusers' pipeline."""
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
        from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

        parts: dict[str, Any] = {"vae": self.vae, "unet": self.unet, "scheduler": self.scheduler}
        parts |= {"text_encoder": self.texts[0], "tokenizer": self.tokenizer}
        if len(self.texts) == 2:
            parts |= {"text_encoder_2": self.texts[1], "tokenizer_2": self.tokenizer}
            return StableDiffusionXLPipeline(**parts)
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return StableDiffusionPipeline(**parts)


def build_models(size: Size, device: torch.device) -> Models:
    """Random weights, the same ones every time on the same kind of device."""
    torch.manual_seed(0)
    with device:
        unet = UNet2DConditionModel(sample_size=size.pixels // 8, **size.unet)
        vae = AutoencoderKL(**_VAE, sample_size=size.pixels, **size.vae)
        vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**size.vision))
        texts = tuple(_text_encoder(config, number) for number, config in enumerate(size.texts))
    for part in (unet, vae, vision, *texts):
        part.requires_grad_(False).eval()
    return Models(unet, vae, vision, texts, _tokenizer(), _scheduler(), CLIPImageProcessor())


def _text_encoder(settings: dict[str, Any], number: int) -> nn.Module:
    ends = VOCABULARY - 1
    words: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "bos_token_id": ends - 1,
        "eos_token_id": ends,
        "pad_token_id": ends,
    }
    config = CLIPTextConfig(**settings, **words)
    return (CLIPTextModel if number == 0 else CLIPTextModelWithProjection)(config)


def _scheduler() -> DDPMScheduler:
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    return DDPMScheduler(**noise, steps_offset=1, clip_sample=False)


def _tokenizer() -> CLIPTokenizer:
    """Letters and no merges: a text is spelled, and filled up to the 77 tokens that every text takes."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: number for number, word in enumerate(words)}
    vocabulary |= {"<|startoftext|>": VOCABULARY - 2, "<|endoftext|>": VOCABULARY - 1}
    with tempfile.TemporaryDirectory() as folder:
        CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TEXT_LENGTH).save_pretrained(folder)
        return CLIPTokenizer.from_pretrained(folder)
