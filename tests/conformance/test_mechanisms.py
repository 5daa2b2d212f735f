"""Everything that a prompt can say, on transformers: a table of hosts, and of mechanisms that each does or refuses.

The same mechanisms on UNets: `test_compose.py`. A joint softmax against its formula at every place of every host:
`test_joint_softmax.py`. Masks likewise: `test_denoisers.py`.
"""

import copy
import dataclasses
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from imprompt.adapter.attach import attach
from imprompt.adapter.conditioning import Conditioning
from imprompt.adapter.families import family_named
from imprompt.adapter.spec import LinearKVSpec
from imprompt.core.errors import ConditioningError
from imprompt.core.images import image_hash
from imprompt.generation.resolve import resolve
from imprompt.prompts.image_prompt import ImagePrompt
from imprompt.prompts.masks import Box
from tests import tiny
from tests import tiny_transformers as transformers
from tests.denoisers import DENOISERS
from tests.denoisers.attached import random_adapter

# Hosts by their families' files, and beside them the published ways of acting on two of them.
HOSTS = {
    "FluxTransformer2DModel": "flux",
    "SD3Transformer2DModel": "sd3",
    "Flux2Transformer2DModel": "joint",
    "QwenImageTransformer2DModel": "joint",
    "Lumina2Transformer2DModel": "single stream",
    "CogView4Transformer2DModel": "single stream",
    "SanaTransformer2DModel": "cross-attention",
    "Kandinsky5Transformer3DModel": "cross-attention",
    "WanTransformer3DModel": "video",
    "HunyuanVideoTransformer3DModel": "video",
}
PUBLISHED = ("flux-xlabs", "flux-instantx", "flux-pulid", "sd3-instantx")

# What is refused, and why.
NO_JOINT = {
    **dict.fromkeys(("QwenImageTransformer2DModel", "Lumina2Transformer2DModel"), "are not known"),
    **dict.fromkeys(("CogView4Transformer2DModel", "flux-xlabs", "flux-pulid", "sd3-instantx"), "are not known"),
}
NO_MATCH = dict.fromkeys(("flux-xlabs", "flux-pulid"), "behind the block")
NO_KEYS = {"sd3-instantx": "norms its keys"}
LEFT, RIGHT = Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 1.0, 1.0)
STEP, STEPS = 1, 4  # where in its run a call is


class Bench:
    """A host in the middle of a run, called with two rows in both halves of guidance.

    Attributes:
        name: of the host's class, or of a published way.
        adapter: on it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_published = name in PUBLISHED
        if self.is_published:
            self.host: Any = transformers.host(name)
            self.adapter = transformers.adapter(name, self.host)
        else:
            self.host = DENOISERS[name].build()
            self.adapter = tiny.seeded(lambda: random_adapter(self.host), 1)
        self.family = family_named(self.adapter.spec.family)
        self.sites = self.family.sites(self.host)
        acts = {site.index: site.block for site in self.sites}
        self.labels = [acts[index] for index in self.adapter.spec.site_indices]
        self.images = attach(self.pipe(), self.adapter, guidance="cfg")

    def features(self, images: Any, _fit: Any = "crop") -> Tensor:
        """What a picture is to the adapter: numbers that depend on nothing but the picture."""
        make = transformers.features if self.is_published else tiny.features
        return torch.cat([make(self.adapter, seed=int(image_hash(image)[:6], 16)) for image in images])

    def null_features(self) -> Tensor:
        """For zero pixels."""
        return torch.zeros_like(self.features([tiny.picture()]))

    def inputs(self, rows: int) -> dict[str, Any]:
        """Of a call."""
        if not self.is_published:
            return DENOISERS[self.name].inputs(rows, seed=3)
        each = [transformers.inputs(self.host, seed=seed) for seed in range(rows)]
        return {
            key: value if key.endswith("_ids") else torch.cat([part[key] for part in each])
            for key, value in each[0].items()
        }

    def resolved(self, *rows: list[ImagePrompt]) -> Conditioning:
        """Rows of prompts as numbers."""
        return resolve(rows, [self.adapter], [self], blocks=[self.labels])

    def pipe(self) -> Any:
        """What stands for a pipeline in the middle of a run."""
        (timestep,) = {*torch.as_tensor(self.family.read(self.host, self.inputs(4)).timestep).reshape(-1).tolist()}
        around = [timestep + 100.0 * (STEP - step) for step in range(STEPS)]
        scheduler = SimpleNamespace(timesteps=torch.tensor(around), step_index=STEP, config=SimpleNamespace())
        return SimpleNamespace(transformer=self.host, scheduler=scheduler)

    def output(self, *rows: list[ImagePrompt] | Conditioning) -> Tensor:
        """Of a call [4, ...]: two negative rows, and two positive ones."""
        return self.output_of(self.images, *rows)

    def output_of(self, images: Any, *rows: Any, count: int = 4) -> Tensor:
        """The same of another attachment, which acts alone."""
        if images is not self.images:
            self.images.set(None)
        images.set(rows[0] if isinstance(rows[0], Conditioning) else self.resolved(*rows))
        call = tiny.call if self.is_published else DENOISERS[self.name].call
        return call(self.host, self.inputs(count))

    @cache  # noqa: B019  (as long as the fixture)
    def plain(self) -> Tensor:
        """Without any prompt's effect."""
        return self.output([picture(weight=0.0)])


