"""How strongly a reference acts in each block of a denoiser: one table of presets, and every way to write one's own.

Blocks are numbered in the order of the forward pass: down, middle, up in a UNet. Stable Diffusion 1.5 has 16 of them,
SDXL 11. The formulas are those under which people know the names (ComfyUI's weight types, InstantStyle's blocks); other
denoisers take SDXL's blocks by fraction of depth.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias, cast, get_args

from imprompt.core.errors import PromptError

Stage: TypeAlias = Literal["input", "middle", "output"]

# A preset's name, a text as "3:1.0, 6:0.8", a factor for every block, or factors by number, label, pattern or
# diffusers' nested names.
BlockWeights: TypeAlias = str | Sequence[float] | Mapping[Any, Any]

# Other programs whose ways a prompt may ask for.
Compat: TypeAlias = Literal["comfy-ipadapter-plus"]
COMPAT: tuple[Compat, ...] = get_args(Compat)

SDXL, SD15 = 11, 16  # how many blocks each has
_MIDDLE = {SDXL: 4, SD15: 6}
_ORDER = ("down_blocks", "mid_block", "up_blocks")
_NUMBERED = re.compile(r"\s*(\d+)\s*:\s*([-+.\w]+)\s*")


@dataclass(frozen=True, kw_only=True)
class BlockFactors:
    """How strongly a reference acts in every block.

    Attributes:
        positive: strength in each block.
        negative: the same in the negative half of guidance.
        swapped: where the negative half reads the reference in place of what it is to read.
    """

    positive: tuple[float, ...]
    negative: tuple[float, ...]
    swapped: tuple[bool, ...]


@dataclass(frozen=True)
class _Part:
    """Some blocks of a preset: a factor on weight or second weight; swapped into the negative half or not."""

    blocks: Sequence[int]
    factor: float = 1.0
    is_second: bool = False
    is_swapped: bool = False


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One row of the table.

    Attributes:
        about: what it is for.
        formula: factor of block t of n in its stage; None where parts are named.
        sdxl: parts of SDXL's 11 blocks.
        sd15: parts of SD 1.5's 16 blocks; other denoisers use SDXL's.
    """

    about: str
    formula: Callable[[int, int, Stage], float] | None = None
    sdxl: tuple[_Part, ...] = ()
    sd15: tuple[_Part, ...] = ()


def _linear(_t: int, _n: int, _stage: Stage) -> float:
    return 1.0


def _ramp(fraction: float) -> float:
    return 0.05 + 0.95 * fraction


def _weak(weak: Stage) -> Callable[[int, int, Stage], float]:
    return lambda _t, _n, stage: 0.2 if stage == weak else 1.0


def _range(*bounds: tuple[int, int]) -> tuple[int, ...]:
    return tuple(number for first, last in bounds for number in range(first, last + 1))


_STYLE15 = _range((0, 3), (9, 15))
_ALL_BUT_3 = _range((0, 2), (4, 10))
_ALL_BUT_4_5 = _range((0, 3), (6, 15))

