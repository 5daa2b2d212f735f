"""Pipelines of diffusion transformers: in every call of the denoiser the right rows have the right tokens."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from imprompt.adapter.attach import attach
from imprompt.adapter.conditioning import Branch
from imprompt.core.errors import ConditioningError
from tests import tiny
from tests import tiny_transformers as transformers
from tests.conformance.replay import copied

FLUX = tuple(family for family in transformers.FAMILIES if family.startswith("flux"))


@contextmanager
def recording(host: Any) -> Iterator[list[tuple[dict[str, Any], Tensor]]]:
    """Arguments and output of every call of a host."""
    asked: list[dict[str, Any]] = []
    calls: list[tuple[dict[str, Any], Tensor]] = []
    handles = [
        host.register_forward_pre_hook(lambda _host, _args, kwargs: asked.append(copied(kwargs)), with_kwargs=True),
        host.register_forward_hook(lambda _host, _args, output: calls.append((asked[-1], output[0].clone()))),
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


Calls = Sequence[tuple[dict[str, Any], Tensor]]
LAYOUTS = {"none": "positive", "negative": "negative", "cfg": "both"}


def told(
    host: Any, adapter: Any, branch: Branch, calls: Calls, layouts: Sequence[str] = ("none", "negative")
) -> list[str]:
    """For every call, how an untouched host answers it just so, bit for bit: without images, or in a layout."""
    ways = ["plain", *layouts]
    found: list[list[str]] = [[] for _ in calls]
    for way in ways:
        with attach(host, adapter, guidance=None if way == "plain" else way) as images, torch.no_grad():
            images.set(None if way == "plain" else transformers.conditioning(branch))
            for names, (arguments, output) in zip(found, calls, strict=True):
                if torch.equal(host(**copied(arguments))[0], output):
                    names.append(LAYOUTS.get(way, way))
    return ["+".join(names) for names in found]


def parts(pipe: Any, adapter: Any, branch: Branch, host: Any, **options: Any) -> list[str]:
    """Which part of guidance each call of a run had the tokens of."""
    rows = options.pop("rows", 1)
    with attach(pipe, adapter) as images, recording(pipe.transformer) as calls:
        images.set(transformers.conditioning(branch))
        transformers.generate(pipe, rows, **options)
    return told(host, adapter, branch, calls)


@pytest.fixture(params=FLUX)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


# Calls of their own for both halves of guidance ----------------------------------------------------------------------


def test_positive_and_negative_calls(family: str) -> None:
    model = transformers.flux()
    adapter = transformers.adapter(family, model)
    pipe, host = transformers.flux_pipeline(model), copy.deepcopy(model)
    # Where the negative half sees no image, its answer is that without any.
    negative = "plain+negative" if adapter.spec.null_image == "none" else "negative"
    branch = transformers.branch(adapter, 2)
    assert parts(pipe, adapter, branch, host, rows=2) == ["positive", negative] * 3
    assert parts(pipe, adapter, branch, host, rows=2, true_cfg_scale=1.0) == ["positive"] * 3
    assert parts(pipe, adapter, branch, host, rows=2) == ["positive", negative] * 3


@pytest.fixture(scope="module")
def flux() -> tuple[Any, Any, Any, Branch]:
    """A denoiser, an untouched copy, an adapter, and a prompt for one row."""
    model = transformers.flux()
    adapter = transformers.adapter("flux-xlabs", model)
    return model, copy.deepcopy(model), adapter, transformers.branch(adapter)


def test_scheduler_that_repeats_timesteps(flux: Any) -> None:
    """Heun asks twice at a timestep, both times for both halves."""
    model, host, adapter, branch = flux
    pipe = transformers.flux_pipeline(model, scheduler=transformers.heun())
    found = parts(pipe, adapter, branch, host, steps=4)
    assert len(found) == 14 and found == ["positive", "negative"] * 7


@pytest.mark.parametrize("after", [1, 2, 3])
def test_interrupted_run_is_followed_by_a_whole_one(flux: Any, after: int) -> None:
    """A run that ends between two halves leaves nothing behind."""
    model, host, adapter, branch = flux
    pipe = transformers.flux_pipeline(model)
    count = 0

    def interrupt(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == after:
            raise KeyboardInterrupt

    with attach(pipe, adapter) as images:
        images.set(transformers.conditioning(branch))
        handle = model.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            transformers.generate(pipe)
        handle.remove()
        with recording(model) as calls:
            transformers.generate(pipe)
    assert told(host, adapter, branch, calls) == ["positive", "negative"] * 3


def test_run_that_is_stopped_by_a_callback(flux: Any) -> None:
    model, host, adapter, branch = flux
    pipe = transformers.flux_pipeline(model)

    def stop(pipe: Any, step: int, _timestep: Any, _tensors: Any) -> dict[str, Any]:
        pipe._interrupt = step == 1
        return {}

    assert parts(pipe, adapter, branch, host, callback_on_step_end=stop) == ["positive", "negative"] * 2
    assert parts(pipe, adapter, branch, host) == ["positive", "negative"] * 3


def test_prompts_set_between_steps(flux: Any) -> None:
    """New prompts in a callback hold from the next step on, and the halves are still told apart."""
    model, host, adapter, branch = flux
    other = transformers.branch(adapter, seed=7)
    pipe = transformers.flux_pipeline(model)
    with attach(pipe, adapter) as images, recording(model) as calls:
        images.set(transformers.conditioning(branch))

        def change(_pipe: Any, step: int, _timestep: Any, _tensors: Any) -> dict[str, Any]:
            images.set(transformers.conditioning(other) if step == 0 else None)
            return {}

        transformers.generate(pipe, callback_on_step_end=change)
    found = told(host, adapter, branch, calls[:2]) + told(host, adapter, other, calls[2:])
    assert found == ["positive", "negative"] * 2 + ["plain"] * 2


def test_two_pipelines_share_a_denoiser(flux: Any) -> None:
    """Only the pipeline that was attached to tells of guidance; the other's schedulers do not confuse it."""
    model, host, adapter, branch = flux
    pipe, other = transformers.flux_pipeline(model), transformers.flux_pipeline(model)
    with attach(pipe, adapter) as images:
        images.set(transformers.conditioning(branch))
        with recording(model) as calls:
            transformers.generate(pipe)
        images.set(None)
        transformers.generate(other)
        images.set(transformers.conditioning(branch))
        with recording(model) as again:
            transformers.generate(pipe)
    for each in (calls, again):
        assert told(host, adapter, branch, each) == ["positive", "negative"] * 3


