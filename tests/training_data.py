"""Pictures to train on, drawn here: shapes in colours, with what they are as captions; and tiny bases on disk."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from tests import tiny
from tests import tiny_transformers as wide

COLOURS = ("red", "green", "blue", "orange", "purple", "black", "teal", "brown")
SHAPES = ("ellipse", "rectangle")
ID_WIDTH = 512


def drawing(number: int, size: tuple[int, int] = (40, 40)) -> tuple[Image.Image, str]:
    """A shape on white, and what it is."""
    colour, shape = COLOURS[number % len(COLOURS)], SHAPES[number // len(COLOURS) % len(SHAPES)]
    image = Image.new("RGB", size, "white")
    width, height = size
    getattr(ImageDraw.Draw(image), shape)((width // 5, height // 5, width * 4 // 5, height * 4 // 5), fill=colour)
    return image, f"{colour} {shape}"


def picture_folder(folder: Path, count: int = 12, *, validation: int = 2, faces: bool = False) -> Path:
    """Pictures with `metadata.jsonl`: groups of one colour, the last ones for validation, face embeddings if wanted."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    for number in range(count):
        image, caption = drawing(number, (40, 40) if number % 3 else (48, 32))
        name = f"{number:03d}.png"
        image.save(folder / name)
        split = "validation" if number >= count - validation else "train"
        line = {"file_name": name, "text": caption, "group": caption.split()[0], "split": split}
        if faces:
            torch.save(torch.nn.functional.normalize(tiny.rand(ID_WIDTH, seed=number), dim=0), folder / f"{number}.pt")
            line["id_embed_file"] = f"{number}.pt"
        lines.append(line)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def base_folder(folder: Path, family: str) -> Path:
    """A tiny pipeline in diffusers' layout, and beside it in `encoder` a tiny image encoder."""
    if family == "sd3":  # with all of its encoders: diffusers opens no folder that lacks one
        pipe = wide.sd3_pipeline(with_texts=True, text_encoder_3=wide.t5(12), tokenizer_3=tiny.tokenizer())
    else:
        pipe = wide.flux_pipeline(with_texts=True) if family == "flux" else tiny.pipeline(family=family)
    pipe.save_pretrained(folder)
    encoder = folder / "image_encoder"
    tiny.vision_tower().save_pretrained(encoder)
    tiny.image_processor().save_pretrained(encoder)
    return folder
