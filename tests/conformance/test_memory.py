"""What stays of an adapter while its host denoises: keys and values, and the LoRA of those that have one."""

import pytest
import torch

from benchmarks.adapter_memory import VARIANTS, held, measure, sdxl
from imprompt.adapter.attach import attach
from imprompt.adapter.families.unet import find_sites
from tests import tiny, tiny_faces
from tests import tiny_transformers as transformers

LIMIT = 0.02


def test_no_more_than_a_fiftieth_at_full_size() -> None:
    """A denoising call of Stable Diffusion XL with the plus adapter, on a device without memory."""
    host = sdxl()
    variant = next(variant for variant in VARIANTS if variant.name == "plus")
    size, stays = measure(host, variant)
    width = sum(site.query_width for site in find_sites(host))
    assert (size, width) == (2 * 423_748_864, 83_200)
    halves, keys_and_values, bytes_each = 2, 2, 2
    assert stays == {"lora": 0, "rest": halves * keys_and_values * bytes_each * 16 * width}
    assert stays["rest"] <= LIMIT * size


@pytest.mark.parametrize("kind", ["plus", "faceid"])
def test_the_adapter_may_be_away(kind: str) -> None:
    """With nothing of it left anywhere, the host denoises as before."""
    host = tiny_faces.host("sdxl_70")
    adapter = tiny_faces.adapter(host, kind)
    inputs = tiny.host_inputs(host, 2)
    with attach(host, adapter, offload=True, guidance="cfg") as images:
        images.set(tiny.conditioning(tiny.branch(adapter)))
        wanted = tiny.call(host, inputs)
        images.set(tiny.conditioning(tiny.branch(adapter)))
        adapter.to("meta")
        assert torch.equal(tiny.call(host, inputs), wanted)
        widths = sum(site.query_width for site in images.sites)
        assert held(images)["rest"] == 2 * 2 * 4 * adapter.spec.num_tokens * widths
        lora = sum(value.nbytes for name, value in adapter.state_dict().items() if "_lora." in name)
        assert 0 <= held(images)["lora"] - lora <= 4  # its strength in the one row


def test_an_adapter_that_works_at_every_step_stays() -> None:
    """What depends on the timestep is made at every call, wherever the adapter itself has gone; in memory once."""
    host = transformers.host("sd3-instantx")
    adapter = transformers.adapter("sd3-instantx", host)
    inputs = transformers.inputs(host, 2)
    with attach(host, adapter, offload=True) as images:
        images.set(transformers.conditioning(transformers.branch(adapter, 2)))
        wanted = tiny.call(host, inputs)
        stays = {weight.data_ptr() for weight in images._banks[0].adapter.parameters()}  # pyright: ignore
        assert stays == {weight.data_ptr() for weight in adapter.parameters()}
        adapter.to("meta")
        assert torch.equal(tiny.call(host, inputs), wanted)


def test_an_adapter_that_works_at_every_step_follows_its_pipeline() -> None:
    host = transformers.host("sd3-instantx")
    adapter = transformers.adapter("sd3-instantx", host)
    with attach(host, adapter) as images:
        images.set(transformers.conditioning(transformers.branch(adapter, 2)))
        (bank,) = images._banks
        bound = bank.bind(torch.tensor([0, 1], device="meta"), None, torch.tensor([500.0]))
        made = [part for part in (*bound.keys, *bound.values) if part is not None]
        assert made and all(part.device.type == "meta" for part in made)
