"""Every kind of diffusers pipeline, unchanged: each row of each call of the UNet has its own image.

The oracle (`replay.py`) goes by the text in a row, and so checks the guidance layouts from the outside.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import pytest
import torch

from imprompt.adapter.attach import attach
from imprompt.core.errors import ConditioningError, HostMismatch
from tests import tiny
from tests.conformance.replay import Recorder, check_calls

PROMPTS, NEGATIVE = ("a cat", "the dog"), "blur"


def _pictures(count: int = 2) -> list[Any]:
    return [tiny.picture(seed=seed) for seed in range(count)]


@dataclass
class Kind:
    """One kind of pipeline and how it is called."""

    name: str
    family: str = "small"
    options: Callable[[], dict[str, Any]] = dict
    parts: Callable[[Any], dict[str, Any]] = lambda _unet: {}
    unet_changes: dict[str, Any] = field(default_factory=dict)
    guidance: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 4.0})
    steps: int = 2

    def build(self) -> Any:
        parts = self.parts(tiny.unet(self.family, **self.unet_changes))
        pipe = tiny.pipeline(getattr(diffusers, self.name), self.family, unet_changes=self.unet_changes, **parts)
        if hasattr(pipe, "set_pag_applied_layers"):
            pipe.set_pag_applied_layers(["mid"])
        return pipe


def _masked() -> dict[str, Any]:
    return {"image": _pictures(), "mask_image": [tiny.picture(seed=9)] * 2, "strength": 1.0, **_size()}


def _size() -> dict[str, Any]:
    return {"height": tiny.PIXELS, "width": tiny.PIXELS}


def _late() -> dict[str, Any]:
    return {"image": _pictures(), "strength": 0.5}


def _control() -> dict[str, Any]:
    return {"image": _pictures(), **_size()}


def _net(unet: Any) -> dict[str, Any]:
    return {"controlnet": tiny.controlnet(unet)}


KINDS = [
    Kind("StableDiffusionPipeline"),
    Kind("StableDiffusionPipeline", guidance={"guidance_scale": 4.0, "guidance_rescale": 0.7}),
    Kind("StableDiffusionImg2ImgPipeline", options=_late, steps=4),
    Kind("StableDiffusionInpaintPipeline", options=_masked),
    Kind("StableDiffusionInpaintPipeline", options=_masked, unet_changes={"in_channels": 9}),
    Kind("StableDiffusionControlNetPipeline", options=_control, parts=_net),
    Kind(
        "StableDiffusionControlNetImg2ImgPipeline",
        options=lambda: {**_late(), "control_image": _pictures()},
        parts=_net,
        steps=4,
    ),
    Kind(
        "StableDiffusionControlNetInpaintPipeline",
        options=lambda: {**_masked(), "control_image": _pictures()},
        parts=_net,
    ),
    Kind("StableDiffusionAdapterPipeline", options=_control, parts=lambda unet: {"adapter": tiny.t2i_adapter(unet)}),
    Kind(
        "StableDiffusionInstructPix2PixPipeline",
        options=lambda: {"image": _pictures()},
        unet_changes={"in_channels": 8},
        guidance={"guidance_scale": 4.0, "image_guidance_scale": 1.5},
    ),
    Kind("StableDiffusionPAGPipeline", guidance={"guidance_scale": 4.0, "pag_scale": 2.0}),
    Kind("StableDiffusionPAGPipeline", guidance={"guidance_scale": 4.0, "pag_scale": 0.0}),
    Kind(
        "StableDiffusionPAGImg2ImgPipeline", options=_late, guidance={"guidance_scale": 4.0, "pag_scale": 2.0}, steps=4
    ),
    Kind("StableDiffusionXLPipeline", family="sdxl"),
    Kind("StableDiffusionXLImg2ImgPipeline", family="sdxl", options=_late, steps=4),
    Kind("StableDiffusionXLInpaintPipeline", family="sdxl", options=_masked),
    Kind("StableDiffusionXLControlNetPipeline", family="sdxl", options=_control, parts=_net),
    Kind("StableDiffusionXLPAGPipeline", family="sdxl", guidance={"guidance_scale": 4.0, "pag_scale": 2.0}),
]


def _id(kind: Kind) -> str:
    extras = [*(f"{key}={value}" for key, value in {**kind.guidance, **kind.unet_changes}.items() if value != 4.0)]
    return "-".join([kind.name.removeprefix("StableDiffusion").removesuffix("Pipeline") or "Text", *extras])


def _run(pipe: Any, kind: Kind, **more: Any) -> Any:
    options = {**kind.options(), **kind.guidance, **more}
    return tiny.generate(pipe, list(PROMPTS), steps=kind.steps, negative_prompt=[NEGATIVE] * 2, **options)


@pytest.mark.parametrize("kind", KINDS, ids=_id)
@pytest.mark.parametrize("guided", [True, False], ids=["guided", "unguided"])
def test_every_row_has_its_own_image(kind: Kind, guided: bool) -> None:
    pipe = kind.build()
    adapter = tiny.adapter(pipe.unet)
    host = copy.deepcopy(pipe.unet)
    branch = tiny.branch(adapter, 2)
    more = {} if guided else {"guidance_scale": 1.0 if kind.name != "StableDiffusionPAGPipeline" else 0.0}
    with attach(pipe, adapter) as images:
        images.set(tiny.conditioning(branch))
        calls = check_calls(
            pipe,
            adapter,
            lambda: _run(pipe, kind, **more),
            prompts=PROMPTS,
            negative=NEGATIVE,
            images=branch,
            host=host,
        )
    assert calls >= 2


@pytest.mark.parametrize("kind", KINDS, ids=_id)
def test_detach_gives_the_pipeline_back(kind: Kind) -> None:
    pipe = kind.build()
    adapter = tiny.adapter(pipe.unet)
    plain = _run(pipe, kind)
    with attach(pipe, adapter) as images:
        assert torch.equal(_run(pipe, kind), plain)
        images.set(tiny.conditioning(tiny.branch(adapter, 2)))
        assert (_run(pipe, kind) - plain).abs().max() > 1e-2
    assert torch.equal(_run(pipe, kind), plain)


REPEATING = [kind for kind in KINDS if kind.name in {"StableDiffusionPipeline", "StableDiffusionPAGPipeline"}]
REPEATING += [kind for kind in KINDS if kind.name in {"StableDiffusionXLPipeline", "StableDiffusionControlNetPipeline"}]


@pytest.mark.parametrize("kind", REPEATING, ids=_id)
@pytest.mark.parametrize("guidance_scale", [4.0, 0.0])
def test_num_images_per_prompt(kind: Kind, guidance_scale: float) -> None:
    pipe = kind.build()
    adapter = tiny.adapter(pipe.unet)
    host = copy.deepcopy(pipe.unet)
    branch = tiny.branch(adapter, 2)
    more = {"num_images_per_prompt": 3, "guidance_scale": guidance_scale}
    with attach(pipe, adapter) as images:
        images.set(tiny.conditioning(branch))
        calls = check_calls(
            pipe,
            adapter,
            lambda: _run(pipe, kind, **more),
            prompts=PROMPTS,
            negative=NEGATIVE,
            images=branch,
            host=host,
        )
    assert calls == kind.steps


def test_one_image_serves_every_prompt() -> None:
    pipe = tiny.pipeline(family="small")
    adapter = tiny.adapter(pipe.unet)
    one = tiny.branch(adapter)
    twice = tiny.branch(adapter)
    twice = type(twice)(
        tokens=one.tokens.repeat(2, 1, 1), null_tokens=one.null_tokens.repeat(2, 1, 1), scale=one.scale.repeat(1, 1, 2)
    )
    outputs = []
    with attach(pipe, adapter) as images:
        for branch in (one, twice):
            images.set(tiny.conditioning(branch))
            outputs.append(_run(pipe, KINDS[0], num_images_per_prompt=2))
    assert torch.equal(*outputs)


def test_rows_that_do_not_fit_the_prompts_are_named() -> None:
    pipe = tiny.pipeline(family="small")
    adapter = tiny.adapter(pipe.unet)
    with attach(pipe, adapter) as images:
        images.set(tiny.conditioning(tiny.branch(adapter, 3)))
        with pytest.raises(ConditioningError, match=r"batch of 4.*'cfg'.*3 row"):
            _run(pipe, KINDS[0])


def test_guidance_without_null_tokens_is_named() -> None:
    pipe = tiny.pipeline(family="small")
    adapter = tiny.adapter(pipe.unet)
    with attach(pipe, adapter) as images:
        images.set(tiny.conditioning(tiny.branch(adapter, 2, null=False)))
        with pytest.raises(ConditioningError, match="null tokens"):
            _run(pipe, KINDS[0])
        _run(pipe, KINDS[0], guidance_scale=1.0)


def test_pipeline_that_does_not_tell_its_guidance_is_named() -> None:
    class Mute:
        def __init__(self, unet: Any) -> None:
            self.unet = unet

    host = tiny.unet("small")
    adapter = tiny.adapter(host)
    inputs = tiny.host_inputs(host, 2)
    with attach(Mute(host), adapter) as images:
        images.set(tiny.conditioning(tiny.branch(adapter)))
        with pytest.raises(ConditioningError, match="Mute does not tell"):
            tiny.call(host, inputs)
    with attach(Mute(host), adapter, guidance="cfg") as images:
        images.set(tiny.conditioning(tiny.branch(adapter)))
        tiny.call(host, inputs)


def test_unknown_guidance_and_pipeline_without_unet_are_named() -> None:
    host = tiny.unet("small")
    adapter = tiny.adapter(host)
    with pytest.raises(ConditioningError, match="'perp'"):
        attach(host, adapter, guidance="perp")
    with pytest.raises(HostMismatch, match="no denoiser"):
        attach(object(), adapter)
    with pytest.raises(HostMismatch, match="got Linear"):
        attach(torch.nn.Linear(2, 2), adapter)
    assert not any(module._forward_hooks for module in host.modules())


def test_unknown_adapter_number_is_named() -> None:
    host = tiny.unet("small")
    adapter = tiny.adapter(host)
    with attach(host, adapter) as images, pytest.raises(ConditioningError, match="adapter 1"):
        images.set(tiny.conditioning(tiny.branch(adapter, number=1)))


def test_negative_rows_of_other_prompts_have_their_own_weight() -> None:
    """The negative row of a prompt has that prompt's weight, so weight 0 is no adapter at all."""
    pipe = tiny.pipeline(family="small")
    adapter = tiny.adapter(pipe.unet)
    plain = _run(pipe, KINDS[0])
    with attach(pipe, adapter) as images:
        images.set(tiny.conditioning(tiny.branch(adapter, 2, weight=[0.0, 1.0])))
        output = _run(pipe, KINDS[0])
    assert torch.equal(output[0], plain[0])
    assert (output[1] - plain[1]).abs().max() > 1e-2


def test_pixels_come_out() -> None:
    """To the very end, once: the other tests stop at latents."""
    pipe = tiny.pipeline(family="small")
    adapter = tiny.adapter(pipe.unet)
    with attach(pipe, adapter) as images:
        images.set(tiny.conditioning(tiny.branch(adapter)))
        with Recorder(pipe) as recorder:
            pictures = tiny.generate(pipe, steps=2, output_type="pil")
    assert pictures[0].size == (tiny.PIXELS, tiny.PIXELS)
    assert len(recorder.calls) == 2
