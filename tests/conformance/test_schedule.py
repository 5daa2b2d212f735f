"""Start and end of a prompt, in pipelines: each call of the UNet has the prompt, or is bit for bit without it."""

import copy
from typing import Any

import diffusers
import pytest
import torch

from imprompt.adapter.attach import attach
from imprompt.core.errors import ConditioningError
from tests import tiny
from tests.conformance.replay import Recorder, copied

# diffusers' Euler and its kin hand tensors to NumPy the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SCHEDULERS = [
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
]


def with_scheduler(pipe: Any, name: str) -> Any:
    config = dict(pipe.scheduler.config)
    if name == "PNDMScheduler":
        config["skip_prk_steps"] = True
    pipe.scheduler = getattr(diffusers, name).from_config(config)
    return pipe


def active_calls(pipe: Any, start: float, end: float, **options: Any) -> list[bool]:
    """Which calls of the UNet had the prompt; every one has it wholly or, bit for bit, not at all."""
    host = copy.deepcopy(pipe.unet)
    adapter = tiny.adapter(host)
    with attach(pipe, adapter) as images, Recorder(pipe) as recorder:
        images.set(tiny.conditioning(tiny.branch(adapter, schedule=tiny.window(start, end))))
        tiny.generate(pipe, **options)
    active = []
    guidance = "cfg" if pipe.do_classifier_free_guidance else "none"
    for call in recorder.calls:
        with torch.no_grad():
            plain = host(*copied(call.args), **{**copied(call.kwargs), "return_dict": False})[0]
            with attach(host, adapter, guidance=guidance) as images:
                images.set(tiny.conditioning(tiny.branch(adapter)))
                full = host(*copied(call.args), **{**copied(call.kwargs), "return_dict": False})[0]
        without = torch.equal(call.output, plain)
        assert without or torch.equal(call.output, full)
        assert not torch.equal(plain, full)
        active.append(not without)
    return active


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize(
    ("start", "end", "wanted"),
    [
        (0.0, 1.0, [1, 1, 1, 1, 1, 1]),
        (0.0, 0.5, [1, 1, 1, 0, 0, 0]),
        (0.5, 1.0, [0, 0, 0, 1, 1, 1]),
        (0.3, 0.6, [0, 0, 1, 1, 0, 0]),
        (0.0, 0.01, [1, 0, 0, 0, 0, 0]),
    ],
)
def test_window(name: str, start: float, end: float, wanted: list[int]) -> None:
    pipe = with_scheduler(tiny.pipeline(family="small"), name)
    assert active_calls(pipe, start, end, steps=6) == [bool(each) for each in wanted]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_first_half_with_every_scheduler(name: str) -> None:
    pipe = with_scheduler(tiny.pipeline(family="small"), name)
    active = active_calls(pipe, 0.0, 0.5, steps=4)
    assert active == sorted(active, reverse=True)
    assert abs(sum(active) - len(active) / 2) <= 0.5


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler"])
def test_schedulers_that_visit_timesteps_twice(name: str) -> None:
    """Both visits of a timestep are alike, so the two halves of a run add up to all of it without overlap."""
    first, second = (
        active_calls(with_scheduler(tiny.pipeline(family="small"), name), start, end, steps=4)
        for start, end in [(0, 0.5), (0.5, 1)]
    )
    assert first == sorted(first, reverse=True) and second == sorted(second)
    assert [a != b for a, b in zip(first, second, strict=True)] == [True] * len(first)
    assert abs(sum(first) - len(first) / 2) <= 1.5  # calls; a step has two


def test_without_guidance() -> None:
    assert active_calls(tiny.pipeline(family="small"), 0.0, 0.5, steps=4, guidance_scale=1.0) == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_image_to_image_counts_its_own_steps(name: str) -> None:
    """Strength 0.5 of eight steps runs the last four: their first half is the first two."""
    pipe = with_scheduler(tiny.pipeline(diffusers.StableDiffusionImg2ImgPipeline, "small"), name)
    active = active_calls(pipe, 0.0, 0.5, steps=8, image=tiny.picture(), strength=0.5)
    assert active == [True, True, False, False]


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_denoising_end_counts_its_own_steps(name: str) -> None:
    """An SDXL base that stops at 0.5 of eight steps runs the first four."""
    pipe = with_scheduler(tiny.pipeline(family="sdxl"), name)
    assert active_calls(pipe, 0.0, 0.5, steps=8, denoising_end=0.5) == [True, True, False, False]


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_denoising_start_counts_its_own_steps(name: str) -> None:
    pipe = with_scheduler(tiny.pipeline(diffusers.StableDiffusionXLImg2ImgPipeline, "sdxl"), name)
    latents = tiny.rand(1, 4, 16, 16)
    active = active_calls(pipe, 0.0, 0.5, steps=8, image=latents, denoising_start=0.5)
    assert active == [True, True, False, False]


