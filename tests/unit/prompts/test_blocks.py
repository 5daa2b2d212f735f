"""Strength per block: every preset's published numbers, and every way to write one's own."""

import math

import pytest

from imprompt.core.errors import PromptError
from imprompt.prompts.blocks import ALIASES, PRESETS, block_factors, check_blocks, forward_blocks, without_middle

SD15 = [
    *(f"down_blocks.{block}.attentions.{number}" for block in (0, 1, 2) for number in (0, 1)),
    *(f"up_blocks.{block}.attentions.{number}" for block in (1, 2, 3) for number in (0, 1, 2)),
    "mid_block.attentions.0",  # as checkpoints number it: last
]
SDXL = [
    *(f"down_blocks.{block}.attentions.{number}" for block in (1, 2) for number in (0, 1)),
    *(f"up_blocks.{block}.attentions.{number}" for block in (0, 1) for number in (0, 1, 2)),
    "mid_block.attentions.0",
]
EMOJI = [
    *(f"down_blocks.{block}.attentions.0" for block in (0, 1)),
    *(f"up_blocks.{block}.attentions.{number}" for block in (0, 1) for number in (0, 1)),
    "mid_block.attentions.0",
]
FLUX = [f"transformer_blocks.{number}" for number in range(19)] + [
    f"single_transformer_blocks.{number}" for number in range(38)
]


def forward(blocks, labels, **options):
    """Strengths in the order of the forward pass: of both halves, and where they are swapped."""
    made = block_factors(blocks, labels, **options)
    places = [labels.index(label) for label in forward_blocks(labels)]
    return tuple([part[place] for place in places] for part in (made.positive, made.negative, made.swapped))


def positive(blocks, labels, **options):
    return pytest.approx(forward(blocks, labels, **options)[0], abs=6e-4)


def numbered(count, factors):
    return [factors.get(number, 0.0) for number in range(count)]


def test_the_middle_is_between_input_and_output():
    assert forward_blocks(SD15)[6] == forward_blocks(SDXL)[4] == "mid_block.attentions.0"
    assert forward_blocks(SDXL)[6] == "up_blocks.0.attentions.1"  # InstantStyle's style
    assert forward_blocks(SDXL)[3] == "down_blocks.2.attentions.1"  # and its layout
    assert forward_blocks(FLUX) == tuple(FLUX)


EASE_OUT_15 = [
    .05, .109, .169, .228, .287, .347, .406, .466, .525, .584, .644, .703, .762, .822, .881, .941,
]  # fmt: skip
EASE_OUT_XL = [.05, .136, .223, .309, .395, .482, .568, .655, .741, .827, .914]  # fmt: skip
EASE_IN_OUT_XL = [.05, .223, .395, .568, .741, .914, .914, .741, .568, .395, .223]  # fmt: skip


def test_curves_over_depth_are_the_published_ones():
    assert EASE_OUT_15 == positive("ease out", SD15)
    assert EASE_OUT_XL == positive("ease out", SDXL)
    assert EASE_IN_OUT_XL == positive("ease in-out", SDXL)
    assert [0.05 + 0.95 * (1 - t / 16) for t in range(16)] == positive("ease in", SD15)
    assert [0.05 + 0.95 * abs(t - 8) / 8 for t in range(16)] == positive("reverse in-out", SD15)
    assert [1.0] * 16 == positive("linear", SD15)
    assert [0.5 * factor for factor in EASE_OUT_XL] == positive("ease out", SDXL, weight=0.5)


@pytest.mark.parametrize(("labels", "middle"), [(SD15, 6), (SDXL, 4)])
def test_weak_and_strong_parts(labels, middle):
    before, behind = middle, len(labels) - middle - 1
    assert [0.2] * before + [1.0] * (1 + behind) == positive("weak input", labels)
    assert [1.0] * before + [0.2] + [1.0] * behind == positive("weak middle", labels)
    assert [1.0] * (before + 1) + [0.2] * behind == positive("weak output", labels)
    assert [0.2] * before + [1.0] + [0.2] * behind == positive("strong middle", labels)


