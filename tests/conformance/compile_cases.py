"""torch.compile with image prompts; run by `test_compile.py` in a process of its own, where nothing checks types.

A type checker on every function would break the graphs that are counted here.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from imprompt.adapter.attach import attach
from imprompt.generation.region_texts import resolve_texts
from imprompt.prompts.text_region import TextRegion as Region
from tests import tiny, tiny_faces


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=[True, False], ids=["fused", "taps"])
def fuse(request: pytest.FixtureRequest) -> bool:
    return request.param


# Every case traces a UNet a few times, so not every combination is tried: all others here are wrapped and fused.
WAYS = pytest.mark.parametrize(("in_place", "fuse"), [(False, False), (True, True)], ids=["wrapped-taps", "in-place"])


def num_graphs() -> int:
    """Graphs compiled so far. A recompilation adds one. The first run makes one or two: where a wrapper is compiled,
    torch calls the UNet's own hooks outside of its graph, and so compiles the hook for itself.
    """
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def compiled(pipe: Any, *, backend: str = "eager", in_place: bool = False) -> Any:
    if in_place:
        pipe.unet.compile(fullgraph=True, backend=backend)
    else:
        pipe.unet = torch.compile(pipe.unet, fullgraph=True, backend=backend)
    return pipe


def two_rows(pipe: Any, **options: Any) -> Tensor:
    return tiny.generate(pipe, ["a cat", "a dog"], steps=3, **options)


def prompts(adapter: Any, **options: Any) -> Any:
    return tiny.conditioning(tiny.branch(adapter, 2, **options))


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def expected(adapter: Any, *conditionings: Any) -> list[Tensor]:
    """What the pipeline gives for each conditioning without compilation."""
    pipe = tiny.pipeline(family="small")
    outputs = []
    with attach(pipe, adapter) as images:
        for conditioning in conditionings:
            images.set(conditioning)
            outputs.append(two_rows(pipe))
    return outputs


@WAYS
def test_no_recompilation_when_prompts_weights_scales_change(in_place: bool, fuse: bool) -> None:
    pipe = tiny.pipeline(family="small")
    adapter = tiny.adapter(pipe.unet)
    sets = [
        prompts(adapter),
        prompts(adapter, seed=5),
        prompts(adapter, weight=0.3),
        prompts(adapter, weight=[0.0, 1.5]),
        prompts(adapter, weight=0.0),
    ]
    wanted = expected(adapter, *sets)
    assert all((a - b).abs().max() > 0.1 for a, b in zip(wanted, wanted[1:], strict=False))
    compiled(pipe, in_place=in_place)
    settled = 0
    with attach(pipe, adapter, fuse=fuse) as images:
        for number, conditioning in enumerate(sets):
            images.set(conditioning)
            assert close(two_rows(pipe), wanted[number])
            settled = settled or num_graphs()
            assert num_graphs() == settled <= 2
        two_rows(pipe, guidance_scale=3.0, seed=1)
        assert num_graphs() == settled


def test_aot_graph_is_whole() -> None:
    pipe = tiny.pipeline(family="small")
    adapter = tiny.adapter(pipe.unet, "resampler")
    wanted = expected(adapter, prompts(adapter), prompts(adapter, seed=2, weight=0.5))
    compiled(pipe, backend="aot_eager")
    with attach(pipe, adapter) as images:
        images.set(prompts(adapter))
        assert close(two_rows(pipe), wanted[0])
        images.set(prompts(adapter, seed=2, weight=0.5))
        settled = num_graphs()
        assert close(two_rows(pipe), wanted[1])
    assert num_graphs() == settled <= 2


def test_windows_masks_and_numbers_of_steps_change_without_recompilation() -> None:
    pipe = tiny.pipeline(family="small")
    adapter = tiny.adapter(pipe.unet)
    region = torch.zeros(2, 16, 16)
    region[..., :8] = 1
    sets = [
        prompts(adapter, schedule=tiny.window(0.0, 0.5), region=region),
        prompts(adapter, schedule=tiny.window(0.5, 1.0), region=region),
        prompts(adapter, schedule=tiny.window(0.0, 1.0), region=1 - region),
        prompts(adapter, schedule=torch.linspace(0, 1, 1001), region=region, weight=[1.0, 0.2]),
    ]
    wanted = expected(adapter, *sets)
    assert all((a - b).abs().max() > 0.1 for a, b in zip(wanted, wanted[1:], strict=False))
    compiled(pipe)
    settled = 0
    with attach(pipe, adapter) as images:
        for number, conditioning in enumerate(sets):
            images.set(conditioning)
            assert close(two_rows(pipe), wanted[number])
            settled = settled or num_graphs()
            assert num_graphs() == settled <= 2
        for steps in (2, 5):
            tiny.generate(pipe, ["a cat", "a dog"], steps=steps)
        assert num_graphs() == settled


@WAYS
def test_texts_of_regions_change_without_recompilation(in_place: bool, fuse: bool) -> None:
    def given(seed: int, mask: Tensor, start: float) -> Any:
        texts = [Region(None, mask, embeds=tiny.rand(tiny.TEXT_LENGTH, tiny.TEXT_WIDTH, seed=seed), start=start)] * 2
        return resolve_texts([texts[:1], texts])

    mask = torch.zeros(16, 16)
    mask[:, :8] = 1
    sets = [given(1, mask, 0.1), given(2, mask, 0.1), given(2, 1 - mask, 0.1), given(2, mask, 0.6)]
    outputs: list[list[Tensor]] = []
    settled = 0
    for is_compiled in (False, True):
        pipe = tiny.pipeline(family="small")
        adapter = tiny.adapter(pipe.unet)
        if is_compiled:
            compiled(pipe, in_place=in_place)
        with attach(pipe, adapter, fuse=fuse) as images:
            outputs.append([])
            for texts in sets:
                images.set(replace(prompts(adapter), texts=texts))
                outputs[-1].append(two_rows(pipe))
                settled = settled or num_graphs()
                assert num_graphs() == settled <= 2
    assert all((a - b).abs().max() > 0.1 for a, b in zip(outputs[0], outputs[0][1:], strict=False))
    assert all(close(a, b) for a, b in zip(*outputs, strict=True))


def test_two_prompts_of_two_adapters() -> None:
    pipe = tiny.pipeline(family="small")
    adapters = [tiny.adapter(pipe.unet, "linear"), tiny.adapter(pipe.unet, "mlp", seed=3)]
    parts = [tiny.branch(adapters[0], 2), tiny.branch(adapters[1], 2, number=1, schedule=tiny.window(0, 0.5))]
    with attach(pipe, *adapters) as images:
        images.set(tiny.conditioning(*parts))
        wanted = two_rows(pipe)
    compiled(pipe)
    with attach(pipe, *adapters) as images:
        images.set(tiny.conditioning(*parts))
        assert close(two_rows(pipe), wanted)
    assert num_graphs() <= 2


@WAYS
def test_attach_and_detach_after_compilation_take_effect(in_place: bool, fuse: bool) -> None:
    pipe = compiled(tiny.pipeline(family="small"), in_place=in_place)
    adapter = tiny.adapter(pipe.unet)
    wanted = expected(adapter, prompts(adapter))[0]
    plain = two_rows(pipe)
    assert not close(plain, wanted)
    with attach(pipe, adapter, fuse=fuse) as images:
        images.set(prompts(adapter))
        assert close(two_rows(pipe), wanted)
        images.set(None)
        assert close(two_rows(pipe), plain)
    assert close(two_rows(pipe), plain)


def test_compilation_after_attaching() -> None:
    pipe = tiny.pipeline(family="small")
    adapter = tiny.adapter(pipe.unet)
    wanted = expected(adapter, prompts(adapter))[0]
    plain = two_rows(pipe)
    with attach(pipe, adapter) as images:
        compiled(pipe)
        images.set(prompts(adapter))
        assert close(two_rows(pipe), wanted)
    assert close(two_rows(pipe), plain)


def test_unet_compiled_elsewhere() -> None:
    """The UNet itself is attached to, and the program calls a compiled wrapper that the attachment never saw."""
    host = tiny.unet("small")
    adapter = tiny.adapter(host)
    inputs = tiny.host_inputs(host, 2)
    plain = tiny.call(host, inputs)
    model = torch.compile(host, fullgraph=True, backend="eager")
    assert close(tiny.call(model, inputs), plain)
    with attach(host, adapter, fuse=False) as images:
        images.set(prompts(adapter))
        wanted = tiny.call(host, inputs)
        assert not close(wanted, plain)
        assert close(tiny.call(model, inputs), wanted)
    assert close(tiny.call(model, inputs), plain)


def test_compiled_forward() -> None:
    """Only `forward` is compiled, as many recipes do: the hooks of the UNet run as they are."""
    pipe = tiny.pipeline(family="small")
    adapter = tiny.adapter(pipe.unet)
    schedule = tiny.window(0.0, 0.5)
    wanted = expected(adapter, prompts(adapter, schedule=schedule), prompts(adapter, seed=2, schedule=schedule))
    pipe.unet.forward = torch.compile(pipe.unet.forward, fullgraph=True, backend="eager")
    plain = two_rows(pipe)
    with attach(pipe, adapter) as images:
        images.set(prompts(adapter, schedule=schedule))
        assert close(two_rows(pipe), wanted[0])
        settled = num_graphs()
        images.set(prompts(adapter, seed=2, schedule=schedule))
        assert close(two_rows(pipe), wanted[1])
        assert num_graphs() == settled
    assert close(two_rows(pipe), plain)


def test_compiled_blocks() -> None:
    """Only the transformer blocks are compiled (`compile_repeated_blocks`): a graph for each site, so few of them."""
    pipe = tiny.pipeline(family="small")
    adapter = tiny.adapter(pipe.unet)
    wanted = expected(adapter, prompts(adapter))[0]
    pipe.unet.compile_repeated_blocks(fullgraph=True, backend="eager")
    plain = two_rows(pipe)
    with attach(pipe, adapter) as images:
        images.set(prompts(adapter))
        assert close(two_rows(pipe), wanted)
    assert close(two_rows(pipe), plain)


def test_number_of_images_under_compilation() -> None:
    pipe = tiny.pipeline(family="small")
    adapter = tiny.adapter(pipe.unet)
    with attach(pipe, adapter) as images:
        images.set(prompts(adapter))
        wanted = [two_rows(pipe), two_rows(pipe, num_images_per_prompt=2), two_rows(pipe, guidance_scale=1.0)]
    compiled(pipe)
    with attach(pipe, adapter) as images:
        images.set(prompts(adapter))
        options: list[dict[str, Any]] = [{}, {"num_images_per_prompt": 2}, {"guidance_scale": 1.0}]
        for each, output in zip(options, wanted, strict=True):
            assert close(two_rows(pipe, **each), output)


def test_lora_loaded_after_attaching(fuse: bool) -> None:
    from peft import LoraConfig

    def load(pipe: Any) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            targets = ["to_q", "to_k", "to_v", "to_out.0"]
            pipe.unet.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))

    pipe = tiny.pipeline(family="small")
    adapter = tiny.adapter(pipe.unet)
    load(pipe)
    with attach(pipe, adapter) as images:
        images.set(prompts(adapter))
        wanted = two_rows(pipe)

    pipe = tiny.pipeline(family="small")
    pipe.unet.compile(fullgraph=True, backend="eager")
    with attach(pipe, adapter, fuse=fuse) as images:
        images.set(prompts(adapter))
        assert not close(two_rows(pipe), wanted)
        load(pipe)
        assert close(two_rows(pipe), wanted)


def test_text_is_not_kept_across_compiled_calls() -> None:
    """A graph must compute the text's keys from the text that it is given."""
    host = tiny.unet("small")
    adapter = tiny.adapter(host)
    model = torch.compile(host, fullgraph=True, backend="eager")
    with attach(model, adapter) as images:
        images.set(prompts(adapter))
        for seed in (0, 7):
            inputs = tiny.host_inputs(host, 2, seed=seed)
            assert close(tiny.call(model, inputs), tiny.call(host, inputs))


