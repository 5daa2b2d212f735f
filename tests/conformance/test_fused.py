"""The processor that takes both taps' place: bit for bit what the taps and the stock processor give, never stale."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from imprompt.adapter.attach import attach
from imprompt.adapter.conditioning import Branch
from imprompt.adapter.text_cache import TextCache
from tests import tiny


def both_ways(host: Any, adapter: Any, branches: Any, inputs: Any) -> tuple[Tensor, Tensor]:
    outputs = []
    for fuse in (True, False):
        with attach(host, adapter, fuse=fuse) as images:
            images.set(tiny.conditioning(*branches))
            outputs.append(tiny.call(host, inputs))
    return outputs[0], outputs[1]


def joint(branch: Branch) -> Branch:
    """In the first row the same softmax as the text's."""
    return replace(branch, joint=torch.arange(branch.rows) == 0)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_fused_is_the_taps_bit_for_bit(family: str, rows: int) -> None:
    host = tiny.unet(family)
    adapter = tiny.adapter(host, "resampler")
    inputs = tiny.host_inputs(host, rows)
    region = tiny.rand(rows, 16, 16).clamp(0, 1)
    cases = [
        (tiny.branch(adapter, rows, weight=0.8),),
        (tiny.branch(adapter, rows, weight=0.8), tiny.branch(adapter, rows, seed=3, weight=-0.4)),
        (tiny.branch(adapter, rows, weight=0.8, region=region),),
        (joint(tiny.branch(adapter, rows, weight=0.8, region=region)), joint(tiny.branch(adapter, rows, seed=3))),
    ]
    for branches in cases:
        assert torch.equal(*both_ways(host, adapter, branches, inputs))


@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
def test_fused_is_the_taps_in_a_pipeline(guidance_scale: float) -> None:
    pipe = tiny.pipeline(family="small")
    adapter = tiny.adapter(pipe.unet)
    plain = tiny.generate(pipe, guidance_scale=guidance_scale)
    outputs = []
    for fuse in (True, False):
        with attach(pipe, adapter, fuse=fuse) as images:
            assert torch.equal(tiny.generate(pipe, guidance_scale=guidance_scale), plain)
            images.set(tiny.conditioning(tiny.branch(adapter, schedule=tiny.window(0.0, 0.5))))
            outputs.append(tiny.generate(pipe, guidance_scale=guidance_scale))
    assert torch.equal(*outputs)


