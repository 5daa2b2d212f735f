"""Stable Diffusion 3.5: InstantX's adapter against diffusers' own, in whole pipelines with guidance."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.attach import attach
from tests import tiny
from tests import tiny_transformers as transformers
from tests.parity.native import largest_difference, official_state

LIMIT = 1e-5
SIZES = {"square": (32, 32), "wide": (24, 40), "tall": (36, 20)}


def native(model: Any, adapter: Adapter, scale: float = 0.5) -> Any:
    """A pipeline over a copy of a denoiser, with the adapter loaded diffusers' way."""
    pipe = transformers.sd3_pipeline(copy.deepcopy(model))
    pipe.transformer._load_ip_adapter_weights(official_state(adapter))
    pipe.set_ip_adapter_scale(scale)
    return pipe


def ours(model: Any, adapter: Adapter, rows: int, *branches: Any, **options: Any) -> Tensor:
    pipe = transformers.sd3_pipeline(model)
    with attach(pipe, adapter) as images:
        images.set(transformers.conditioning(*branches))
        return transformers.generate(pipe, rows, **options)


@pytest.fixture(params=["rms_norm", None], ids=["qk-norm", "no-qk-norm"], scope="module")
def model(request: pytest.FixtureRequest) -> Any:
    return transformers.sd3(qk_norm=request.param)


@pytest.mark.parametrize("size", SIZES)
def test_whole_pipeline(model: Any, size: str) -> None:
    height, width = SIZES[size]
    adapter = transformers.adapter("sd3-instantx", model)
    shown = transformers.features(adapter)
    options = {"height": height, "width": width, "steps": 4}
    theirs = transformers.generate(
        native(model, adapter, 0.7), 2, ip_adapter_image_embeds=torch.cat([torch.zeros_like(shown), shown]), **options
    )
    output = ours(model, adapter, 2, transformers.branch(adapter, weight=0.7, given=shown), **options)
    assert largest_difference(theirs, transformers.generate(transformers.sd3_pipeline(model), 2, **options)) > 0.1
    assert largest_difference(theirs, output) <= LIMIT


@pytest.mark.parametrize("num_tokens", [4, 64])
def test_without_guidance(model: Any, num_tokens: int) -> None:
    adapter = transformers.adapter("sd3-instantx", model, num_tokens=num_tokens)
    shown = transformers.features(adapter)
    theirs = transformers.generate(native(model, adapter), ip_adapter_image_embeds=shown, guidance_scale=1.0)
    branch = transformers.branch(adapter, weight=0.5, given=shown)
    assert largest_difference(theirs, ours(model, adapter, 1, branch, guidance_scale=1.0)) <= LIMIT


def test_every_row_equals_a_run_of_diffusers_with_its_picture(model: Any) -> None:
    adapter = transformers.adapter("sd3-instantx", model)
    shown = transformers.features(adapter, 2)
    output = ours(model, adapter, 2, transformers.branch(adapter, 2, weight=0.5, given=shown))
    reference = native(model, adapter)
    for row in range(2):
        one = shown[row : row + 1]
        theirs = transformers.generate(reference, 2, ip_adapter_image_embeds=torch.cat([torch.zeros_like(one), one]))
        assert largest_difference(theirs[row], output[row]) <= LIMIT


def test_projector_at_every_timestep(model: Any) -> None:
    adapter = transformers.adapter("sd3-instantx", model)
    theirs = copy.deepcopy(model)._convert_ip_adapter_image_proj_to_diffusers(official_state(adapter)["image_proj"])
    shown, timestep = transformers.features(adapter, 3), torch.tensor([999.0, 500.0, 1.5])
    with torch.no_grad():
        wanted = theirs(shown, timestep)
        made = adapter.image_proj(shown, timestep)
    assert all(largest_difference(a, b) <= LIMIT for a, b in zip(wanted, made, strict=True))


def test_one_call(model: Any) -> None:
    """Every block's own norms, two rows at timesteps of their own."""
    adapter = transformers.adapter("sd3-instantx", model)
    arguments = {**transformers.inputs(model, 2), "timestep": torch.tensor([900.0, 120.0])}
    shown = transformers.features(adapter, 2)
    with attach(model, adapter) as images:
        images.set(transformers.conditioning(transformers.branch(adapter, 2, weight=0.5, given=shown)))
        output = tiny.call(model, arguments)
    host = native(model, adapter).transformer
    theirs = tiny.call(host, {**arguments, "joint_attention_kwargs": {"ip_adapter_image_embeds": shown}})
    assert largest_difference(theirs, output) <= LIMIT
