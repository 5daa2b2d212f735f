"""Everything that a prompt can say, on hosts: batch rows equal single runs, and each mechanism does what it says."""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from imprompt.adapter.attach import attach
from imprompt.adapter.attention import matched_length
from imprompt.core.errors import ConditioningError, PromptError
from imprompt.core.images import image_hash
from imprompt.generation.region_texts import resolve_texts
from imprompt.generation.resolve import resolve
from imprompt.prompts.blocks import PRESETS
from imprompt.prompts.embeds import COMBINES
from imprompt.prompts.image_prompt import ATTENTIONS, ImagePrompt
from imprompt.prompts.masks import Box, Polygon
from imprompt.prompts.noise import NOISES, Noise
from imprompt.prompts.schedule import CURVES
from imprompt.prompts.text_region import TextRegion
from tests import tiny

KINDS = ("linear", "resampler")
STEPS = 5
LEFT, RIGHT = Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 1.0, 1.0)


class Source:
    """Features that depend on the picture alone."""

    def __init__(self, adapter):
        self.adapter = adapter

    def features(self, images, fit):
        return torch.cat([_features_of(self.adapter, int(image_hash(image)[:6], 16)) for image in images])

    def null_features(self):
        return _features_of(self.adapter, -100)


@lru_cache(maxsize=4096)
def _features_of(adapter, seed):
    return tiny.features(adapter, seed=seed)


class Bench:
    """A pipeline in the middle of a run, and its UNet called with chosen rows and both halves of guidance."""

    def __init__(self, family="small", **options):
        self.pipe = tiny.pipeline(family=family)
        self.adapters = [tiny.adapter(self.pipe.unet, kind) for kind in KINDS]
        self.images = attach(self.pipe, *self.adapters, guidance="cfg", **options)
        self.pipe.scheduler.set_timesteps(STEPS)
        labels = {site.index: site.block for site in self.images.sites}
        self.blocks = [[labels[index] for index in adapter.spec.site_indices] for adapter in self.adapters]

    def output(self, rows, step=0, places=None, regions=()):
        """Negative and positive half [2, rows, ...] for rows of prompts that stand at `places` of the batch."""
        places = list(range(len(rows))) if places is None else places
        sources = [Source(adapter) for adapter in self.adapters]
        conditioning = resolve(rows, self.adapters, sources, size=(32, 32), blocks=self.blocks)
        self.images.set(replace(conditioning, texts=resolve_texts(regions, size=(32, 32))))
        inputs = tiny.host_inputs(self.pipe.unet, 8)
        inputs["timestep"] = self.pipe.scheduler.timesteps[step]
        chosen = [half * 4 + place for half in (0, 1) for place in places]
        picked = {key: value[chosen] if value.ndim else value for key, value in inputs.items()}
        return tiny.call(self.pipe.unet, picked).unflatten(0, (2, len(places)))


@pytest.fixture(scope="module", params=[True, False], ids=["fused", "taps"])
def bench(request):
    made = Bench(fuse=request.param)
    yield made
    made.images.detach()


def picture(seed=1, size=(32, 32)):
    return tiny.picture(seed=seed, size=size)


# Prompts at random ---------------------------------------------------------------------------------------------------

WEIGHTS = st.sampled_from([-0.5, 0.0, 0.3, 1.0, 1.7])
PICTURES = st.sampled_from([picture(seed, size) for seed in range(4) for size in ((32, 32), (40, 24), (24, 72))])
ONE_MASK = st.sampled_from(
    [
        LEFT,
        RIGHT,
        Polygon([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]),
        *((tiny.rand(side, side, seed=side) > 0).float() for side in (8, 12, 16)),
    ]
)
BLOCKS = st.none() | st.sampled_from([*PRESETS, "0:1.0, 2:0.5", {"up": 0.5}, {1: -1.0}])
CURVE = st.just("constant") | st.sampled_from([*CURVES, (1.0, 0.0, 0.5), [0.2] * STEPS])
NEGATIVE = st.none() | st.sampled_from(
    [picture(6), picture(7), *(Noise(kind=kind, strength=0.7, seed=seed) for kind in NOISES for seed in (0, 1))]
)