PRESETS: dict[str, Preset] = {
    "linear": Preset(about="the same in every block, as trained", formula=_linear),
    "ease in": Preset(about="strong at first, fading with depth", formula=lambda t, n, _: _ramp(1 - t / n)),
    "ease out": Preset(about="weak at first, growing with depth", formula=lambda t, n, _: _ramp(t / n)),
    "ease in-out": Preset(about="strongest in the middle", formula=lambda t, n, _: _ramp(1 - abs(t - n / 2) / (n / 2))),
    "reverse in-out": Preset(about="weakest in the middle", formula=lambda t, n, _: _ramp(abs(t - n / 2) / (n / 2))),
    "weak input": Preset(about="a fifth in the blocks before the middle", formula=_weak("input")),
    "weak middle": Preset(about="a fifth in the middle", formula=_weak("middle")),
    "weak output": Preset(about="a fifth in the blocks behind the middle", formula=_weak("output")),
    "strong middle": Preset(
        about="a fifth everywhere but in the middle",
        formula=lambda _t, _n, stage: 1.0 if stage == "middle" else 0.2,
    ),
    "style": Preset(about="how it is drawn, not what", sdxl=(_Part((6,)),), sd15=(_Part(_STYLE15),)),
    "composition": Preset(
        about="where things are, not how they are drawn",
        sdxl=(_Part((3,)),),
        sd15=(_Part((4,), 0.25), _Part((5,))),
    ),
    "strong style": Preset(about="everything but the layout", sdxl=(_Part(_ALL_BUT_3),), sd15=(_Part(_ALL_BUT_4_5),)),
    "style and composition": Preset(
        about="style by weight, layout by second_weight",
        sdxl=(_Part((6,)), _Part((3,), is_second=True)),
        sd15=(_Part(_STYLE15), _Part((4,), 0.25, True), _Part((5,), is_second=True)),
    ),
    "strong style and composition": Preset(
        about="layout by second_weight, everything else by weight",
        sdxl=(_Part(_ALL_BUT_3), _Part((3,), is_second=True)),
        sd15=(_Part(_ALL_BUT_4_5), _Part((4, 5), is_second=True)),
    ),
    "precise style": Preset(
        about="style by weight; the reference's layout is pushed away from, by second_weight",
        sdxl=(_Part((6,)), _Part((3,), 1.0, True, True)),
        sd15=(_Part(_STYLE15), _Part((4,), 0.25, True, True), _Part((5,), 1.0, True, True)),
    ),
    "precise composition": Preset(
        about="layout by weight; everything else of the reference is pushed away from, by second_weight",
        sdxl=(_Part((3,)), _Part((6,), 1.0, True, True), _Part(_range((0, 2), (4, 5), (7, 10)), 0.1, True, True)),
        sd15=(
            _Part((4,), 0.25),
            _Part((5,)),
            _Part((6, 7, 8), 0.1, True, True),
            _Part(_range((0, 3), (9, 15)), 1.0, True, True),
        ),
    ),
    "instantstyle": Preset(about="InstantStyle's blocks for style", sdxl=(_Part((6,)),), sd15=(_Part(_range((7, 9))),)),
    "instantstyle layout": Preset(
        about="InstantStyle's blocks for style and layout",
        sdxl=(_Part((3, 6)),),
        sd15=(_Part(_range((4, 9))),),
    ),
}

ALIASES = {
    "style transfer": "style",
    "strong style transfer": "strong style",
    "style transfer precise": "precise style",
    "composition precise": "precise composition",
    "ease in out": "ease in-out",
    "reverse in out": "reverse in-out",
}


def check_blocks(blocks: object) -> None:
    """Refuse, before any denoiser is known, what can be no block weights.

    Raises:
        PromptError: an unknown preset, a number that is none, or another kind of thing.
    """
    if isinstance(blocks, str):
        if _NUMBERED.match(blocks):
            _numbered(blocks)
        else:
            _preset(blocks)
    elif isinstance(blocks, Mapping):
        _check_values(cast(Mapping[Any, Any], blocks))
    elif isinstance(blocks, Sequence):
        for value in cast(Sequence[object], blocks):
            _check_factor(value)
    else:
        raise PromptError(f"blocks must be a preset, a text as '3:1.0, 6:0.8', a list or a mapping; got {blocks!r}.")


def block_factors(
    blocks: BlockWeights | None, labels: Sequence[str], *, weight: float = 1.0, second: float | None = None
) -> BlockFactors:
    """The strength at every site.

    Args:
        blocks: what the user asked; None for 1 everywhere.
        labels: the block of every site, in any order; several sites may share one.
        weight: what the factors multiply.
        second: the second weight, for presets that have two; that of `weight` if None.

    Raises:
        PromptError: it names blocks that there are not.
    """
    order = forward_blocks(labels)
    made = _factors(blocks, order, weight, weight if second is None else second)
    places = [order.index(label) for label in labels]
    return BlockFactors(
        positive=tuple(made.positive[place] for place in places),
        negative=tuple(made.negative[place] for place in places),
        swapped=tuple(made.swapped[place] for place in places),
    )


