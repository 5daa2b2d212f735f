"""A text for a part of the picture: the written formula at every site, and what it leaves alone."""

import diffusers
import pytest
import torch
from torch.nn.functional import softmax

from imprompt.core.errors import ConditioningError, HostMismatch, ImageError, PromptError
from imprompt.generation.attach import attach
from imprompt.generation.generate import generate, generate_rows
from imprompt.generation.region_texts import resolve_texts
from imprompt.generation.regions import share_places
from imprompt.generation.request import Request, parse_request
from imprompt.prompts import Box, ImagePrompt, TextRegion
from tests import tiny, tiny_transformers
from tests.parity import test_later_unets as later

LEFT, RIGHT, ALL = Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 1.0, 1.0), Box(0.0, 0.0, 1.0, 1.0)
NOWHERE = torch.zeros(32, 32)
QUARTERS = torch.arange(1024.0).view(32, 32).remainder(5) / 4


@pytest.fixture(scope="module")
def plain_pipe():
    return tiny.pipeline(family="small")


def embeds(width=tiny.TEXT_WIDTH, length=tiny.TEXT_LENGTH, seed=40):
    return tiny.rand(length, width, seed=seed)


# The formula ---------------------------------------------------------------------------------------------------------


def seen_at_sites(host):
    """What is projected to queries, and what reaches the projection out, at every cross-attention of a call."""
    seen = {}
    for name, module in host.named_modules():
        if name.endswith("attn2"):
            seen[name] = {"module": module}
            module.to_q.register_forward_hook(lambda *given, at=seen[name]: at.update(query=given[2]))
            module.to_out[0].register_forward_pre_hook(lambda _, given, at=seen[name]: at.update(out=given[0]))
    return seen


def written(attention, query, texts, weights):
    """sum_r weight_r softmax(Q K_r^T / sqrt(head)) V_r, a head at a time."""
    rows, length, width = query.shape
    head = width // attention.heads
    total = torch.zeros_like(query)
    for text, weight in zip(texts, weights, strict=True):
        keys, values = text @ attention.to_k.weight.T, text @ attention.to_v.weight.T
        for start in range(0, width, head):
            part = slice(start, start + head)
            scores = query[..., part] @ keys[..., part].mT / head**0.5
            total[..., part] += weight.view(1, length, 1) * (softmax(scores, -1) @ values[..., part])
    return total


