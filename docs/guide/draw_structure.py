"""Draws the picture of `structure.md`: `python docs/guide/draw_structure.py`, some minutes on a CPU.

The fine-tuned base does not ship: `imprompt emoji train finetune` makes it first.
"""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.models.adapter import T2IAdapter
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image

import imprompt
from imprompt import ImagePrompt, emoji
from imprompt.core.files import atomic_write
from imprompt.core.images import load_image
from imprompt.core.sheet import contact_sheet
from imprompt.prompts import Box
from imprompt.recipes.emoji.paths import models_folder

TARGET = Path(__file__).parent / "images" / "structure.png"
PICTURES = {name: load_image(path) for name, path in emoji.reference_pictures().items()}
REFERENCES = [
    PICTURES[name]
    for name in (
        "flamingo, noto",
        "hamburger, noto",
        "blowfish, emojione",
        "barber pole, flat",
        "elephant, twemoji",
        "volcano, firefox",
    )
]
SHAPES = [
    PICTURES[name]
    for name in (
        "teapot, flat",
        "mouse face, 3d",
        "takeout box, noto",
        "koala, flat",
        "hot beverage, flat",
        "monkey face, noto",
    )
]
EDGES, GRIDS = [emoji.edges(shape) for shape in SHAPES], [emoji.colour_grid(shape) for shape in SHAPES]
LEFT, RIGHT = Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 1.0, 1.0)
ADAPTER = imprompt.load_adapter(emoji.adapter_file())
SEED = 1


def pipeline(kind: str = "", **parts: Any) -> Any:
    """A pipeline of the embedded model's parts; `kind` is the middle of a class's name in diffusers."""
    base = imprompt.load_pipeline()
    pipe = getattr(diffusers, f"StableDiffusion{kind}Pipeline").from_pipe(base, vae=base.vae, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, rows: list[list[ImagePrompt]] | None = None, **options: Any) -> list[Image.Image]:
    """One picture for each reference, from the images alone."""
    generators = [torch.Generator().manual_seed(SEED + number) for number in range(len(REFERENCES))]
    options = {"num_inference_steps": 20, "guidance_scale": 3.0, "generator": generators, **options}
    with imprompt.attach(pipe, ADAPTER, image_encoder=emoji.bundle_folder() / "image_encoder") as images:
        images.set(rows=rows or [[ImagePrompt(reference)] for reference in REFERENCES])
        return pipe([""] * len(REFERENCES), **options).images


def with_lora(pipe: Any) -> Any:
    """The same pipeline in sepia."""
    pipe.load_lora_weights(emoji.part_folder("lora"))
    return pipe


def together(controlnet: Any, t2i_adapter: Any) -> list[Image.Image]:
    """Edges, colours and LoRA at once; the T2I-Adapter's maps go into the denoiser's call by a hook."""
    pipe = with_lora(pipeline("ControlNet", controlnet=controlnet))
    with torch.no_grad():
        grids = torch.stack([torch.from_numpy(np.array(grid)).permute(2, 0, 1) / 255 for grid in GRIDS])
        maps = t2i_adapter(torch.cat([grids, grids]))  # both halves of guidance
    pipe.unet.register_forward_pre_hook(
        lambda unet, args, kwargs: (args, {**kwargs, "down_intrablock_additional_residuals": list(maps)}),
        with_kwargs=True,
    )
    return draw(pipe, image=EDGES, controlnet_conditioning_scale=1.5)


def inpainting() -> list[Image.Image]:
    """The right half of each shape drawn anew."""
    pipe = pipeline("Inpaint")
    pipe.unet.register_to_config(in_channels=4)  # see structure.md
    mask = Image.new("L", (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    return draw(pipe, image=SHAPES, mask_image=mask, strength=1.0)


def table() -> dict[str, list[Image.Image]]:
    """All rows."""
    controlnet = ControlNetModel.from_pretrained(emoji.part_folder("controlnet"))
    t2i_adapter = T2IAdapter.from_pretrained(emoji.part_folder("t2i_adapter"))
    blueprint = UNet2DConditionModel.from_pretrained(models_folder() / "unet_blueprint")
    neighbours = zip(REFERENCES, REFERENCES[1:] + REFERENCES[:1], strict=True)
    halves = [[ImagePrompt([one, other], mask=[LEFT, RIGHT])] for one, other in neighbours]
    return {
        "reference": REFERENCES,
        "shape": SHAPES,
        "its edges": EDGES,
        "its colours": GRIDS,
        "adapter alone": draw(pipeline()),
        "ControlNet": draw(pipeline("ControlNet", controlnet=controlnet), image=EDGES),
        "T2I-Adapter": draw(pipeline("Adapter", adapter=t2i_adapter), image=GRIDS),
        "LoRA": draw(with_lora(pipeline())),
        "fine-tuned base": draw(pipeline(unet=blueprint)),
        "all but that": together(controlnet, t2i_adapter),
        "image to image": draw(pipeline("Img2Img"), image=SHAPES, strength=0.5),
        "inpainting, right half": inpainting(),
        "regions: this and the next": draw(pipeline(), halves),
    }


def main() -> None:
    """Draw the sheet in few colours, which is small."""
    rows = table()
    sheet = contact_sheet(list(rows.values()), row_labels=list(rows), cell=96, gap=6)
    with atomic_write(TARGET) as temporary:
        sheet.quantize(88).save(temporary, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
