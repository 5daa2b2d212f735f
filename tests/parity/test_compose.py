"""diffusers' own forms of composition: nested scales by block, and scales and masks for each picture; 1e-5 apart."""

import pytest
import torch
from PIL import Image

from imprompt.adapter.attach import attach
from imprompt.generation.resolve import resolve
from imprompt.prompts.image_prompt import ImagePrompt
from imprompt.prompts.masks import Box
from tests import tiny
from tests.parity.native import largest_difference, native_call, native_host

LIMIT = 1e-5
SDXL_STYLE = {"up": {"block_0": [0.0, 1.0, 0.0]}}
SCALES = {
    "sdxl": [
        SDXL_STYLE,
        {"down": {"block_2": [0.0, 1.0]}, **SDXL_STYLE},
        {"down": 0.3, "mid": 0.7, "up": {"block_0": 0.4, "block_1": [0.5, 0.6, 0.7]}},
        {"down": [0.2, 0.8], "up": [0.5]},
    ],
    "sd1": [
        {"down": {"block_2": [0.0, 1.0]}, "up": {"block_1": [0.0, 1.0, 0.0]}},
        {"mid": 1.0},
        {"down": 0.3, "mid": 0.7, "up": {"block_1": [0.4, 0.1, 0.2], "block_3": 0.6}},
    ],
}
CASES = [(family, scale) for family, scales in SCALES.items() for scale in scales]


class NoSource:
    """Features are given, and no null image is asked for."""

    def features(self, images: list[Image.Image], fit: str) -> torch.Tensor:
        raise AssertionError

    def null_features(self) -> torch.Tensor:
        raise AssertionError


def ours(host, adapter, inputs, rows, size=None):
    with attach(host, adapter) as images:
        labels = [[site.block for site in images.sites]]
        images.set(resolve(rows, [adapter], [NoSource()], blocks=labels, size=size))
        return tiny.call(host, inputs)


@pytest.mark.parametrize(("family", "scale"), CASES, ids=lambda part: str(part)[:40])
@pytest.mark.parametrize("weight", [1.0, 0.6])
def test_nested_scales(family, scale, weight):
    host = tiny.unet(family)
    adapter = tiny.adapter(host, "linear", official=True)
    inputs = tiny.host_inputs(host, 2)
    features = tiny.features(adapter, 2)
    native = native_host(host, adapter, scales=[1.0])
    set_nested(native, scale, weight)
    theirs = native_call(native, inputs, [features[:, None]])
    rows = [[ImagePrompt(features=each, blocks=scale, weight=weight)] for each in features]
    assert largest_difference(theirs, tiny.call(host, inputs)) > 1e-3
    assert largest_difference(theirs, ours(host, adapter, inputs, rows)) <= LIMIT


def set_nested(native, scale, weight):
    """As `set_ip_adapter_scale` does with a dictionary, which is a method of pipelines."""
    from diffusers.loaders.unet_loader_utils import _maybe_expand_lora_scales

    (expanded,) = _maybe_expand_lora_scales(native, [scale], default_scale=0.0)
    for name, processor in native.attn_processors.items():
        if hasattr(processor, "scale"):
            found = [value for key, value in expanded.items() if name.startswith(f"{key}.")]
            processor.scale = [weight * found[0]]


def test_a_scale_and_a_mask_for_each_picture_and_several_pictures_of_one():
    """diffusers' list of scales for masked pictures is a prompt with a list of masks; without masks they share."""
    host = tiny.unet("sd1")
    adapter = tiny.adapter(host, "linear", official=True)
    inputs = tiny.host_inputs(host, 1)
    features = tiny.features(adapter, 2)
    top = torch.zeros(1, 128, 128)
    top[:, :64] = 1
    native = native_host(host, adapter, scales=[[0.9, 0.4]])
    theirs = native_call(native, inputs, [features[None]], masks=[torch.stack([top, 1 - top], dim=1)])
    masks = [Box(0.0, 0.0, 1.0, 0.5), Box(0.0, 0.5, 1.0, 1.0)]
    prompt = ImagePrompt(features=features, mask=masks, image_weights=[0.9, 0.4])
    assert largest_difference(theirs, ours(host, adapter, inputs, [[prompt]], size=(128, 128))) <= LIMIT
    theirs = native_call(native_host(host, adapter, scales=[0.7]), inputs, [features[None]])
    shared = ImagePrompt(features=features, weight=0.7)
    assert largest_difference(theirs, ours(host, adapter, inputs, [[shared]])) <= LIMIT