def in_double(value):
    return {name: in_double(part) for name, part in value.items()} if isinstance(value, dict) else value.double()


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "taps"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_every_site_computes_the_written_formula(family, fuse):
    """Two regions that overlap, of texts of different length, in float64; negative rows are the global text's alone."""
    host = tiny.unet(family).double()
    inputs = in_double(tiny.host_inputs(host, 2))
    short, long = embeds(length=5).double(), embeds(length=30, seed=41).double()
    regions = [TextRegion(None, QUARTERS, embeds=short, weight=0.75), TextRegion(None, LEFT, embeds=long)]
    with attach(host, guidance="cfg", fuse=fuse) as images:
        seen = seen_at_sites(host)
        images.set(regions=regions, size=(32, 32))
        tiny.call(host, inputs)
    left = torch.zeros(32, 32)
    left[:, :16] = 1
    first, second = 0.75 * QUARTERS.double(), left.double()
    whole = (first + second).clamp(min=1)
    negative, positive = inputs["encoder_hidden_states"].double()
    assert len(seen) == len(images.sites)
    for name, at in seen.items():
        side = int(at["query"].shape[1] ** 0.5)
        cells = [
            mask.view(side, 32 // side, side, 32 // side).mean((1, 3)).flatten()
            for mask in (first / whole, second / whole)
        ]
        weights = [1 - sum(cells), *cells]
        wanted = written(at["module"], at["query"][1:], [positive, short, long], weights)
        assert (at["out"][1:] - wanted).abs().max() < 1e-6, name
        kept = written(at["module"], at["query"][:1], [negative], [torch.ones(side * side).double()])
        assert (at["out"][:1] - kept).abs().max() < 1e-12, name


def test_shares_are_the_weighted_masks_and_parts_of_their_sum_where_that_is_more_than_all():
    half = torch.full((4, 4), 0.5)
    rows = [
        [TextRegion("a", half), TextRegion("b", half, weight=0.5)],
        [TextRegion("a", ALL), TextRegion("b", ALL, weight=0.5)],
        [],
    ]
    first, second = share_places(rows, (4, 4))
    assert torch.equal(first[0], half) and torch.equal(second[0], half / 2)
    assert torch.allclose(first[1], torch.tensor(2 / 3)) and torch.allclose(second[1], torch.tensor(1 / 3))
    assert not first[2].any() and not second[2].any()
    soft = share_places([[TextRegion("a", LEFT, feather=0.1), TextRegion("b", RIGHT, feather=0.1)]], (32, 32))
    assert torch.allclose(soft[0] + soft[1], torch.ones(1, 32, 32), atol=1e-6)


# Pipelines -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "taps"])
def test_a_region_of_everything_is_the_prompt_and_one_of_nothing_is_not_there(plain_pipe, fuse):
    wanted, other = tiny.generate(plain_pipe, "a dog"), tiny.generate(plain_pipe, "a cat")
    with attach(plain_pipe, fuse=fuse) as images:
        images.set(regions=[TextRegion("a dog", ALL)])
        assert torch.allclose(tiny.generate(plain_pipe, "a cat"), wanted, atol=1e-5)
        images.set(regions=[TextRegion("a dog", NOWHERE)])
        assert torch.equal(tiny.generate(plain_pipe, "a cat"), other)
        images.set(regions=[TextRegion("a dog", ALL, weight=0.0)])
        assert torch.equal(tiny.generate(plain_pipe, "a cat"), other)
        images.set(regions=[TextRegion("a dog", LEFT)])
        halves = tiny.generate(plain_pipe, "a cat")
        assert (halves - other).abs().max() > 1e-2 and (halves - wanted).abs().max() > 1e-2
    assert torch.equal(tiny.generate(plain_pipe, "a cat"), other)


def test_sdxl_encodes_a_region_with_both_text_encoders():
    pipe = tiny.pipeline(family="sdxl")
    whole, _, pooled, _ = pipe.encode_prompt("a dog", device="cpu", do_classifier_free_guidance=False)
    mine, negative, pooled, negative_pooled = pipe.encode_prompt("a cat", device="cpu")
    given = {
        "negative_prompt_embeds": negative,
        "pooled_prompt_embeds": pooled,
        "negative_pooled_prompt_embeds": negative_pooled,
    }
    wanted = tiny.generate(pipe, None, steps=2, prompt_embeds=whole, **given)  # the pooled text has no place
    with attach(pipe) as images:
        images.set(regions=[TextRegion("a dog", ALL)])
        assert torch.allclose(tiny.generate(pipe, None, steps=2, prompt_embeds=mine, **given), wanted, atol=1e-5)


def test_kolors_regions_pass_its_text_projection():
    host = tiny.unet("kolors")
    inputs, other = tiny.host_inputs(host, 1), embeds(width=10)
    wanted = tiny.call(host, {**inputs, "encoder_hidden_states": other[None]})
    with attach(host) as images:
        images.set(regions=[TextRegion(None, ALL, embeds=other)])
        assert torch.allclose(tiny.call(host, inputs), wanted, atol=1e-5)


def animated(unet):
    return diffusers.UNetMotionModel.from_unet2d(unet, later.motion(unet))


@pytest.mark.parametrize("make", [animated, later.controlled], ids=["AnimateDiff", "ControlNet-XS"])
def test_unets_into_which_something_was_put_later(make):
    """Also where frames are folded into the batch, which all have their row's regions."""
    unet, other = tiny.unet(), embeds()
    host, inputs = make(unet), tiny.host_inputs(unet, 2)
    if isinstance(host, diffusers.UNetMotionModel):
        inputs["sample"] = tiny.rand(2, 4, later.FRAMES, 16, 16)
    else:
        inputs["controlnet_cond"] = tiny.rand(2, 3, 128, 128)
    texts = torch.stack([inputs["encoder_hidden_states"][0], other])
    times = later.FRAMES if isinstance(host, diffusers.UNetMotionModel) else 1
    wanted, inputs = (
        {**inputs, "encoder_hidden_states": text.repeat_interleave(times, dim=0)}
        for text in (texts, inputs["encoder_hidden_states"])
    )
    wanted = tiny.call(host, wanted)
    with attach(host, guidance="cfg") as images:
        images.set(regions=[TextRegion(None, ALL, embeds=other)])
        assert torch.allclose(tiny.call(host, inputs), wanted, atol=1e-5)
        images.set(regions=[TextRegion(None, LEFT, embeds=other)])
        assert (tiny.call(host, inputs) - wanted)[1].abs().max() > 1e-3


def test_half_precision_is_as_near_as_its_rounding(plain_pipe):
    """Mixing takes no more from bfloat16 than the network itself does."""
    inputs, other = tiny.host_inputs(plain_pipe.unet, 1), embeds()
    exact = tiny.call(plain_pipe.unet, {**inputs, "encoder_hidden_states": other[None]})
    host = tiny.unet("small").to(torch.bfloat16)
    inputs = {name: value.to(torch.bfloat16) if value.is_floating_point() else value for name, value in inputs.items()}
    rounding = (tiny.call(host, {**inputs, "encoder_hidden_states": other[None].bfloat16()}) - exact).abs().max()
    with attach(host) as images:
        images.set(regions=[TextRegion(None, ALL, embeds=other)])
        assert (tiny.call(host, inputs) - exact).abs().max() < 2 * rounding


def test_rows_equal_their_own_runs(plain_pipe):
    """Rows with two regions, one, none; texts of different length; with images and masks."""
    adapter = tiny.adapter(plain_pipe.unet)
    picture = [ImagePrompt(features=tiny.features(adapter)[0], mask=RIGHT, weight=0.8)]
    rows = [picture, [], picture]
    regions = [
        [TextRegion("a red fox", LEFT), TextRegion(None, RIGHT, embeds=embeds(length=29))],
        [],
        [TextRegion("x", LEFT, end=0.5)],
    ]
    noise = tiny.rand(3, 4, 16, 16)
    with attach(plain_pipe, adapter) as images:
        images.set(rows=rows, regions=regions)
        together = tiny.generate(plain_pipe, ["a", "b", "c"], latents=noise)
        for number, text in enumerate("abc"):
            images.set(rows=[rows[number]], regions=[regions[number]])
            alone = tiny.generate(plain_pipe, text, latents=noise[number : number + 1])
            assert (together[number] - alone[0]).abs().max() < 5e-5, number  # of values to 10, after 4 steps
        images.set(rows=[[]])
        assert (together[1] - tiny.generate(plain_pipe, "b", latents=noise[1:2])[0]).abs().max() < 5e-5


def test_padding_of_shorter_texts_does_not_leak():
    """A text beside a longer one is masked, so a row of its own gives the same; padded with zeros it would not."""
    host = tiny.unet("small")
    inputs = tiny.host_inputs(host, 2)
    short, long = TextRegion(None, ALL, embeds=embeds(length=4)), TextRegion(None, ALL, embeds=embeds(length=40))
    with attach(host) as images:
        images.set(regions=[[short], [long]])
        together = tiny.call(host, inputs)[:1]
        images.set(regions=[short])
        alone = tiny.call(host, tiny.row_of(inputs, 0))
        padded = torch.cat([short.embeds, torch.zeros(36, tiny.TEXT_WIDTH)])
        images.set(regions=[TextRegion(None, ALL, embeds=padded)])
        assert (tiny.call(host, tiny.row_of(inputs, 0)) - alone).abs().max() > 1e-3
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "taps"])
@pytest.mark.parametrize("attention", ["values", "norm matched", "joint softmax"])
def test_images_and_texts_of_regions_add_up(plain_pipe, attention, fuse):
    """An image stands to a region's text as it does to the prompt."""
    host, adapter = plain_pipe.unet, tiny.adapter(plain_pipe.unet)
    inputs = tiny.host_inputs(host, 2)
    other = {**inputs, "encoder_hidden_states": torch.cat([inputs["encoder_hidden_states"][:1], embeds()[None]])}
    prompt = ImagePrompt(features=tiny.features(adapter)[0], mask=LEFT, attention=attention)
    with attach(host, adapter, guidance="cfg", fuse=fuse) as images:
        images.set(prompt)
        wanted, plain = tiny.call(host, other), tiny.call(host, inputs)
        images.set(prompt, regions=[TextRegion(None, ALL, embeds=embeds())])
        assert torch.allclose(tiny.call(host, inputs), wanted, atol=1e-5)
        assert (plain - wanted).abs().max() > 1e-2


