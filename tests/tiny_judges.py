"""Tiny networks that judge: a whole CLIP in its folder, a DINO, and a table of faces."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, ViTConfig, ViTModel

from imprompt.encoders.preprocess import prepare_pixels
from imprompt.evaluation.judges import DinoJudge
from tests import tiny

SIDE = 32


def clip_folder(folder: Path) -> Path:
    """A tiny CLIP with both halves, its tokenizer and its processor, as a hub repository holds them."""
    torch.manual_seed(21)
    tokenizer = tiny.tokenizer()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 16, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": 8,
    }  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    model.save_pretrained(folder)
    tokenizer.model_max_length = 16
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(
        folder
    )
    return folder


def load_clip(folder: Path) -> tuple[Any, Any, Any]:
    """The same as transformers loads it."""
    model = CLIPModel.from_pretrained(folder).eval()
    return model, CLIPImageProcessorPil.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)


def vit() -> ViTModel:
    """A tiny DINO."""
    torch.manual_seed(22)
    config = ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=56
    )
    return ViTModel(config, add_pooling_layer=False).eval()


def dino_pixels(paths: Sequence[Path]) -> Tensor:
    """Pictures as DINO sees them."""
    return torch.stack([prepare_pixels(Image.open(path), DinoJudge.published, "crop") for path in paths])


class FacesOf:
    """A judge who knows the faces of pictures by their names."""

    def __init__(self, known: dict[str, Tensor]) -> None:
        self.known = known

    def faces(self, paths: Sequence[Path]) -> list[Tensor | None]:
        return [self.known.get(path.name) for path in paths]