@st.composite
def prompts(draw):
    several = draw(st.lists(PICTURES, min_size=1, max_size=3))
    start, end = sorted(draw(st.lists(st.integers(0, 10), min_size=2, max_size=2, unique=True)))
    way = draw(st.sampled_from(["combine", "masks", "tile", "detail", "plain"]))
    fields = {
        "weight": draw(WEIGHTS),
        "adapter": draw(st.integers(0, 1)),
        "blocks": draw(BLOCKS),
        "second_weight": draw(st.none() | WEIGHTS),
        "start": start / 10,
        "end": end / 10,
        "unit": draw(st.sampled_from(["steps", "noise"])),
        "curve": draw(CURVE),
        "negative": draw(NEGATIVE),
        "attention": draw(st.sampled_from(ATTENTIONS)),
        "fit": draw(st.sampled_from(["crop", "pad", "stretch"])),
        "focus": (0.2, 0.9),
        "mask": draw(st.none() | ONE_MASK),
        "feather": draw(st.sampled_from([0.0, 0.1])),
        "image_weights": draw(st.none() | st.just([0.4, 1.0, 1.3][: len(several)])),
    }
    match way:
        case "combine":
            fields["combine"] = draw(st.sampled_from(COMBINES))
        case "masks":
            fields["mask"] = draw(st.lists(ONE_MASK, min_size=len(several), max_size=len(several)))
        case "tile":
            fields["fit"] = "tile"
        case "detail":
            fields |= {"detail": 2, "detail_weight": 0.6}
    if fields["attention"] == "joint softmax":  # of which nobody has less than nothing
        fields |= {name: abs(fields[name] or 0.0) for name in ("weight", "second_weight")}
        fields["blocks"] = None if isinstance(fields["blocks"], dict) else fields["blocks"]
    return {"image": several, **fields}  # data: made a prompt in the test, whose types are checked at random


@st.composite
def regions(draw):
    """Texts of different lengths; data, as `prompts`."""
    length, start = draw(st.sampled_from([3, tiny.TEXT_LENGTH, 21])), draw(st.sampled_from([0.0, 0.4]))
    return {
        "embeds": tiny.rand(length, tiny.TEXT_WIDTH, seed=draw(st.integers(0, 3))),
        "mask": draw(ONE_MASK),
        "weight": draw(st.sampled_from([0.0, 0.4, 1.0])),
        "feather": draw(st.sampled_from([0.0, 0.1])),
        "start": start,
        "end": draw(st.sampled_from([0.7, 1.0])),
        "unit": draw(st.sampled_from(["steps", "noise"])),
        "curve": draw(st.sampled_from(["constant", "fall", (1.0, 0.0, 0.5)])),
    }


def batches_of(part):
    """Two rows with up to two parts each."""
    return st.lists(st.lists(part, max_size=2), min_size=2, max_size=2)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=200, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
          suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    rows=batches_of(prompts()),
    texts=batches_of(regions()),
    step=st.integers(0, STEPS - 1),
    number=st.integers(0, 1),
)
def test_batch_rows_equal_single_runs_with_everything_mixed(shared_bench, rows, texts, step, number):
    """Of two rows that are drawn, one or the other is also run alone."""
    rows = [[ImagePrompt(**fields) for fields in row] for row in rows]
    texts = [[TextRegion(**fields) for fields in row] for row in texts]
    together = shared_bench.output(rows, step, regions=texts)
    alone = shared_bench.output([rows[number]], step, places=[number], regions=texts[number : number + 1])
    assert torch.allclose(together[:, number], alone[:, 0], atol=2e-4, rtol=1e-3), number


@pytest.fixture(scope="module")
def shared_bench():
    made = Bench()
    yield made
    made.images.detach()


# Each mechanism ------------------------------------------------------------------------------------------------------


def test_precise_presets_move_the_reference_into_the_negative_half(bench):
    """Of the whole reference: the positive half follows nothing but the kept block, the negative half the rest."""
    off, on = (bench.output([[ImagePrompt(picture(), **values)]]) for values in ({"blocks": "0:0.0"}, {}))
    precise = bench.output([[ImagePrompt(picture(), blocks="precise composition", second_weight=0.0)]])
    plain = bench.output([[ImagePrompt(picture(), blocks="composition")]])
    assert torch.allclose(precise, plain, atol=1e-5)
    boosted = bench.output([[ImagePrompt(picture(), blocks="precise composition", second_weight=1.0)]])
    assert torch.allclose(boosted[1], plain[1], atol=1e-5)
    assert (boosted[0] - plain[0]).abs().max() > 1e-2
    # A negative half that reads the reference everywhere is the positive half of one that reads it as such.
    swapped = bench.output([[ImagePrompt(picture(), negative=picture())]])
    assert torch.allclose(swapped[1], on[1], atol=1e-5) and (swapped[0] - off[0]).abs().max() > 1e-2