def test_a_control_net_reads_the_global_prompt():
    pipe = tiny.pipeline(diffusers.StableDiffusionControlNetPipeline, controlnet=tiny.controlnet(tiny.unet("sd1")))
    read = []
    pipe.controlnet.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["encoder_hidden_states"].clone()), with_kwargs=True
    )
    options = {"image": tiny.picture(), "steps": 1, "height": 32, "width": 32}
    plain = tiny.generate(pipe, "a cat", **options)
    with attach(pipe) as images:
        images.set(regions=[TextRegion("a dog", LEFT)])
        assert (tiny.generate(pipe, "a cat", **options) - plain).abs().max() > 1e-3
    assert torch.equal(*read)


def test_windows_act_when_they_say(plain_pipe):
    host, scheduler = plain_pipe.unet, plain_pipe.scheduler
    scheduler.set_timesteps(4)
    inputs = tiny.host_inputs(host, 2)
    with attach(plain_pipe, guidance="cfg") as images:
        images.set(regions=[TextRegion("a dog", ALL, start=0.5)])
        with_it = [tiny.call(host, {**inputs, "timestep": timestep}) for timestep in scheduler.timesteps]
        images.set(None)
        without = [tiny.call(host, {**inputs, "timestep": timestep}) for timestep in scheduler.timesteps]
    acts = [bool((a - b).abs().max() > 1e-3) for a, b in zip(with_it, without, strict=True)]
    assert acts == [False, False, True, True]