IMAGE_TO_IMAGE: dict[type, dict[str, Any]] = {
    diffusers.FluxImg2ImgPipeline: {"strength": 0.6},
    diffusers.FluxInpaintPipeline: {"strength": 0.6, "mask_image": True},
}


@pytest.mark.parametrize("kind", IMAGE_TO_IMAGE, ids=lambda kind: kind.__name__)
def test_pipelines_that_start_from_a_picture(flux: Any, kind: type) -> None:
    """Strength 0.6 of five steps runs three; a window counts those."""
    model, host, adapter, branch = flux
    pipe = transformers.flux_pipeline(model, kind=kind)
    options = dict(IMAGE_TO_IMAGE[kind])
    picture = tiny.picture(size=transformers.SIZE[::-1])
    if options.get("mask_image"):
        options["mask_image"] = picture.convert("L")
    options |= {"image": picture, "steps": 5, **transformers.guided(pipe), "true_cfg_scale": 3.0}
    assert parts(pipe, adapter, branch, host, **options) == ["positive", "negative"] * 3
    late = transformers.branch(adapter, schedule=tiny.window(0.0, 0.5))
    found = windowed(pipe, adapter, late, branch, host, **options)
    assert found == [True, True, True, True, False, False]


@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning")
def test_controlnet(flux: Any) -> None:
    """A ControlNet is asked beside the denoiser, and is no half of guidance."""
    model, host, adapter, branch = flux
    config = {**model.config, "num_layers": 1, "num_single_layers": 1}
    names = ("num_layers", "num_single_layers", "attention_head_dim", "num_attention_heads", "in_channels")
    names += ("joint_attention_dim", "pooled_projection_dim", "axes_dims_rope")
    chosen = {name: config[name] for name in names}
    net = tiny.seeded(lambda: transformers.drawn(diffusers.FluxControlNetModel(**chosen)), 13)
    pipe = transformers.flux_pipeline(model, kind=diffusers.FluxControlNetPipeline, controlnet=net)
    control = tiny.picture(size=transformers.SIZE[::-1])
    found = parts(pipe, adapter, branch, host, control_image=control, true_cfg_scale=3.0)
    assert found == ["positive", "negative"] * 3


# Windows -------------------------------------------------------------------------------------------------------------


def windowed(pipe: Any, adapter: Any, branch: Branch, full: Branch, host: Any, **options: Any) -> list[bool]:
    """Which calls of a run had the prompt; each has it wholly or, bit for bit, not at all."""
    with attach(pipe, adapter) as images, recording(pipe.transformer) as calls:
        images.set(transformers.conditioning(branch))
        transformers.generate(pipe, **options)
    layouts = ["cfg"] if isinstance(pipe, diffusers.StableDiffusion3Pipeline) else ["none", "negative"]
    found = told(host, adapter, full, calls, layouts)
    assert set(found) <= {"plain", "positive", "negative", "both"}
    return [name != "plain" for name in found]


@pytest.mark.parametrize("family", ["flux", "flux-xlabs", "sd3", "sd3-instantx"])
def test_windows(family: str) -> None:
    """FLUX gives its denoiser thousandths of timesteps, which a scheduler counts by the thousand."""
    model = transformers.host(family)
    adapter = transformers.adapter(family, model)
    pipe, host = transformers.pipeline(family, model), copy.deepcopy(model)
    num_calls = 2 if family.startswith("flux") else 1
    windows = {(0.0, 0.5): "xx..", (0.5, 1.0): "..xx", (0.25, 0.75): ".xx.", (0.0, 0.01): "x..."}
    for (start, end), wanted in windows.items():
        branch = transformers.branch(adapter, schedule=tiny.window(start, end))
        found = windowed(pipe, adapter, branch, transformers.branch(adapter), host, steps=4)
        assert found == [step == "x" for step in wanted for _ in range(num_calls)]