def test_a_mask_of_the_text_goes_the_long_way() -> None:
    host = tiny.unet("small")
    adapter = tiny.adapter(host)
    inputs = tiny.host_inputs(host, 2)
    keep = torch.ones(2, tiny.TEXT_LENGTH)
    keep[:, tiny.TEXT_LENGTH // 2 :] = 0
    unmasked = tiny.call(host, inputs)
    inputs["encoder_attention_mask"] = keep
    plain = tiny.call(host, inputs)
    assert not torch.equal(plain, unmasked)
    with attach(host, adapter):
        assert torch.equal(tiny.call(host, inputs), plain)
    for branch in (tiny.branch(adapter, 2), joint(tiny.branch(adapter, 2))):
        fused, taps = both_ways(host, adapter, (branch,), inputs)
        assert torch.equal(fused, taps)
        assert (fused - plain).abs().max() > 1e-2


def test_hosts_with_unusual_attentions_go_the_long_way() -> None:
    host = tiny.unet("small")
    adapter = tiny.adapter(host)
    inputs = tiny.host_inputs(host)
    for name, module in host.named_modules():
        if name.endswith("attn2"):
            module.rescale_output_factor = 1.5
            module.residual_connection = True
    plain = tiny.call(host, inputs)
    with attach(host, adapter):
        assert torch.equal(tiny.call(host, inputs), plain)
    assert torch.equal(*both_ways(host, adapter, (tiny.branch(adapter),), inputs))


# What the text's keys and values depend on ---------------------------------------------------------------------------


def cross_attention(host: Any) -> Any:
    return host.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn2")


def copied(host: Any) -> None:
    cross_attention(host).to_k.weight.copy_(tiny.rand(8, tiny.TEXT_WIDTH, seed=77))


def loaded(host: Any) -> None:
    host.load_state_dict({key: value * 1.5 for key, value in host.state_dict().items()})


def assigned(host: Any) -> None:
    host.load_state_dict({key: value * 1.5 for key, value in host.state_dict().items()}, assign=True)


def replaced(host: Any) -> None:
    layer = torch.nn.Linear(tiny.TEXT_WIDTH, 8, bias=False)
    torch.nn.init.constant_(layer.weight, 0.3)
    cross_attention(host).to_v = layer.requires_grad_(False)


def doubled(host: Any) -> None:
    host.double().float()
    cross_attention(host).to_v.weight.mul_(-1)


def hooked(host: Any) -> None:
    cross_attention(host).to_k.register_forward_hook(lambda _module, _inputs, output: output * 2)


def through_data(host: Any) -> None:
    cross_attention(host).to_k.weight.data.mul_(2.5)


WEIGHTS: list[Callable[[Any], None]] = [copied, loaded, assigned, replaced, doubled, hooked]


def between_steps(change: Callable[[Any], None]) -> Callable[..., Any]:
    @torch.no_grad()
    def callback(pipe: Any, step: int, _timestep: Any, tensors: Any) -> Any:
        if step == 1:
            change(pipe.unet)
        return tensors

    return callback


@pytest.mark.parametrize("change", WEIGHTS, ids=lambda each: each.__name__)
def test_weights_changed_within_a_run(change: Callable[[Any], None]) -> None:
    with torch.no_grad():
        unchanged = tiny.generate(tiny.pipeline(family="small"))
        wanted = tiny.generate(tiny.pipeline(family="small"), callback_on_step_end=between_steps(change))
        assert not torch.equal(wanted, unchanged)
        pipe = tiny.pipeline(family="small")
        with attach(pipe, tiny.adapter(tiny.unet("small"))):
            assert torch.equal(tiny.generate(pipe, callback_on_step_end=between_steps(change)), wanted)


@pytest.mark.parametrize("change", [*WEIGHTS, through_data], ids=lambda each: each.__name__)
def test_weights_changed_between_runs(change: Callable[[Any], None]) -> None:
    with torch.no_grad():
        pipe, other = tiny.pipeline(family="small"), tiny.pipeline(family="small")
        change(other.unet)
        wanted = tiny.generate(other)
        with attach(pipe, tiny.adapter(tiny.unet("small"))):
            before = tiny.generate(pipe)
            change(pipe.unet)
            after = tiny.generate(pipe)
    assert torch.equal(after, wanted)
    assert not torch.equal(after, before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda each: each.__name__)
@pytest.mark.parametrize("how", ["new tensor", "in place"])
def test_text_changed_within_a_run(how: str, mode: Any) -> None:
    def change(_pipe: Any, step: int, _timestep: Any, tensors: Any) -> Any:
        if step == 1 and how == "in place":
            tensors["prompt_embeds"].mul_(-1)
        elif step == 1:
            tensors["prompt_embeds"] = tensors["prompt_embeds"] * -1
        return tensors

    options: dict[str, Any] = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with mode():
        wanted = tiny.generate(tiny.pipeline(family="small"), **options)
        assert not torch.equal(wanted, tiny.generate(tiny.pipeline(family="small")))
        pipe = tiny.pipeline(family="small")
        with attach(pipe, tiny.adapter(tiny.unet("small"))):
            assert torch.equal(tiny.generate(pipe, **options), wanted)


def test_text_changed_between_runs() -> None:
    pipe = tiny.pipeline(family="small")
    texts = ["a cat", "a dog", "a cat"]
    wanted = [tiny.generate(pipe, text) for text in texts]
    with attach(pipe, tiny.adapter(pipe.unet)):
        for text, latents in zip(texts, wanted, strict=True):
            assert torch.equal(tiny.generate(pipe, text), latents)


def test_autocast_on_and_off_within_a_run() -> None:
    context = torch.autocast("cpu", dtype=torch.bfloat16)

    def toggle(_pipe: Any, step: int, _timestep: Any, tensors: Any) -> Any:
        (context.__enter__ if step == 0 else context.__exit__)(*([] if step == 0 else [None, None, None]))
        return tensors

    def run(pipe: Any) -> Tensor:
        return tiny.generate(pipe, steps=3, callback_on_step_end=toggle_once)

    def toggle_once(pipe: Any, step: int, timestep: Any, tensors: Any) -> Any:
        return toggle(pipe, step, timestep, tensors) if step < 2 else tensors

    wanted = run(tiny.pipeline(family="small"))
    pipe = tiny.pipeline(family="small")
    with attach(pipe, tiny.adapter(tiny.unet("small"))):
        assert torch.equal(run(pipe), wanted)


def test_text_is_projected_once_a_run() -> None:
    """The cache works at all: else none of the above means anything."""
    calls = 0

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal calls
            if func is torch.ops.aten.mm.default:
                calls += args[1].data_ptr() in weights
            return func(*args, **(kwargs or {}))

    pipe = tiny.pipeline(family="small")
    sites = [module for name, module in pipe.unet.named_modules() if name.endswith("attn2")]
    weights = {layer.weight.data_ptr() for site in sites for layer in (site.to_k, site.to_v)}
    embeds = {name: tiny.rand(1, tiny.TEXT_LENGTH, tiny.TEXT_WIDTH, seed=seed) for seed, name in enumerate(EMBEDS)}
    counts = []
    for attached in ("", "without an image", "with a joint softmax"):
        adapter = tiny.adapter(tiny.unet("small"))
        images = attach(pipe, adapter) if attached else None
        if images and attached == "with a joint softmax":
            images.set(tiny.conditioning(joint(tiny.branch(adapter))))
        for steps in (1, 4):
            calls = 0
            with Counting():
                tiny.generate(pipe, None, steps=steps, **embeds)
            counts.append(calls)
        if images:
            images.detach()
    stock_one, stock_four, ours_one, ours_four, *with_joint = counts
    assert ours_one == stock_one == 2 * len(sites)
    assert stock_four == 4 * stock_one
    assert ours_four == ours_one
    assert with_joint == [ours_one, ours_four]  # its hooks on the text's keys read them, and change nothing


def test_nothing_outlives_its_run() -> None:
    """A change through `.data` shows nowhere, so each run begins with an empty cache, for the same text too."""
    attention = cross_attention(tiny.unet("small"))
    cache, text = TextCache(), tiny.rand(1, 3, tiny.TEXT_WIDTH)
    first, second = object(), object()
    with torch.no_grad():
        before = cache.get(attention, text, first)[0]
        attention.to_k.weight.data.mul_(2)
        assert cache.get(attention, text, first)[0] is before
        assert torch.equal(cache.get(attention, text, second)[0], before * 2)
        assert cache.get(attention, text, None)[0] is not cache.get(attention, text, None)[0]


EMBEDS = ("prompt_embeds", "negative_prompt_embeds")


def test_training_never_caches() -> None:
    """Gradients of the text's projections must be those of the present step."""
    host = tiny.unet("small").requires_grad_(True)
    inputs = tiny.host_inputs(host)
    weight = cross_attention(host).to_k.weight
    gradients = []
    for attached in (False, True):
        images = attach(host, tiny.adapter(host)) if attached else None
        for _step in range(2):
            host.zero_grad()
            host(**inputs).sample.square().mean().backward()
        gradients.append(weight.grad.clone())
        if images:
            images.detach()
    assert torch.equal(*gradients)


def test_processors_that_outlive_the_attachment_are_stock() -> None:
    """Somebody kept them (diffusers does, to undo the fusing of projections) and puts them back afterwards."""
    pipe = tiny.pipeline()
    plain = tiny.generate(pipe, ["a cat"])
    adapter = tiny.adapter(pipe.unet)
    with attach(pipe, adapter) as images:
        kept = dict(pipe.unet.attn_processors)
        images.set(tiny.conditioning(tiny.branch(adapter, 1)))
        assert not torch.equal(tiny.generate(pipe, ["a cat"]), plain)
    for name, processor in kept.items():
        pipe.unet.get_submodule(name.removesuffix(".processor")).processor = processor
    assert torch.equal(tiny.generate(pipe, ["a cat"]), plain)


def test_gradients_after_a_call_without_them() -> None:
    """A preview in the middle of training leaves no rows behind that know nothing of gradients."""
    host = tiny.pipeline().unet
    adapter = tiny.adapter(host).requires_grad_(True)
    inputs = tiny.host_inputs(host)
    with attach(host, adapter) as images:
        images.set(tiny.conditioning(tiny.branch(adapter, len(inputs["sample"]))))
        tiny.call(host, inputs)
        host(**inputs).sample.sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.ip_adapter.parameters())
