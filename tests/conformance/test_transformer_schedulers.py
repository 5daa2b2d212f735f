"""Samplers that follow flows, on FLUX and Stable Diffusion 3: chosen by name, both halves of guidance told apart."""

import copy

import pytest
from torch import Tensor

from imprompt.adapter.attach import attach
from imprompt.core.errors import PromptError
from imprompt.generation.pipelines import FLOW_SCHEDULERS, SCHEDULERS, set_scheduler
from tests import tiny
from tests import tiny_transformers as transformers
from tests.conformance.test_transformer_pipelines import recording, told, windowed

# diffusers' DPM-Solver hands tensors to NumPy the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


@pytest.mark.parametrize("name", FLOW_SCHEDULERS)
def test_flux(name: str) -> None:
    model = transformers.flux()
    adapter = transformers.adapter("flux-xlabs", model)
    branch = transformers.branch(adapter)
    pipe, host = transformers.flux_pipeline(model), copy.deepcopy(model)
    set_scheduler(pipe, name)
    with attach(pipe, adapter) as images, recording(model) as calls:
        images.set(transformers.conditioning(branch))
        transformers.generate(pipe, steps=4)
    assert told(host, adapter, branch, calls) == ["positive", "negative"] * 4
    early = transformers.branch(adapter, schedule=tiny.window(0.0, 0.5))
    assert windowed(pipe, adapter, early, branch, host, steps=4) == [True] * 4 + [False] * 4


def fine(name: str, steps: int = 120) -> Tensor:
    """A picture of two by two tokens, in many steps."""
    pipe = transformers.sd3_pipeline(transformers.sd3(num_layers=1))
    for sampler in (name, "euler", name):  # there and back again
        set_scheduler(pipe, sampler)
    return transformers.generate(pipe, steps=steps, guidance_scale=1.0, height=8, width=8)


def test_many_steps_end_where_eulers_do() -> None:
    """All solve one equation, with the shift that the model was trained with: fine steps bring them together."""
    wanted, coarse = fine("euler"), fine("euler", steps=4)
    for name in FLOW_SCHEDULERS:
        assert (fine(name) - wanted).abs().mean() < 0.25 * (coarse - wanted).abs().mean()


@pytest.mark.parametrize("name", sorted(SCHEDULERS.keys() - FLOW_SCHEDULERS.keys()))
def test_samplers_of_noise_are_refused(name: str) -> None:
    pipe = transformers.flux_pipeline()
    with pytest.raises(PromptError, match=f"'{name}' is not for FluxPipeline.*one of dpm, euler, unipc"):
        set_scheduler(pipe, name)