def test_lora_of_an_adapter_follows_its_rows_without_recompilation(fuse: bool) -> None:
    host = tiny_faces.host("small")
    adapter = tiny_faces.adapter(host, "faceid")
    inputs = tiny.host_inputs(host, 2)
    sets = [prompts(adapter, weight=weight) for weight in ([1.0, 1.0], [1.0, 0.0], [0.0, 0.7])]
    plain, wanted = tiny.call(host, inputs), []
    with attach(host, adapter, fuse=fuse) as images:
        for conditioning in sets:
            images.set(conditioning)
            wanted.append(tiny.call(host, inputs))
    assert all((a - b).abs().max() > 0.1 for a, b in zip(wanted, wanted[1:], strict=False))
    model = torch.compile(host, fullgraph=True, backend="eager")
    settled = 0
    with attach(model, adapter, fuse=fuse) as images:
        for conditioning, output in zip(sets, wanted, strict=True):
            images.set(conditioning)
            assert close(tiny.call(model, inputs), output)
            settled = settled or num_graphs()
            assert num_graphs() == settled <= 2
        images.set(None)
        assert close(tiny.call(model, inputs), plain)
    assert close(tiny.call(model, inputs), plain)


COMPOSED: list[list[dict[str, Any]]] = [  # fields of the two rows' prompts: of one set of tables each pair
    [
        {"weight": 0.7, "curve": "fall", "attention": "keys and values", "blocks": "precise composition"},
        {"unit": "noise", "start": 0.3, "image_weights": [0.4, 1.0]},
    ],
    [
        {"weight": 0.2, "curve": [1.0, 0.0, 0.5], "attention": "keys and values", "blocks": "precise composition"},
        {"unit": "noise", "end": 0.6, "image_weights": [1.5, 0.2]},
    ],
    [{"attention": "norm matched", "blocks": "style"}, {"attention": "joint softmax", "weight": 0.3}],
    [{"attention": "norm matched", "weight": -0.5}, {"attention": "joint softmax", "blocks": "ease in", "end": 0.5}],
]