@pytest.fixture(scope="module", params=[*HOSTS, *PUBLISHED])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    yield made
    made.images.detach()


def picture(seed: int = 1, **fields: Any) -> ImagePrompt:
    return ImagePrompt(tiny.picture(seed=seed), **fields)


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=2e-5 * float(b.abs().max()))


def differ(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-3 * float(b.abs().max()))


def changed(bench: Bench, prompt: ImagePrompt, **fields: Any) -> Conditioning:
    """A prompt whose only branch has other fields."""
    made = bench.resolved([prompt])
    return Conditioning(branches=(dataclasses.replace(made.branches[0], **fields),), rows=1)


# Strength ------------------------------------------------------------------------------------------------------------


def test_strength_per_block(bench: Bench) -> None:
    """By number, and by a preset's formula over depth: scales of the sites, in the order of their blocks."""
    blocks = list(dict.fromkeys(bench.labels))
    factors = {number: 0.4 + 0.2 * number for number in range(1, len(blocks))}
    table = torch.tensor([0.8 * factors.get(blocks.index(label), 0.0) for label in bench.labels])
    named = bench.output([picture(weight=0.8, blocks=factors)])
    written = changed(bench, picture(), scale=table[None, :, None])
    assert same(named, bench.output(written))
    if factors:
        assert differ(named, bench.output([picture(weight=0.8)])) and differ(named, bench.plain())
    assert all(bench.output([picture(blocks=name)]).isfinite().all() for name in ("ease in", "precise style"))


def test_strength_over_time(bench: Bench) -> None:
    """The call is the second of four steps."""
    weighed = bench.output([picture(weight=0.6)])
    assert same(bench.output([picture(weight=1.2, curve=[1.0, 0.5, 0.2, 0.0])]), weighed)
    assert same(bench.output([picture(weight=0.6, end=0.5)]), weighed)
    assert same(bench.output([picture(weight=0.6, start=0.5)]), bench.plain())
    assert same(bench.output([picture(weight=0.6, unit="noise", end=1.0, curve=lambda _: 1.0)]), weighed)


# Several references --------------------------------------------------------------------------------------------------


def test_several_references(bench: Bench) -> None:
    """Tokens one after another, weighed in their values; and one embedding of several, before the projector."""
    images = [tiny.picture(seed=seed) for seed in (1, 2)]
    if bench.adapter.spec.is_timed:
        with pytest.raises(ConditioningError, match="image_weights weigh the tokens of each picture, and 'tiny-sd3"):
            bench.output([ImagePrompt(images, image_weights=[1.0, 0.0])])
        return
    listed = bench.output([ImagePrompt(images, image_weights=[1.0, 0.0])])
    single = bench.output([picture(1)])
    assert differ(bench.output([ImagePrompt(images)]), single) and differ(listed, single)
    zero = bench.resolved([ImagePrompt(images)]).branches[0]
    half = zero.tokens.shape[1] // 2
    gain = torch.cat([torch.ones(1, half), torch.zeros(1, half)], dim=1)
    assert same(listed, bench.output(changed(bench, ImagePrompt(images), gain=gain)))
    twice = ImagePrompt([images[0], images[0]])
    assert same(bench.output([twice]), single)
    for combine, weights in (("average", (0.5, 0.5)), ("subtract", (1.0, -1.0)), ("add", (1.0, 1.0))):
        mixed = sum(weight * bench.features([image]) for weight, image in zip(weights, images, strict=True))
        wanted = bench.output([ImagePrompt(features=mixed)])
        assert same(bench.output([ImagePrompt(images, combine=combine)]), wanted), combine
    pair = bench.output([picture(1, weight=0.6), picture(2, weight=0.3)])
    assert same(pair, bench.output([picture(2, weight=0.3), picture(1, weight=0.6)]))
    assert differ(pair, bench.output([picture(1, weight=0.6)]))