STYLE_15 = dict.fromkeys([0, 1, 2, 3, *range(9, 16)], 1.0)
SETS = [
    ("style", {6: 1.0}, STYLE_15),
    ("composition", {3: 1.0}, {4: 0.25, 5: 1.0}),
    ("strong style", dict.fromkeys([*range(3), *range(4, 11)], 1.0), dict.fromkeys([*range(4), *range(6, 16)], 1.0)),
    ("style and composition", {3: 0.6, 6: 1.0}, {**STYLE_15, 4: 0.15, 5: 0.6}),
    (
        "strong style and composition",
        {**dict.fromkeys(range(11), 1.0), 3: 0.6},
        {**dict.fromkeys(range(16), 1.0), 4: 0.6, 5: 0.6},
    ),
    ("instantstyle", {6: 1.0}, {7: 1.0, 8: 1.0, 9: 1.0}),
    ("instantstyle layout", {3: 1.0, 6: 1.0}, dict.fromkeys(range(4, 10), 1.0)),
]


@pytest.mark.parametrize(("name", "sdxl", "sd15"), SETS, ids=[name for name, *_ in SETS])
def test_sets_of_blocks(name, sdxl, sd15):
    assert numbered(11, sdxl) == positive(name, SDXL, second=0.6)
    assert numbered(16, sd15) == positive(name, SD15, second=0.6)
    assert not any(forward(name, SDXL)[2]) and not any(forward(name, SD15)[2])


def test_precise_presets_swap_the_other_blocks_into_the_negative_half():
    found, negative, swapped = forward("precise style", SDXL, second=0.6)
    assert numbered(11, {6: 1.0}) == found and swapped == [t == 3 for t in range(11)]
    assert numbered(11, {3: 0.6, 6: 1.0}) == negative
    found, negative, swapped = forward("precise style", SD15, second=0.6)
    assert numbered(16, STYLE_15) == found and swapped == [t in (4, 5) for t in range(16)]
    assert numbered(16, {**STYLE_15, 4: 0.15, 5: 0.6}) == pytest.approx(negative)
    found, negative, swapped = forward("precise composition", SDXL, second=0.6)
    assert numbered(11, {3: 1.0}) == found and swapped == [t != 3 for t in range(11)]
    assert numbered(11, {**dict.fromkeys(range(11), 0.06), 3: 1.0, 6: 0.6}) == pytest.approx(negative)
    found, negative, swapped = forward("precise composition", SD15, second=0.6)
    assert numbered(16, {4: 0.25, 5: 1.0}) == found and swapped == [t not in (4, 5) for t in range(16)]
    wanted = {**dict.fromkeys(range(16), 0.6), 4: 0.25, 5: 1.0, **dict.fromkeys((6, 7, 8), 0.06)}
    assert numbered(16, wanted) == pytest.approx(negative)


def test_without_a_second_weight_it_is_the_first():
    assert forward("style and composition", SDXL, weight=0.7)[0] == numbered(11, {3: 0.7, 6: 0.7})


def test_other_denoisers_take_sdxl_by_fraction_of_depth():
    assert forward("style", EMOJI)[0] == [0, 0, 0, 0, 1, 0, 0]
    assert forward("composition", EMOJI)[0] == [0, 0, 1, 0, 0, 0, 0]
    style = forward("style", FLUX)[0]
    acting = [number for number, factor in enumerate(style) if factor]
    assert acting == list(range(acting[0], acting[-1] + 1))
    assert 6 / 11 < (acting[0] + 0.5) / 57 and (acting[-1] + 0.5) / 57 < 7 / 11
    weak = forward("weak middle", FLUX)[0]
    assert 0.2 in weak and weak[0] == weak[-1] == 1.0
    for name in PRESETS:
        for labels in (EMOJI, FLUX, FLUX[:3], SD15[:4]):
            made = block_factors(name, labels)
            assert len(made.positive) == len(labels) and all(map(math.isfinite, made.negative))
            assert any(made.positive), (name, labels)


def test_names_are_forgiving_and_old_ones_known():
    for alias, name in ALIASES.items():
        assert block_factors(alias, SDXL) == block_factors(name, SDXL)
    assert block_factors("Ease_In-Out", SDXL) == block_factors("ease in-out", SDXL)