@pytest.mark.parametrize(
    ("pair", "fuse"),
    [(COMPOSED[:2], True), (COMPOSED[2:], True), (COMPOSED[2:], False)],
    ids=["tables", "with-the-host", "with-the-host-taps"],
)
def test_composed_prompts(pair: list[list[dict[str, Any]]], fuse: bool) -> None:
    """Everything that tables and tokens can say is the same compiled, and changes without another graph."""
    from imprompt.generation.attach import attach as attach_prompts
    from imprompt.prompts.image_prompt import ImagePrompt

    def outputs(pipe: Any, graphs: list[int]) -> list[Tensor]:
        made = []
        with attach_prompts(pipe, tiny.adapter(pipe.unet), fuse=fuse) as images:
            for fields in pair:
                images.set(
                    rows=[[ImagePrompt([tiny.picture(seed=1), tiny.picture(seed=2)], **each)] for each in fields]
                )
                made.append(two_rows(pipe))
                graphs.append(num_graphs())
        return made

    parts = {"image_encoder": tiny.vision_tower(), "feature_extractor": tiny.image_processor()}
    wanted = outputs(tiny.pipeline(family="small", **parts), [])
    graphs: list[int] = []
    found = outputs(compiled(tiny.pipeline(family="small", **parts)), graphs)
    assert (wanted[0] - wanted[1]).abs().max() > 0.1
    assert all(close(a, b) for a, b in zip(found, wanted, strict=True))
    assert graphs[0] == graphs[1] <= 2