# The negative half ---------------------------------------------------------------------------------------------------


def test_negatives(bench: Bench) -> None:
    """The negative half sees what a positive half of that picture would; the positive half does not change."""
    with_negative = bench.output([picture(1, negative=tiny.picture(seed=2))])
    usual = bench.output([picture(1)])
    assert same(with_negative[2:], usual[2:])
    with attach(bench.pipe(), bench.adapter, guidance="none") as images:
        assert same(with_negative[:2], bench.output_of(images, [picture(2)], count=2))
    assert differ(with_negative[:2], usual[:2])


# What the weight multiplies ------------------------------------------------------------------------------------------


def test_keys_and_values(bench: Bench) -> None:
    """As with an adapter whose keys and values are that much larger."""
    prompt = picture(weight=0.5, attention="keys and values")
    if bench.name in NO_KEYS:
        with pytest.raises(ConditioningError, match=NO_KEYS[bench.name]):
            bench.output([prompt])
        return
    weighed = bench.output([prompt])
    assert differ(weighed, bench.output([picture(weight=0.5)]))
    if isinstance(bench.adapter.spec.key_values, LinearKVSpec):
        scaled = copy.deepcopy(bench.adapter)
        for part in scaled.sites:
            for layer in (part.to_k_ip, part.to_v_ip):
                for weight in layer.parameters():
                    weight.mul_(0.5)
        with attach(bench.pipe(), scaled, guidance="cfg") as images:
            assert same(weighed, bench.output_of(images, [picture()]))


def test_norm_matching(bench: Bench) -> None:
    """Ten times the values are no more than once; hosts that act behind a block refuse."""
    prompt = picture(weight=0.5, attention="norm matched")
    if bench.name in NO_MATCH:
        with pytest.raises(ConditioningError, match=NO_MATCH[bench.name]):
            bench.output([prompt])
        return
    matched = bench.output([prompt])
    if not bench.adapter.spec.is_timed:  # whose softmax holds the picture's own values too
        tenfold = torch.full(bench.resolved([prompt]).branches[0].tokens.shape[:2], 10.0)
        assert same(matched, bench.output(changed(bench, prompt, gain=tenfold)))
    assert differ(matched, bench.output([picture(weight=0.5)]))


def test_a_joint_softmax(bench: Bench) -> None:
    """One picture twice at half its weight is that picture, and at no weight nothing."""
    prompt = picture(weight=0.5, attention="joint softmax")
    if bench.name in NO_JOINT:
        with pytest.raises(ConditioningError, match=f"'joint softmax' needs .*{NO_JOINT[bench.name]}"):
            bench.output([prompt])
        return
    once = bench.output([prompt])
    half = dataclasses.replace(prompt, weight=0.25)
    assert same(bench.output([half, half]), once)
    assert torch.equal(bench.output([dataclasses.replace(prompt, weight=0.0)]), bench.plain())
    assert differ(once, bench.output([picture(weight=0.5)])) and differ(once, bench.plain())
    scheduled = dataclasses.replace(prompt, weight=1.0, curve=[0.0, 0.5, 1.0, 1.0])
    assert same(bench.output([scheduled]), once)


# All of it -----------------------------------------------------------------------------------------------------------


def test_rows_of_everything_are_as_they_are_alone(bench: Bench) -> None:
    """Two rows that say different things about everything, in one batch and each on its own."""
    attention = "values" if bench.name in NO_JOINT else "joint softmax"
    weights = None if bench.adapter.spec.is_timed else [1.0, 0.4]
    other = "values" if bench.name in {**NO_MATCH, **NO_KEYS} else "norm matched"
    images = [tiny.picture(seed=seed) for seed in (1, 2)]
    rows = [
        [
            ImagePrompt(images, weight=0.7, image_weights=weights, attention=attention, mask=LEFT, end=0.6),
            picture(3, weight=0.4, blocks={0: 1.0}, negative=tiny.picture(seed=4)),
        ],
        [picture(5, weight=0.8, attention=other, mask=RIGHT, unit="noise", curve="fall")],
    ]
    together = bench.output(*rows)
    for number, row in enumerate(rows):
        alone = bench.output(row)
        assert same(together[number::2], alone[number::2]), number