def without_middle(factors: BlockFactors, labels: Sequence[str]) -> BlockFactors:
    """The same with nothing in a UNet's middle block.

    ComfyUI_IPAdapter_plus patches ("middle", 1) since 2024-09-13 (b188a6c), and ComfyUI asks for ("middle", 0) alone:
    what people made with it since then has no reference there.

    Raises:
        PromptError: the base has no such block.
    """
    is_middle = [label.split(".")[0] == _ORDER[1] for label in labels]
    if not any(is_middle):
        raise PromptError(f"compat={COMPAT[0]!r} leaves out a UNet's middle block, and this base has none.")
    return BlockFactors(
        positive=tuple(0.0 if middle else factor for factor, middle in zip(factors.positive, is_middle, strict=True)),
        negative=tuple(0.0 if middle else factor for factor, middle in zip(factors.negative, is_middle, strict=True)),
        swapped=tuple(swap and not middle for swap, middle in zip(factors.swapped, is_middle, strict=True)),
    )


def forward_blocks(labels: Sequence[str]) -> tuple[str, ...]:
    """The different blocks in the order of the forward pass: checkpoints number a UNet's middle last."""
    different = dict.fromkeys(labels)
    return tuple(sorted(different, key=_stage_number))


def _stage_number(label: str) -> int:
    root = label.split(".")[0]
    return _ORDER.index(root) if root in _ORDER else len(_ORDER)


def _factors(blocks: BlockWeights | None, order: Sequence[str], weight: float, second: float) -> BlockFactors:
    if blocks is None:
        return _plain([weight] * len(order))
    if isinstance(blocks, str) and not _NUMBERED.match(blocks):
        return _of_preset(_preset(blocks), order, weight, second)
    if isinstance(blocks, str):
        return _plain([weight * factor for factor in _of_mapping(_numbered(blocks), order)])
    if isinstance(blocks, Mapping):
        flat = _flat(blocks, order)
        return _plain([weight * factor for factor in _of_mapping(flat, order)])
    if len(blocks) != len(order):
        raise PromptError(f"blocks has {len(blocks)} factors, this base {len(order)} blocks; give one for each.")
    return _plain([weight * factor for factor in blocks])


def _plain(factors: Sequence[float]) -> BlockFactors:
    return BlockFactors(positive=tuple(factors), negative=tuple(factors), swapped=(False,) * len(factors))


def _of_preset(preset: Preset, order: Sequence[str], weight: float, second: float) -> BlockFactors:
    count = len(order)
    if preset.formula is not None:
        return _plain([weight * preset.formula(t, count, _stage(t, order)) for t in range(count)])
    parts = preset.sd15 if _is_sd15(order) else preset.sdxl
    positive, negative, swapped = [0.0] * count, [0.0] * count, [False] * count
    for t in range(count):
        alike = {t} if _is_sd15(order) else _alike(t, count)
        chosen = [part for part in parts if alike & set(part.blocks)]
        if chosen:
            # Where a block stands for several of SDXL's, the plain ones count before the swapped.
            part = max(chosen, key=lambda each: (not each.is_swapped, each.factor))
            factor = part.factor * (second if part.is_second else weight)
            positive[t], negative[t], swapped[t] = 0.0 if part.is_swapped else factor, factor, part.is_swapped
    return BlockFactors(positive=tuple(positive), negative=tuple(negative), swapped=tuple(swapped))


def _is_sd15(order: Sequence[str]) -> bool:
    return len(order) == SD15 and _stage_number(order[0]) == 0


def _alike(t: int, count: int) -> set[int]:
    """Which of SDXL's blocks one of another denoiser stands for: those whose middles it spans, or the one it is in."""
    middles = {number: (number + 0.5) / SDXL for number in range(SDXL)}
    spanned = {number for number, middle in middles.items() if t / count <= middle < (t + 1) / count}
    return spanned or {math.floor((t + 0.5) / count * SDXL)}


def _stage(t: int, order: Sequence[str]) -> Stage:
    number = _stage_number(order[t])
    if number == len(_ORDER):  # no UNet: by depth
        places = _alike(t, len(order))
        number = 1 if _MIDDLE[SDXL] in places else 0 if max(places) < _MIDDLE[SDXL] else 2
    stages: tuple[Stage, ...] = ("input", "middle", "output")
    return stages[number]