def test_a_negative_changes_the_negative_half_alone(bench):
    plain = bench.output([[ImagePrompt(picture())]])
    for negative in (picture(5), Noise(), Noise(kind="shuffle", strength=0.4)):
        changed = bench.output([[ImagePrompt(picture(), negative=negative)]])
        assert torch.allclose(changed[1], plain[1], atol=1e-6)
        assert (changed[0] - plain[0]).abs().max() > 1e-3


def test_weights_of_pictures_act_in_proportion(bench):
    """A picture of weight 0 gives nothing, and weights of all together are the prompt's own."""
    one, other = picture(1), picture(2)
    halved = bench.output([[ImagePrompt([one, other], image_weights=[0.5, 0.5])]])
    assert torch.allclose(halved, bench.output([[ImagePrompt([one, other], weight=0.5)]]), atol=1e-5)
    first = bench.output([[ImagePrompt([one, other], image_weights=[1.0, 0.3])]])
    assert (first - halved).abs().max() > 1e-3


def test_masks_for_each_picture_are_prompts_of_their_own(bench):
    one, other = picture(1), picture(2)
    listed = bench.output([[ImagePrompt([one, other], mask=[LEFT, RIGHT], weight=0.7)]])
    written = [ImagePrompt(one, mask=LEFT, weight=0.7), ImagePrompt(other, mask=RIGHT, weight=0.7)]
    assert torch.allclose(listed, bench.output([written]), atol=1e-6)


def test_noise_levels_and_steps_are_two_clocks(bench):
    timesteps = bench.pipe.scheduler.timesteps
    level = 1 - float(timesteps[2]) / 1000
    plain = [bench.output([[]], step) for step in range(STEPS)]
    for unit, at in (("noise", level), ("steps", 2 / STEPS)):
        acts = [
            bool((bench.output([[ImagePrompt(picture(), start=at, unit=unit)]], step) - plain[step]).abs().max() > 1e-3)
            for step in range(STEPS)
        ]
        assert acts == [False, False, True, True, True], unit


def test_a_list_has_a_weight_for_each_step(bench):
    weights = [0.0, 0.3, 1.0, 0.5, 0.0]
    for step, weight in enumerate(weights):
        listed = bench.output([[ImagePrompt(picture(), curve=weights)]], step)
        assert torch.allclose(listed, bench.output([[ImagePrompt(picture(), weight=weight)]], step), atol=1e-5)
    named = bench.output([[ImagePrompt(picture(), curve=lambda x: 1 - x)]], 1)
    assert torch.allclose(named, bench.output([[ImagePrompt(picture(), weight=0.8)]], 1), atol=1e-5)


def test_keys_and_values_are_both_weighed(bench):
    """Against the written formula: softmax(q (w K)) (w V), and w C / 1280 with the penalty of a narrow block."""
    adapter = bench.adapters[0]
    branch = resolve([[ImagePrompt(picture())]], bench.adapters, [Source(a) for a in bench.adapters]).branches[0]
    for mode, penalty in (("keys and values", False), ("channel penalty", True)):
        bench.output([[ImagePrompt(picture(), weight=0.6, attention=mode)]])
        (bank,) = bench.images._banks
        for position, (keys, values) in enumerate(adapter.keys_values(branch.tokens)):
            weight = 0.6 * (adapter.spec.site_widths[position] / 1280 if penalty else 1.0)
            for stored, made in ((bank.keys, keys), (bank.values, values)):
                rows = [row.transpose(0, 1).flatten(1) for row in stored[position]]  # one a half of guidance
                assert any(torch.allclose(row, weight * made[0], atol=1e-6) for row in rows)
    scheduled = bench.output([[ImagePrompt(picture(), weight=0.6, attention="keys and values", end=0.5)]])
    constant = bench.output([[ImagePrompt(picture(), weight=0.6, attention="keys and values")]])
    assert torch.allclose(scheduled, constant, atol=1e-5)
    assert (constant - bench.output([[ImagePrompt(picture(), weight=0.6)]])).abs().max() > 1e-3


def test_norm_matching_brings_lengths_together():
    own, attended = tiny.rand(2, 3, 5, 4), 7 * tiny.rand(2, 3, 5, 4, seed=1)
    matched = matched_length(attended, own, torch.tensor([1.0, 0.0]).view(2, 1, 1, 1))
    lengths = [x[0].square().sum(dim=(0, 2)).sqrt() for x in (matched, own)]
    assert torch.allclose(*lengths, rtol=1e-4)
    assert torch.equal(matched[1], attended[1])