@pytest.mark.parametrize(
    ("blocks", "factors"),
    [
        ("3:1.0, 6:0.8", {3: 1.0, 6: 0.8}),
        ("0:-1,10: 2e-1,", {0: -1.0, 10: 0.2}),
        ({3: 1.0, "6": 0.8}, {3: 1.0, 6: 0.8}),
        ({"up_blocks.0": 0.5}, {5: 0.5, 6: 0.5, 7: 0.5}),
        ({"up_blocks.*.attentions.1": 0.5, "mid_block": 1}, {4: 1, 6: 0.5, 9: 0.5}),
        ({"down_blocks.2.attentions.1": 1.0}, {3: 1.0}),
        ({"down": {"block_2": [0.0, 1.0]}, "up": {"block_0": [0.0, 1.0, 0.0]}}, {3: 1.0, 6: 1.0}),
        ({"down": 2, "mid": 3, "up": {"block_0": 4, "block_1": [5, 6, 7]}},
         {**dict.fromkeys(range(4), 2), 4: 3, 5: 4, 6: 4, 7: 4, 8: 5, 9: 6, 10: 7}),
        ({"down": [1, 2], "up": [0.5]}, {0: 1, 1: 2, 2: 1, 3: 2, **dict.fromkeys(range(5, 11), 0.5)}),
        ([0.1 * t for t in range(11)], {t: 0.1 * t for t in range(11)}),
    ],
)  # fmt: skip
def test_ones_own_blocks(blocks, factors):
    check_blocks(blocks)
    assert numbered(11, factors) == positive(blocks, SDXL)
    assert [2 * factor for factor in numbered(11, factors)] == positive(blocks, SDXL, weight=2.0)


def test_several_sites_of_a_block_act_alike():
    labels = [SDXL[0], SDXL[0], *SDXL[1:]]
    made = block_factors("ease out", labels)
    assert made.positive[0] == made.positive[1] and len(made.positive) == 12


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("styel", "no preset 'styel' for blocks; did you mean 'style'?"),
        ("3:x", "cannot be read at '3:x'"),
        ("3:1.0, six:0.8", "cannot be read at 'six:0.8'"),
        ("3:nan", "finite number; got nan"),
        ({3: math.inf}, "finite number; got inf"),
        ({"up": {"block_0": [0.0, "1"]}}, "finite number; got '1'"),
        ([1.0, None], "finite number; got None"),
        (3.0, "blocks must be a preset"),
    ],
)
def test_what_can_be_no_blocks_is_refused_at_once(blocks, message):
    with pytest.raises(PromptError, match=message.replace("?", r"\?")) as caught:
        check_blocks(blocks)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("11:1.0", "no block 11; the nearest that it has is 0 to 10"),
        ({"up_blocks.7": 1.0}, "no block 'up_blocks.7'; the nearest that it has is 'up_blocks"),
        ({"down": {"block_0": 1.0}}, "no block 'down_blocks.0'"),
        ({"up": {"block_0": [1.0, 2.0]}}, "2 factors for 'up_blocks.0', which has 3"),
        ([1.0] * 16, "blocks has 16 factors, this base 11"),
    ],
)
def test_blocks_that_the_base_lacks_are_refused(blocks, message):
    check_blocks(blocks)
    with pytest.raises(PromptError, match=message):
        block_factors(blocks, SDXL)


def test_compat_leaves_the_middle_out_and_nothing_else():
    for blocks in (None, "linear", "precise composition", "4:0.5, 6:1.0"):
        made = block_factors(blocks, SDXL, weight=0.7)
        left = without_middle(made, SDXL)
        for whole, part in (
            (made.positive, left.positive),
            (made.negative, left.negative),
            (made.swapped, left.swapped),
        ):
            assert part == tuple(
                type(value)(0) if label == "mid_block.attentions.0" else value
                for value, label in zip(whole, SDXL, strict=True)
            )
    assert block_factors(None, SDXL).positive != without_middle(block_factors(None, SDXL), SDXL).positive
    with pytest.raises(PromptError, match="this base has none"):
        without_middle(block_factors(None, ["0", "1"]), ["0", "1"])
