"""torch.compile of FLUX and Stable Diffusion 3 with image prompts; run by `test_transformers_compile.py`.

In a process of its own, where nothing checks types.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from imprompt.adapter.attach import attach
from imprompt.core.errors import ConditioningError
from tests import tiny
from tests import tiny_transformers as transformers


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def num_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def small(family: str) -> Any:
    """A pipeline whose host is quick to trace."""
    layers = {"num_layers": 1} if family.startswith("sd3") else {"num_layers": 1, "num_single_layers": 1}
    return transformers.pipeline(family, transformers.host(family, **layers))


def run(pipe: Any, **options: Any) -> Tensor:
    return transformers.generate(pipe, 2, **options)


def half(side: int) -> Tensor:
    region = torch.zeros(2, 24, 32)
    region[..., side * 16 : side * 16 + 16] = 1
    return region


def compiled(pipe: Any, *, in_place: bool, backend: str = "eager") -> Any:
    if in_place:
        pipe.transformer.compile(fullgraph=True, backend=backend)
    else:
        pipe.transformer = torch.compile(pipe.transformer, fullgraph=True, backend=backend)
    return pipe


def prompts(adapter: Any, joint: Tensor | None = None, **options: Any) -> Any:
    return transformers.conditioning(replace(transformers.branch(adapter, 2, **options), joint=joint))


def check(family: str, sets: Any, *, in_place: bool = False, backend: str = "eager", **options: Any) -> None:
    """Compiled outputs equal eager ones, whole and without a further graph after the first set of prompts."""
    pipe = small(family)
    adapter = transformers.adapter(family, pipe.transformer)
    made = [prompts(adapter, **each) for each in sets]
    wanted = []
    with attach(pipe, adapter) as images:
        for each in made:
            images.set(each)
            wanted.append(run(pipe, **options))
    assert all((a - b).abs().max() > 0.01 for a, b in zip(wanted, wanted[1:], strict=False))
    plain = run(pipe, **options)
    compiled(pipe, in_place=in_place, backend=backend)
    settled = 0
    with attach(pipe, adapter) as images:
        for each, output in zip(made, wanted, strict=True):
            images.set(each)
            torch.testing.assert_close(run(pipe, **options), output, atol=1e-4, rtol=1e-4)
            settled = settled or num_graphs()
            assert num_graphs() == settled <= 2
    torch.testing.assert_close(run(pipe, **options), plain, atol=1e-4, rtol=1e-4)


# Every case traces a denoiser a few times, so not every combination is tried: others here are wrapped.
@pytest.mark.parametrize(
    ("family", "in_place"),
    [("flux-xlabs", False), ("flux-pulid", False), ("sd3", False), ("flux", True), ("sd3-instantx", True)],
)
def test_no_recompilation_when_prompts_and_scales_change(family: str, in_place: bool) -> None:
    sets: list[dict[str, Any]] = [{}, {"seed": 5}, {"weight": 0.3}, {"weight": [0.0, 1.5]}]
    check(family, sets, in_place=in_place)


@pytest.mark.parametrize("family", ["flux-instantx", "sd3-instantx"])
def test_aot_graph_is_whole(family: str) -> None:
    check(family, [{}, {"seed": 5}], backend="aot_eager")


@pytest.mark.parametrize(
    ("family", "joint"), [("flux", True), ("flux-xlabs", False), ("flux-instantx", False), ("sd3-instantx", False)]
)
def test_masks_and_windows(family: str, joint: bool) -> None:
    """On FLUX the picture's size stands in numbers on the device; the graph does not depend on them.

    There one of both rows shares one softmax with what the host attends to.
    """
    early, late = tiny.window(0.0, 0.5), tiny.window(0.5, 1.0)
    sets = [
        {"region": half(0), "schedule": early},
        {"region": half(1), "schedule": early},
        {"region": half(0), "schedule": late, "weight": [1.2, 0.7]},
    ]
    check(family, [{**each, "joint": torch.tensor([True, False])} for each in sets] if joint else sets, steps=4)


def test_masks_of_other_sizes_of_picture() -> None:
    """The same graph, or one with its length left open, serves a picture that is turned by a quarter."""
    pipe = small("flux")
    adapter = transformers.adapter("flux", pipe.transformer)
    sizes = [{"height": 24, "width": 32}, {"height": 32, "width": 24}, {"height": 16, "width": 40}]
    with attach(pipe, adapter) as images:
        images.set(prompts(adapter, region=half(0)))
        wanted = [run(pipe, **size) for size in sizes]
    compiled(pipe, in_place=False)
    with attach(pipe, adapter) as images:
        images.set(prompts(adapter, region=half(0)))
        for size, output in zip(sizes, wanted, strict=True):
            torch.testing.assert_close(run(pipe, **size), output, atol=1e-4, rtol=1e-4)


def test_a_mask_that_cannot_be_placed_says_so_compiled_too() -> None:
    host = transformers.flux(num_layers=1, num_single_layers=1)
    adapter = transformers.adapter("flux", host)
    arguments = transformers.inputs(host)
    arguments["img_ids"] = torch.cat([transformers.ids(6, 4), transformers.ids(6, 4, number=1)])
    model = torch.compile(host, fullgraph=True, backend="eager")
    with attach(host, adapter) as images:
        images.set(transformers.conditioning(transformers.branch(adapter, region=half(0)[:1])))
        with pytest.raises(ConditioningError, match="a mask cannot be placed"):
            tiny.call(model, arguments)


def test_two_adapters_one_of_them_with_a_mask() -> None:
    pipe = small("flux")
    adapters = [transformers.adapter("flux", pipe.transformer, seed=seed) for seed in (1, 2)]
    branches = [
        transformers.branch(adapters[0], 2),
        transformers.branch(adapters[1], 2, number=1, region=half(1)),
    ]
    with attach(pipe, *adapters) as images:
        images.set(transformers.conditioning(*branches))
        wanted = run(pipe)
    compiled(pipe, in_place=False)
    with attach(pipe, *adapters) as images:
        images.set(transformers.conditioning(*branches))
        torch.testing.assert_close(run(pipe), wanted, atol=1e-4, rtol=1e-4)


def test_compiled_blocks() -> None:
    """Only the blocks are compiled, as diffusers advises for FLUX."""
    pipe = small("flux")
    adapter = transformers.adapter("flux", pipe.transformer)
    with attach(pipe, adapter) as images:
        images.set(prompts(adapter, region=half(0)))
        wanted = run(pipe)
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    with attach(pipe, adapter) as images:
        images.set(prompts(adapter, region=half(0)))
        torch.testing.assert_close(run(pipe), wanted, atol=1e-4, rtol=1e-4)


def test_lora_loaded_after_attaching() -> None:
    from peft import LoraConfig

    def load(pipe: Any) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            targets = ["to_q", "to_k", "to_v", "to_out.0", "proj_out"]
            pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))

    pipe = small("sd3-instantx")
    adapter = transformers.adapter("sd3-instantx", pipe.transformer)
    load(pipe)
    with attach(pipe, adapter) as images:
        images.set(prompts(adapter))
        wanted = run(pipe)
    pipe = small("sd3-instantx")
    pipe.transformer.compile(fullgraph=True, backend="eager")
    with attach(pipe, adapter) as images:
        images.set(prompts(adapter))
        assert not torch.allclose(run(pipe), wanted, atol=1e-2)
        load(pipe)
        torch.testing.assert_close(run(pipe), wanted, atol=1e-4, rtol=1e-4)
