"""The attentions of known UNets by number and by path: files of some tools number them, files of others name them.

Numbers are positions in the order down, up, mid, self-attentions included (tencent-ailab/IP-Adapter at 62e4af9,
`ip_adapter.py`), which is neither the order of the forward pass nor the alphabet.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

from imprompt.adapter.families.unet import BLOCK_ORDER

PATH = rf"(?:{'|'.join(BLOCK_ORDER)})\.[\w.]*?\.attn[12]"  # of an attention in a UNet

# Block, transformers in it, layers in each, width of its attentions.
_SD1 = (
    ("down_blocks.0", 2, 1, 320),
    ("down_blocks.1", 2, 1, 640),
    ("down_blocks.2", 2, 1, 1280),
    ("up_blocks.1", 3, 1, 1280),
    ("up_blocks.2", 3, 1, 640),
    ("up_blocks.3", 3, 1, 320),
    ("mid_block", 1, 1, 1280),
)
_SDXL = (
    ("down_blocks.1", 2, 2, 640),
    ("down_blocks.2", 2, 10, 1280),
    ("up_blocks.0", 3, 10, 1280),
    ("up_blocks.1", 3, 2, 640),
    ("mid_block", 1, 10, 1280),
)
_BLOCKS = {"sd1": _SD1, "sd2": _SD1, "sdxl": _SDXL, "kolors": _SDXL, "kolors-text": _SDXL}
_TOKEN_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}


@lru_cache
def attention_paths(family: str) -> dict[int, str]:
    """Path of every attention of a family's UNet by its number; empty for families of other shapes."""
    layers = [path for path, _ in _layers(family)]
    return {2 * number + kind: f"{path}.attn{kind + 1}" for number, path in enumerate(layers) for kind in (0, 1)}


@lru_cache
def site_widths(family: str) -> dict[int, int]:
    """Width of every cross-attention of a family's UNet by its number."""
    return {2 * number + 1: width for number, (_, width) in enumerate(_layers(family))}


def family_of_shape(token_width: int, widths: dict[int, int]) -> str:
    """The family whose UNet has exactly these cross-attentions; "unet" if none has."""
    family = _TOKEN_WIDTHS.get(token_width)
    return family if family is not None and site_widths(family) == widths else "unet"


def missing_sites(token_width: int, widths: dict[int, int]) -> dict[int, str]:
    """What a file lacks that has some of a known UNet's cross-attentions, each of the right width, and no others."""
    family = _TOKEN_WIDTHS.get(token_width)
    if family is None or len(widths) < 2:
        return {}
    known, paths = site_widths(family), attention_paths(family)
    if not widths.items() < known.items():
        return {}
    return {number: paths[number] for number in known if number not in widths}


def number_paths(paths: Iterable[str]) -> dict[str, int]:
    """The number of every attention among those that a file names.

    Paths that a known UNet has are numbered as there, so that a missing layer leaves a gap. A UNet of its own shape is
    taken to be whole: its layers are counted in checkpoint order, two attentions in each.
    """
    found = set(paths)
    for family in ("sd1", "sdxl"):
        numbers = {path: number for number, path in attention_paths(family).items()}
        if found <= numbers.keys() and 2 * len(_stems(found)) > len(_stems(numbers)):
            return {path: numbers[path] for path in found}
    numbers = {stem: 2 * number for number, stem in enumerate(_stems(found))}
    return {path: numbers[path[:-1]] + int(path[-1]) - 1 for path in found}


def _stems(paths: Iterable[str]) -> list[str]:
    """The layers that attentions belong to, in checkpoint order: everything before the last figure of `attn1`."""
    return sorted({path[:-1] for path in paths}, key=_order)


def _order(path: str) -> tuple[int, tuple[int, ...]]:
    return BLOCK_ORDER.index(path.partition(".")[0]), tuple(int(figure) for figure in re.findall(r"\.(\d+)", path))


def _layers(family: str) -> list[tuple[str, int]]:
    return [
        (f"{block}.attentions.{transformer}.transformer_blocks.{layer}", width)
        for block, transformers, layers, width in _BLOCKS.get(family, ())
        for transformer in range(transformers)
        for layer in range(layers)
    ]