def _preset(name: str) -> Preset:
    words = " ".join(name.lower().replace("_", " ").split())
    words = ALIASES.get(words, words)
    if words in PRESETS:
        return PRESETS[words]
    nearest = difflib.get_close_matches(words, [*PRESETS, *ALIASES], n=1, cutoff=0.0)
    raise PromptError(
        f"no preset {name!r} for blocks; did you mean {nearest[0]!r}? There are {', '.join(PRESETS)}; or write factors "
        "as '3:1.0, 6:0.8'."
    )


def _numbered(text: str) -> dict[int, float]:
    """ComfyUI's notation: blocks that are not named are off."""
    factors: dict[int, float] = {}
    for part in text.rstrip(" ,").split(","):
        match = _NUMBERED.fullmatch(part)
        try:
            number, factor = cast(re.Match[str], match).groups()
            factors[int(number)] = float(factor)
        except (AttributeError, ValueError):
            raise PromptError(
                f"blocks={text!r} cannot be read at {part.strip()!r}; write block:factor, as '3:1.0'."
            ) from None
    for factor in factors.values():
        _check_factor(factor)
    return factors


def _flat(blocks: Mapping[Any, Any], order: Sequence[str]) -> dict[Any, Any]:
    """Diffusers' nested names as patterns: {"up": {"block_0": [0, 1, 0]}}; everything else as it is."""
    flat: dict[Any, Any] = {}
    for key, value in blocks.items():
        if key not in ("down", "mid", "up"):
            flat[key] = value
            continue
        root = "mid_block" if key == "mid" else f"{key}_blocks"
        inner: Mapping[Any, Any] = cast(Mapping[Any, Any], value) if isinstance(value, Mapping) else {"": value}
        if isinstance(value, list | tuple) and key != "mid":  # for every block of this part of the UNet
            numbers = dict.fromkeys(label.split(".")[1] for label in order if label.startswith(f"{root}."))
            inner = dict.fromkeys(numbers, cast(Sequence[Any], value))
        for name, factors in inner.items():
            number = str(name).removeprefix("block_")
            _spread(flat, ".".join(part for part in (root, number) if part), factors, order)
    return flat


def _spread(flat: dict[Any, Any], prefix: str, factors: Any, order: Sequence[str]) -> None:
    """One factor for all attentions of a block, or a list with one for each."""
    if not isinstance(factors, Sequence) or isinstance(factors, str):
        flat[prefix] = factors
        return
    inside = [label for label in order if _matches(label, prefix)]
    given = cast(Sequence[Any], factors)
    if len(given) == 1:
        flat[prefix] = given[0]
    elif len(given) == len(inside):
        flat.update(zip(inside, given, strict=True))
    else:
        raise PromptError(f"blocks gives {len(given)} factors for {prefix!r}, which has {len(inside)} attentions.")


def _of_mapping(factors: Mapping[Any, Any], order: Sequence[str]) -> list[float]:
    found = [0.0] * len(order)
    for key, factor in factors.items():
        _check_factor(factor)
        places = [place for place, label in enumerate(order) if _names(key, place, label)]
        if not places:
            nearest = difflib.get_close_matches(str(key), order, n=1, cutoff=0.0)
            known = f"0 to {len(order) - 1}" if isinstance(key, int) or str(key).isdecimal() else repr(nearest[0])
            raise PromptError(f"this base has no block {key!r}; the nearest that it has is {known}.")
        for place in places:
            found[place] = float(factor)
    return found


def _names(key: Any, place: int, label: str) -> bool:
    return place == int(key) if isinstance(key, int) or str(key).isdecimal() else _matches(label, str(key))


def _matches(label: str, pattern: str) -> bool:
    return label == pattern or label.startswith(f"{pattern}.") or fnmatchcase(label, pattern)


def _check_values(blocks: Mapping[Any, Any]) -> None:
    for value in blocks.values():
        if isinstance(value, Mapping):
            _check_values(cast(Mapping[Any, Any], value))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            for part in cast(Sequence[Any], value):
                _check_factor(part)
        else:
            _check_factor(value)


def _check_factor(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise PromptError(f"a factor of blocks must be a finite number; got {value!r}.")