def test_late_start_and_early_end() -> None:
    """Strength 0.75 of eight steps, stopped at 0.75: the third to the sixth."""
    pipe = tiny.pipeline(diffusers.StableDiffusionXLImg2ImgPipeline, "sdxl")
    pipe = with_scheduler(pipe, "EulerDiscreteScheduler")
    active = active_calls(pipe, 0.0, 0.5, steps=8, image=tiny.picture(), strength=0.75, denoising_end=0.75)
    assert active == sorted(active, reverse=True)
    assert abs(sum(active) - len(active) / 2) <= 0.5


def test_given_timesteps() -> None:
    pipe = tiny.pipeline(family="small")
    pipe = with_scheduler(pipe, "EulerDiscreteScheduler")
    assert active_calls(pipe, 0.0, 0.5, timesteps=[900, 880, 860, 20]) == [True, True, False, False]


def test_a_second_run_starts_anew() -> None:
    pipe = tiny.pipeline(family="small")
    adapter = tiny.adapter(pipe.unet)
    with attach(pipe, adapter) as images:
        images.set(tiny.conditioning(tiny.branch(adapter, schedule=tiny.window(0.0, 0.5))))
        first = [tiny.generate(pipe, steps=steps) for steps in (4, 6, 4)]
    assert torch.equal(first[0], first[2])


def test_outside_the_window_is_no_adapter() -> None:
    pipe = tiny.pipeline(family="small")
    adapter = tiny.adapter(pipe.unet)
    plain = tiny.generate(pipe, steps=4)
    with attach(pipe, adapter) as images:
        images.set(tiny.conditioning(tiny.branch(adapter, schedule=tiny.window(0.9, 0.95))))
        assert torch.equal(tiny.generate(pipe, steps=4), plain)


def test_rows_with_their_own_windows() -> None:
    pipe = tiny.pipeline(family="small")
    adapter = tiny.adapter(pipe.unet)
    texts = ["a cat", "a dog"]
    plain = tiny.generate(pipe, texts)
    branch = tiny.branch(adapter, 2, schedule=tiny.window(0.0, 0.5))
    branch.scale[..., 1] = 0
    with attach(pipe, adapter) as images:
        images.set(tiny.conditioning(branch))
        output = tiny.generate(pipe, texts)
    assert torch.equal(output[1], plain[1])
    assert (output[0] - plain[0]).abs().max() > 1e-2


def test_one_scheduled_and_one_constant_prompt() -> None:
    """Each keeps its own: in the second half only the constant one acts."""
    pipe = tiny.pipeline(family="small")
    adapter = tiny.adapter(pipe.unet)
    constant, early = tiny.branch(adapter, weight=0.5), tiny.branch(adapter, seed=4, schedule=tiny.window(0.0, 0.5))
    host = copy.deepcopy(pipe.unet)
    with attach(pipe, adapter) as images, Recorder(pipe) as recorder:
        images.set(tiny.conditioning(constant, early))
        tiny.generate(pipe, steps=2)
    last = recorder.calls[-1]
    with attach(host, adapter, guidance="cfg") as images, torch.no_grad():
        images.set(tiny.conditioning(constant))
        wanted = host(*last.args, **{**last.kwargs, "return_dict": False})[0]
    assert torch.equal(last.output, wanted)


def test_window_without_a_pipeline_is_named() -> None:
    host = tiny.unet("small")
    adapter = tiny.adapter(host)
    with attach(host, adapter) as images:
        images.set(tiny.conditioning(tiny.branch(adapter, schedule=tiny.window(0.0, 0.5))))
        with pytest.raises(ConditioningError, match="attach to the pipeline"):
            tiny.call(host, tiny.host_inputs(host))