def test_a_lora_acts_on_regions_as_on_the_prompt():
    """Put on after attaching and setting: keys and values are the host's at the time of the call."""
    pipe = tiny.pipeline(family="small")
    from peft import LoraConfig

    with attach(pipe) as images:
        images.set(regions=[TextRegion("a dog", ALL)])
        before = tiny.generate(pipe, "a cat", steps=2)
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False))
        changed = tiny.generate(pipe, "a cat", steps=2)
        images.set(None)
        wanted = tiny.generate(pipe, "a dog", steps=2)
    assert torch.allclose(changed, wanted, atol=1e-5) and (changed - before).abs().max() > 1e-3


# Requests ------------------------------------------------------------------------------------------------------------


def test_requests_with_regions_share_a_batch_and_tell_of_them(plain_pipe, tmp_path):
    tiny.picture(seed=3).save(tmp_path / "mask.png")
    said = {"prompt": "a", "steps": 2, "seed": 1, "height": 32, "width": 32}
    requests = [
        parse_request({**said, "regions": [{"text": "a dog", "mask": {"box": [0, 0, 0.5, 1]}, "weight": 0.5}]}),
        parse_request({**said, "regions": [{"text": "a fox", "mask": "mask.png", "end": 0.5}]}, tmp_path),
        parse_request(said),
    ]
    with attach(plain_pipe) as images:
        results = generate_rows(plain_pipe, images, requests)
        told = [result.provenance.get("regions") for result in results]
        assert told[0] == [{"text": "a dog", "mask": {"box": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]}, "weight": 0.5}]
        assert told[1][0]["mask"]["file"] == "mask.png" and told[1][0]["end"] == 0.5 and told[2] is None
        for request, result in zip(requests, results, strict=True):
            alone = generate(plain_pipe, images, request).images[0]
            assert max(abs(a - b) for a, b in zip(alone.tobytes(), result.images[0].tobytes(), strict=True)) <= 1
        assert results[0].images[0].tobytes() != results[2].images[0].tobytes()


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_is_said(plain_pipe):
    with pytest.raises(PromptError, match="regions, but no attachment"):
        generate(plain_pipe, None, Request(prompt="a", regions=[TextRegion("b", LEFT)]))
    with pytest.raises(PromptError, match="regions holds a str"):
        Request(prompt="a", regions=["b"])
    with attach(plain_pipe) as images:
        with pytest.raises(PromptError, match="expected a TextRegion"):
            images.set(regions=["a"])
        with pytest.raises(PromptError, match="has 2 rows, rows= has 3"):
            images.set(rows=[[], [], []], regions=[[], []])
        with pytest.raises(ImageError, match="give one of the picture's shape"):
            images.set(regions=[TextRegion("a", torch.ones(32, 16))], size=(32, 32))
        with pytest.raises(ConditioningError, match="states of width 7, UNet2DConditionModel reads 24"):
            images.set(regions=[TextRegion(None, LEFT, embeds=embeds(width=7))])
    with (
        attach(plain_pipe.unet) as images,
        pytest.raises(PromptError, match="a bare denoiser has nothing that encodes"),
    ):
        images.set(regions=[TextRegion("a", LEFT)])
    with pytest.raises(PromptError, match="embeds of regions have widths"):
        resolve_texts(
            [[TextRegion(None, LEFT, embeds=embeds(width=w)) for w in [3]], [TextRegion(None, LEFT, embeds=embeds())]]
        )


def test_transformers_refuse_regions_in_one_sentence():
    with (
        attach(tiny_transformers.flux()) as images,
        pytest.raises(HostMismatch, match="read the text apart from the picture"),
    ):
        images.set(regions=[TextRegion(None, LEFT, embeds=embeds())])