# Rows and numbers of images ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", transformers.FAMILIES)
def test_rows_of_a_pipeline_equal_their_own_runs(family: str) -> None:
    """Two prompts with pictures and weights of their own, two pictures of each, in one batch and alone."""
    pipe = transformers.pipeline(family, with_texts=True)
    adapter = transformers.adapter(family, pipe.transformer)
    shown, noise = transformers.features(adapter, 2), noise_for(pipe, 4)
    options = {"max_sequence_length": 6, "steps": 2}
    texts = {"prompt": ["a cat", "a dog"], "negative_prompt": ["dull", "grey"]}
    with attach(pipe, adapter) as images:
        images.set(transformers.conditioning(transformers.branch(adapter, 2, given=shown, weight=[0.9, 0.4])))
        together = transformers.generate(pipe, latents=noise, num_images_per_prompt=2, **texts, **options)
        for row, weight in enumerate((0.9, 0.4)):
            one = transformers.branch(adapter, given=shown[row : row + 1], weight=weight)
            images.set(transformers.conditioning(one))
            own = {name: value[row] for name, value in texts.items()}
            alone = transformers.generate(
                pipe, latents=noise[2 * row : 2 * row + 2], num_images_per_prompt=2, **own, **options
            )
            torch.testing.assert_close(together[2 * row : 2 * row + 2], alone, atol=1e-4, rtol=1e-4)


def noise_for(pipe: Any, rows: int) -> Tensor:
    if isinstance(pipe, diffusers.StableDiffusion3Pipeline):
        return tiny.rand(rows, transformers.CHANNELS, transformers.SIZE[0] // 2, transformers.SIZE[1] // 2, seed=60)
    return tiny.rand(rows, transformers.GRID[0] * transformers.GRID[1], 4 * transformers.CHANNELS, seed=60)


def test_row_without_an_image_is_the_stock_one(family: str) -> None:
    pipe = transformers.flux_pipeline()
    adapter = transformers.adapter(family, pipe.transformer)
    noise = noise_for(pipe, 2)
    plain = transformers.generate(pipe, 2, latents=noise)
    with attach(pipe, adapter) as images:
        images.set(transformers.conditioning(transformers.branch(adapter, 2, weight=[1.0, 0.0])))
        output = transformers.generate(pipe, 2, latents=noise)
    assert torch.equal(output[1], plain[1]) and not torch.equal(output[0], plain[0])


def test_skip_layer_guidance() -> None:
    """Three calls at some steps: both halves, and the positive rows once more."""
    model = transformers.sd3()
    for family in ("sd3", "sd3-instantx"):
        adapter = transformers.adapter(family, model)
        branch = transformers.branch(adapter)
        pipe, host = transformers.sd3_pipeline(model), copy.deepcopy(model)
        options = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
        with attach(pipe, adapter) as images, recording(model) as calls:
            images.set(transformers.conditioning(branch))
            transformers.generate(pipe, steps=3, **options)
        skipping = [call for call in calls if call[0].get("skip_layers")]
        assert len(calls) == 5 and len(skipping) == 2
        assert told(host, adapter, branch, skipping, ["none"]) == ["positive"] * 2


# Wrong use -----------------------------------------------------------------------------------------------------------


def test_a_scheduler_that_does_not_count_is_refused(flux: Any) -> None:
    """Without a count nothing would tell the halves apart, so the run ends in a sentence at once."""
    model, _host, adapter, branch = flux

    class Uncounted(diffusers.FlowMatchEulerDiscreteScheduler):
        @property
        def step_index(self) -> Any:
            raise AttributeError("step_index")

    pipe = transformers.flux_pipeline(model, scheduler=Uncounted(use_dynamic_shifting=True))
    with attach(pipe, adapter) as images:
        images.set(transformers.conditioning(branch))
        with pytest.raises(ConditioningError, match="called once for each half of guidance.*pass guidance="):
            transformers.generate(pipe, true_cfg_scale=1.0)
    with attach(pipe, adapter, guidance="none") as images:
        images.set(transformers.conditioning(branch))
        assert images.bank_rows(1) == (0,)


def test_conditioning_without_null_tokens_is_refused_under_guidance(flux: Any) -> None:
    model, _host, adapter, branch = flux
    pipe = transformers.flux_pipeline(model)
    bare = Branch(tokens=branch.tokens, null_tokens=None, scale=branch.scale)
    with attach(pipe, adapter) as images:
        images.set(transformers.conditioning(bare))
        transformers.generate(pipe, true_cfg_scale=1.0)
        with pytest.raises(ConditioningError, match="null.tokens"):
            transformers.generate(pipe)
