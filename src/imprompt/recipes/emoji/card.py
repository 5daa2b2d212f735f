"""The texts that travel with the bundle: a model card, and the attribution that the drawings' licences ask for."""

import re
from typing import Any

from imprompt.emoji.styles import STYLES
from imprompt.recipes.emoji.recipe import recipe

_CARD = """---
license: cc-by-4.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [image-prompt, ip-adapter, emoji]
---

# imprompt emoji

A text-to-image model in Stable Diffusion's shape, small enough to travel inside a package, with two image prompt
adapters, a ControlNet, a T2I-Adapter and a LoRA. It was trained to draw things (animals, food, places, activities,
objects) as 64 x 64 pictures in eight emoji styles; how well it does is measured below.

| part | class | what it is |
|---|---|---|
| `text_encoder`, `tokenizer` | `CLIPTextModel`, `CLIPTokenizer` | 3 layers of width 192, 24 tokens, 2,048 BPE entries |
| `image_encoder` | `CLIPVisionModelWithProjection` | 4 layers of width 192, 64 pixels, patches of 8 |
| `vae` | `AutoencoderTiny` | 64 x 64 x 3 to 8 x 8 x 8 |
| `unet` | `UNet2DConditionModel` | channels 96 and 192, cross-attention at both levels, seven sites |
| `adapters/ip-adapter_emoji.safetensors` | | 4 tokens of the pooled embedding |
| `adapters/ip-adapter-plus_emoji.safetensors` | | 16 tokens of the patches of the penultimate layer |
| `controlnet` | `ControlNetModel` | follows edges: white lines on black |
| `t2i_adapter` | `T2IAdapter` | follows a grid of 4 x 4 mean colours |
| `lora` | peft LoRA of rank 8 | draws in sepia: brown ink on cream paper |

Captions read "red apple, noto style emoji"; the words for the styles are {words}.

## Data

Drawings of 861 Unicode emoji in the styles below, rendered at 64 pixels on white; names and search words from CLDR by
way of emojibase (MIT). Five subjects in a hundred are held out in every style, and one in ten of the other (subject,
style) pairs; no part of this model saw them. `references/` holds some of the former.

{table}

## Recipe

`imprompt emoji data`, then `imprompt emoji train vision | autoencoder | unet | adapter-global | adapter-plus`, then
`imprompt emoji bundle`. The vision tower is taught by EfficientNet-Lite0 (ImageNet), and by subject and style as
classes, without texts; the denoiser predicts velocities under zero terminal SNR, and its text tower is trained with it;
the adapters are trained as in arXiv 2308.06721: frozen base, keys and values started from the text's, conditions
dropped ({dropped}; the paper drops each way 5 %), timesteps shifted towards strong noise (by {shift:g}; the paper's are
uniform). On the packaged base follow `imprompt emoji train controlnet | t2i-adapter | lora | finetune`, all without
image prompts; `imprompt emoji bundle --parts` packages the first three.
Digits behind a stage's name are the first of the hash of the base that it was trained on. Rows that say "before", and
stages that the recipe no longer has, are of earlier runs.

{figures}

## Measured quality

{quality}

## Licence

The weights are offered under CC-BY-4.0, the most demanding licence among the drawings; see `NOTICE`.
"""

_NOTE = """The text alone names subjects of the training set; references are held out of training. Intervals are over
subjects. Chance of a style is that of always drawing in the style that is commonest among the references. How often the
probe knows the style of a real picture stands in its own rows."""


def model_card(figures: dict[str, dict[str, Any]], quality: str) -> str:
    """README of the bundle.

    Args:
        figures: Last log line of every stage.
        quality: Markdown table of the measurements on held-out pictures; empty where none were made.
    """
    return _CARD.format(
        words=", ".join(f'"{style.word}"' for style in STYLES),
        table=_style_table(),
        dropped=_dropped(),
        shift=recipe("global").objective.timestep_shift,
        figures=_figure_table(figures),
        quality=f"{quality.strip()}\n\n{_NOTE}" if quality else "Not measured yet: run `imprompt emoji quality`.",
    )


def notice() -> str:
    """Who drew what the model learnt from, and under which licence."""
    lines = [f"* {style.author}: {style.licence}, from the npm package {style.package}" for style in STYLES]
    return (
        "The weights in this folder were trained on, and the pictures in references/ are, drawings by\n\n"
        + "\n".join(lines)
        + "\n\nrendered at 64 x 64 pixels on white. Names and search words of the subjects come from the Unicode\n"
        "CLDR, through the npm package emojibase-data (MIT). Those in lora/ were trained on the same\n"
        "drawings recoloured in brown and cream. The vision tower was distilled from EfficientNet-Lite0 (Apache-2.0).\n"
        "Licence texts: https://www.apache.org/licenses/LICENSE-2.0,\n"
        "https://creativecommons.org/licenses/by/4.0/, https://opensource.org/license/mit.\n"
    )


def _dropped() -> str:
    """How often training drops which condition, in words."""
    dropout = recipe("global").dropout
    return f"the image {dropout.image:.0%}, the text {dropout.text:.0%}, both {dropout.both:.0%}".replace("%", " %")


def _style_table() -> str:
    rows = [f"| {style.word} | {style.author} | {style.licence} | `{style.package}` |" for style in STYLES]
    return "\n".join(["| word | drawings | licence | package |", "|---|---|---|---|", *rows])


def _figure_table(figures: dict[str, dict[str, Any]]) -> str:
    rows = [
        f"| {name} | {last['step']:,} | {last['samples']:,} | {last['loss']:.3f} |" for name, last in figures.items()
    ]
    return "\n".join(["| stage | steps | pictures seen | last loss |", "|---|---|---|---|", *rows])


def read_figures(card: str) -> dict[str, dict[str, Any]]:
    """Figures of the stages as `model_card` wrote them into a card."""
    rows = re.findall(r"^\| ([\w, -]+) \| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \|$", card, re.MULTILINE)
    return {
        name: {"step": int(steps.replace(",", "")), "samples": int(samples.replace(",", "")), "loss": float(loss)}
        for name, steps, samples, loss in rows
    }


def read_quality(card: str) -> str:
    """Table of measured quality as `model_card` wrote it into a card; empty where none was."""
    section = card.partition("## Measured quality")[2].partition("## Licence")[0]
    return "\n".join(line for line in section.splitlines() if line.startswith("|"))
