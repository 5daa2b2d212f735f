"""Draws the pictures of `compose.md` with the embedded model: `python docs/guide/draw.py`, a few minutes on a CPU."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

import imprompt
from imprompt import ImagePrompt, Request, emoji
from imprompt.core.chart import bar_chart
from imprompt.core.files import atomic_write
from imprompt.core.images import load_image
from imprompt.core.sheet import contact_sheet
from imprompt.prompts import Box, Noise, Polygon, TextRegion
from imprompt.prompts.blocks import PRESETS, block_factors, forward_blocks

HERE = Path(__file__).parent
PICTURES = emoji.reference_pictures()
FLAMINGO, VOLCANO = PICTURES["flamingo, noto"], PICTURES["volcano, firefox"]
BURGER, TEAPOT = PICTURES["hamburger, noto"], PICTURES["teapot, flat"]
LEFT, RIGHT = Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 1.0, 1.0)
SEEDS = (1, 2)
CELL = 96

SDXL = [
    *(f"down_blocks.{block}.attentions.{number}" for block in (1, 2) for number in (0, 1)),
    "mid_block.attentions.0",
    *(f"up_blocks.{block}.attentions.{number}" for block in (0, 1) for number in (0, 1, 2)),
]

Column = tuple[str, list[ImagePrompt]]

SHEETS: dict[str, tuple[str, Sequence[Column]]] = {
    "blocks": (
        "a house",
        [
            (name, [ImagePrompt(FLAMINGO, blocks=name)])
            for name in ("linear", "ease out", "strong style", "style", "composition", "precise style")
        ],
    ),
    "time": (
        "a house",
        [
            ("whole run", [ImagePrompt(FLAMINGO)]),
            ("first half", [ImagePrompt(FLAMINGO, end=0.5)]),
            ("second half", [ImagePrompt(FLAMINGO, start=0.5)]),
            ("from noise 0.5", [ImagePrompt(FLAMINGO, start=0.5, unit="noise")]),
            ("ease fall", [ImagePrompt(FLAMINGO, curve="ease fall")]),
        ],
    ),
    "several": (
        "",
        [
            ("one", [ImagePrompt(FLAMINGO)]),
            ("other", [ImagePrompt(VOLCANO)]),
            ("concat", [ImagePrompt([FLAMINGO, VOLCANO])]),
            ("weights 1, 0.3", [ImagePrompt([FLAMINGO, VOLCANO], image_weights=[1.0, 0.3])]),
            ("average", [ImagePrompt([FLAMINGO, VOLCANO], combine="average")]),
            ("two prompts", [ImagePrompt(FLAMINGO, weight=0.5), ImagePrompt(VOLCANO, weight=0.5)]),
        ],
    ),
    "negatives": (
        "",
        [
            ("none", [ImagePrompt(BURGER)]),
            ("fade", [ImagePrompt(BURGER, negative=Noise(kind="fade", strength=0.6))]),
            ("shuffle", [ImagePrompt(BURGER, negative=Noise(kind="shuffle"))]),
            ("a picture", [ImagePrompt(BURGER, negative=VOLCANO)]),
        ],
    ),
    "regions": (
        "",
        [
            ("left half", [ImagePrompt(FLAMINGO, mask=LEFT)]),
            ("each its half", [ImagePrompt([FLAMINGO, TEAPOT], mask=[LEFT, RIGHT])]),
            ("feathered", [ImagePrompt([FLAMINGO, TEAPOT], mask=[LEFT, RIGHT], feather=0.15)]),
            ("triangle", [ImagePrompt(VOLCANO, mask=Polygon([(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)]))]),
        ],
    ),
    "attention": (
        "a house",
        [
            *(
                (name, [ImagePrompt(FLAMINGO, weight=0.7, attention=name)])
                for name in ("values", "keys and values", "norm matched", "joint softmax")
            ),
            ("joint, weight 0.1", [ImagePrompt(FLAMINGO, weight=0.1, attention="joint softmax")]),
            ("joint, weight 0.01", [ImagePrompt(FLAMINGO, weight=0.01, attention="joint softmax")]),
        ],
    ),
}


SUN, FISH = TextRegion("a yellow sun", LEFT), TextRegion("a blue fish", RIGHT)
TEXTS: Sequence[tuple[str, dict[str, object]]] = [
    ("a yellow sun", {"prompt": "a yellow sun"}),
    ("a blue fish", {"prompt": "a blue fish"}),
    ("sun | fish", {"regions": [SUN, FISH]}),
    ("feathered", {"regions": [replace(SUN, feather=0.15), replace(FISH, feather=0.15)]}),
    ("sun, fish 0.3", {"prompt": "a yellow sun", "regions": [replace(FISH, weight=0.3)]}),
    ("picture | fish", {"image_prompts": [ImagePrompt(BURGER, mask=LEFT)], "regions": [FISH]}),
]


def wide() -> Image.Image:
    """A reference that is no square: two pictures side by side."""
    both = Image.new("RGB", (256, 128), "white")
    for number, path in enumerate((FLAMINGO, TEAPOT)):
        both.paste(load_image(path).resize((128, 128)), (128 * number, 0))
    return both


def framing() -> Sequence[Column]:
    """The same wide reference, framed in every way."""
    picture = wide()
    return [
        ("crop", [ImagePrompt(picture)]),
        ("focus at the left", [ImagePrompt(picture, focus=(0.0, 0.5))]),
        ("pad", [ImagePrompt(picture, fit="pad")]),
        ("stretch", [ImagePrompt(picture, fit="stretch")]),
        ("tile", [ImagePrompt(picture, fit="tile")]),
        ("pad, detail 2", [ImagePrompt(picture, fit="pad", detail=2)]),
    ]


def save(image: Image.Image, name: str) -> None:
    """Write a picture in few colours, which is small."""
    with atomic_write(HERE / "images" / f"{name}.png") as temporary:
        image.convert("RGB").quantize(128).save(temporary, format="PNG", optimize=True)


def sheet_of(pipe: Any, images: Any, columns: Sequence[tuple[str, dict[str, Any]]]) -> Image.Image:
    """A row a seed, a column for each of the requests."""
    requests = [Request(**said, seed=seed, steps=20, guidance_scale=3.0) for seed in SEEDS for _, said in columns]
    pictures = [result.images[0] for result in imprompt.generate(pipe, images, requests, batch_size=12)]
    count = len(columns)
    table = [pictures[row * count : (row + 1) * count] for row in range(len(SEEDS))]
    return contact_sheet(table, [label for label, _ in columns], cell=CELL)


def main() -> None:
    """Draw everything."""
    charts = []
    for name in PRESETS:
        made = block_factors(name, SDXL, second=0.6)
        assert forward_blocks(SDXL) == tuple(SDXL)
        bars = [-n if swapped else p for p, n, swapped in zip(made.positive, made.negative, made.swapped, strict=True)]
        charts.append((name, bar_chart(bars, size=(140, 70))))
    rows = [charts[start : start + 6] for start in range(0, len(charts), 6)]
    labelled = [contact_sheet([[chart for _, chart in row]], [name for name, _ in row], cell=140) for row in rows]
    tall = labelled[0].copy().resize((labelled[0].width, sum(part.height for part in labelled)))
    tall.paste("white", (0, 0, *tall.size))
    for number, part in enumerate(labelled):
        tall.paste(part, (0, sum(other.height for other in labelled[:number])))
    save(tall, "presets")

    pipe = imprompt.load_pipeline()
    with imprompt.attach(pipe, imprompt.load_adapter(emoji.adapter_file())) as images:
        for name, (text, columns) in {**SHEETS, "framing": ("", framing())}.items():
            said = [(label, {"prompt": text, "image_prompts": prompts}) for label, prompts in columns]
            save(sheet_of(pipe, images, said), name)
        save(sheet_of(pipe, images, TEXTS), "texts")


if __name__ == "__main__":
    main()