def test_norm_matching_does_not_depend_on_the_values_length(bench):
    """Ten times the values make ten times the branch, and the same picture where lengths are matched."""
    prompt = ImagePrompt(picture(), attention="norm matched")
    once = bench.output([[prompt]])
    adapter = bench.adapters[0]
    with torch.no_grad():
        for part in adapter.sites:
            part.to_v_ip.weight.mul_(10.0)
        tenfold = bench.output([[prompt]])
        plain = bench.output([[ImagePrompt(picture())]])
        for part in adapter.sites:
            part.to_v_ip.weight.div_(10.0)
    assert torch.allclose(once, tenfold, atol=1e-4)
    assert (plain - tenfold).abs().max() > 1e-2


def test_a_joint_softmax_shares_attention_out(bench):
    """Nothing at weight 0; of whole shares the order does not matter, and the image's values alone fill the rest."""
    plain = bench.output([[]])
    one, other = (ImagePrompt(picture(seed), attention="joint softmax", weight=seed * 0.4) for seed in (1, 2))
    assert torch.equal(bench.output([[ImagePrompt(picture(), weight=0.0, attention="joint softmax")]]), plain)
    together = bench.output([[one, other]])
    assert torch.allclose(together, bench.output([[other, one]]), atol=1e-5)
    apart = bench.output([[ImagePrompt(picture(1), weight=0.4), ImagePrompt(picture(2), weight=0.8)]])
    assert (together - apart).abs().max() > 1e-2 and (together - plain).abs().max() > 1e-2
    # One picture twice at half the weight is that picture, and so is one beside another of no weight.
    whole = bench.output([[one]])
    half = ImagePrompt(picture(1), attention="joint softmax", weight=0.2)
    assert torch.allclose(bench.output([[half, half]]), whole, atol=1e-5)
    listed = ImagePrompt([picture(1), picture(3)], attention="joint softmax", weight=0.4, image_weights=[1.0, 0.0])
    assert torch.allclose(bench.output([[listed]]), whole, atol=1e-5)


def test_a_joint_softmax_follows_blocks_steps_masks_and_halves(bench):
    fields = {"attention": "joint softmax", "weight": 0.7}
    for step, weight in enumerate([0.0, 0.3, 1.0]):
        listed = bench.output([[ImagePrompt(picture(), **fields, curve=[0.0, 0.3, 1.0, 0.5, 0.0])]], step)
        constant = bench.output([[ImagePrompt(picture(), **{**fields, "weight": 0.7 * weight})]], step)
        assert torch.allclose(listed, constant, atol=1e-5), step
    swapped = bench.output([[ImagePrompt(picture(), **fields, negative=picture())]])
    assert torch.allclose(swapped[1], bench.output([[ImagePrompt(picture(), **fields)]])[1], atol=1e-6)
    mixed = [[ImagePrompt(picture(), **fields, mask=LEFT)], [ImagePrompt(picture(2), mask=RIGHT)]]
    rows = bench.output(mixed)
    for number, row in enumerate(mixed):
        assert torch.allclose(rows[:, number], bench.output([row], places=[number])[:, 0], atol=1e-5), number


def test_negative_parts_of_a_joint_softmax_are_refused(bench):
    for values in ({"weight": -0.1}, {"second_weight": -1.0}, {"image_weights": [-1.0]}):
        with pytest.raises(PromptError, match="'joint softmax' shares attention out, so weights start at 0; got -"):
            ImagePrompt(picture(), attention="joint softmax", **values)
    with pytest.raises(ConditioningError, match="branch 0 has a negative scale in a joint softmax"):
        bench.output([[ImagePrompt(picture(), attention="joint softmax", blocks={0: -1.0})]])


def test_blocks_that_the_base_lacks_are_refused_when_set(bench):
    with pytest.raises(PromptError, match="this base has no block 40"):
        bench.output([[ImagePrompt(picture(), blocks="40:1.0")]])


@pytest.mark.parametrize("family", ["sd2", "sdxl", "kolors"])
def test_every_preset_on_every_family(family):
    host = tiny.unet(family)
    adapter = tiny.adapter(host)
    inputs = tiny.host_inputs(host, 2)
    with attach(host, adapter, guidance="cfg") as images:
        labels = [[site.block for site in images.sites]]
        plain = tiny.call(host, inputs)
        for name in PRESETS:
            images.set(resolve([[ImagePrompt(picture(), blocks=name)]], [adapter], [Source(adapter)], blocks=labels))
            output = tiny.call(host, inputs)
            assert output.isfinite().all() and (output - plain).abs().max() > 1e-3, name
