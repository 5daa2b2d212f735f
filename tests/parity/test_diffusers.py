"""The same weights in diffusers' own IP-Adapter and in ours: no more than 1e-5 apart in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from imprompt.adapter.attach import attach
from imprompt.adapter.checkpoint import load_adapter, save_adapter
from imprompt.adapter.conditioning import Branch
from tests import tiny
from tests.parity.native import largest_difference, native_call, native_host, official_state

LIMIT = 1e-5
SHAPES = ("sd1", "sdxl_70")  # 16 sites, 70 sites
CASES = [(family, kind) for family in SHAPES for kind in tiny.PROJECTORS]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case), scope="module")
def case(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    family, kind = request.param
    host = tiny.unet(family)
    return host, tiny.adapter(host, kind, official=True)


@pytest.fixture(params=SHAPES, scope="module")
def host(request: pytest.FixtureRequest) -> Any:
    return tiny.unet(request.param)


@pytest.fixture(params=[True, False], ids=["fused", "taps"])
def fuse(request: pytest.FixtureRequest) -> bool:
    return request.param


def features_of(adapter: Any, rows: int, seed: int = 0) -> Tensor:
    """As `tiny.features`, with a sequence shorter than 257, which neither side minds."""
    spec = adapter.spec.features
    length = () if spec.layer == "image_embeds" else (9,)
    return tiny.rand(rows, *length, spec.width, seed=seed + 50)


def branch_of(adapter: Any, features: Tensor, weight: float = 1.0, *, number: int = 0, region: Any = None) -> Branch:
    tokens = adapter.project(features)
    scale = torch.full((1, len(adapter.spec.site_indices), len(features)), weight)
    return Branch(tokens=tokens, null_tokens=None, scale=scale, region=region, adapter=number)


def ours(host: Any, inputs: Any, adapters: Any, *branches: Branch, fuse: bool = True) -> Tensor:
    with attach(host, *adapters, fuse=fuse) as images:
        images.set(tiny.conditioning(*branches))
        return tiny.call(host, inputs)


def test_one_image(case: Any, fuse: bool) -> None:
    host, adapter = case
    weight = 0.7
    inputs = tiny.host_inputs(host, 2)
    features = features_of(adapter, 2)
    theirs = native_call(native_host(host, adapter, scales=[weight]), inputs, [features[:, None]])
    output = ours(host, inputs, [adapter], branch_of(adapter, features, weight), fuse=fuse)
    assert largest_difference(theirs, tiny.call(host, inputs)) > 1e-2
    assert largest_difference(theirs, output) <= LIMIT


def test_several_images_of_one_adapter_share_a_softmax(case: Any) -> None:
    host, adapter = case
    inputs = tiny.host_inputs(host, 2)
    first, second = features_of(adapter, 2), features_of(adapter, 2, seed=1)
    theirs = native_call(native_host(host, adapter, scales=[0.8]), inputs, [torch.stack([first, second], dim=1)])
    one, other = branch_of(adapter, first, 0.8), branch_of(adapter, second, 0.8)
    both = Branch(tokens=torch.cat([one.tokens, other.tokens], dim=1), null_tokens=None, scale=one.scale)
    assert largest_difference(theirs, ours(host, inputs, [adapter], both)) <= LIMIT
    assert largest_difference(theirs, ours(host, inputs, [adapter], one, other)) > 1e-3


def test_several_adapters(host: Any, fuse: bool) -> None:
    adapters = [tiny.adapter(host, kind, official=True, seed=seed) for seed, kind in enumerate(tiny.PROJECTORS, 1)]
    weights = [0.7, 0.5, 1.1]
    inputs = tiny.host_inputs(host, 2)
    features = [features_of(adapter, 2, seed=seed) for seed, adapter in enumerate(adapters)]
    theirs = native_call(native_host(host, *adapters, scales=weights), inputs, [each[:, None] for each in features])
    branches = [
        branch_of(adapter, each, weight, number=number)
        for number, (adapter, each, weight) in enumerate(zip(adapters, features, weights, strict=True))
    ]
    assert largest_difference(theirs, ours(host, inputs, adapters, *branches, fuse=fuse)) <= LIMIT


@pytest.mark.parametrize("size", [(16, 16), (16, 24)], ids=["square", "wide"])
def test_masks(case: Any, size: tuple[int, int]) -> None:
    """Two images of one adapter, each in its half and with its own scale.

    The halves lie on cell borders at every level: there diffusers' bicubic samples equal our averages. In between the
    two differ, since a bicubic sample of a mask looks at four pixels of a cell and an average at all of them.
    """
    host, adapter = case
    inputs = tiny.host_inputs(host, 1, size=size)
    height, width = size[0] * 8, size[1] * 8
    top = torch.zeros(1, height, width)
    top[:, : height // 2] = 1
    masks = torch.stack([top, 1 - top], dim=1)
    first, second = features_of(adapter, 1), features_of(adapter, 1, seed=1)
    theirs = native_call(
        native_host(host, adapter, scales=[[0.9, 0.4]]), inputs, [torch.stack([first, second], dim=1)], masks=[masks]
    )
    branches = [branch_of(adapter, first, 0.9, region=top), branch_of(adapter, second, 0.4, region=1 - top)]
    assert largest_difference(theirs, ours(host, inputs, [adapter], *branches)) <= LIMIT
    free = ours(host, inputs, [adapter], *(branch_of(adapter, each) for each in (first, second)))
    assert largest_difference(theirs, free) > 1e-2


def test_projectors(case: Any) -> None:
    host, adapter = case
    features = features_of(adapter, 3)
    theirs = host._convert_ip_adapter_image_proj_to_diffusers(official_state(adapter)["image_proj"])
    with torch.no_grad():
        tokens = theirs(features)
    tokens = getattr(tokens, "image_embeds", tokens)
    assert (
        largest_difference(tokens.reshape(3, -1, adapter.spec.cross_attention_dim), adapter.project(features)) <= LIMIT
    )


def test_theirs_and_ours_at_once(host: Any) -> None:
    """diffusers' own adapter stays in place, and the taps serve its processors."""
    first, second = tiny.adapter(host, official=True), tiny.adapter(host, "resampler", official=True, seed=2)
    inputs = tiny.host_inputs(host, 2)
    features = [features_of(first, 2), features_of(second, 2)]
    together = ours(
        host, inputs, [first, second], branch_of(first, features[0]), branch_of(second, features[1], number=1)
    )
    mixed = native_host(host, first)
    with attach(mixed, second) as images:
        images.set(tiny.conditioning(branch_of(second, features[1])))
        assert largest_difference(native_call(mixed, inputs, [features[0][:, None]]), together) <= LIMIT


@pytest.mark.parametrize("kind", tiny.PROJECTORS)
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_saved_file_in_a_whole_pipeline_of_diffusers(family: str, kind: str, tmp_path: Path) -> None:
    pipe = tiny.pipeline(family=family)
    adapter = tiny.adapter(pipe.unet, kind, official=True)
    features = features_of(adapter, 1)
    null = torch.zeros_like(features) if kind == "linear" else features_of(adapter, 1, seed=9)
    tokens, null_tokens = adapter.project(features), adapter.project(null)
    scale = torch.full((1, len(adapter.spec.site_indices), 1), 0.7)
    with attach(pipe, adapter) as images:
        images.set(tiny.conditioning(Branch(tokens=tokens, null_tokens=null_tokens, scale=scale)))
        wanted = tiny.generate(pipe, steps=2, guidance_scale=3.0)

    save_adapter(adapter, tmp_path / "adapter.safetensors")
    pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name="adapter.safetensors", image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.7)
    theirs = tiny.generate(pipe, steps=2, guidance_scale=3.0, ip_adapter_image_embeds=[torch.stack([null, features])])
    assert largest_difference(theirs, wanted) <= LIMIT


@pytest.mark.parametrize("kind", tiny.PROJECTORS)
def test_published_layouts_load_equally(kind: str, tmp_path: Path) -> None:
    """`.bin` and bare `.safetensors`, without any metadata, as h94 publishes them."""
    host = tiny.unet()
    adapter = tiny.adapter(host, kind, official=True)
    state = official_state(adapter)
    torch.save(state, tmp_path / "adapter.bin")
    flat = {f"{section}.{key}": value for section, values in state.items() for key, value in values.items()}
    save_file(flat, tmp_path / "adapter.safetensors")
    ours = save_adapter(adapter, tmp_path / "ours.safetensors")
    loaded = [load_adapter(path) for path in (tmp_path / "adapter.bin", tmp_path / "adapter.safetensors", ours)]
    for each in loaded:
        assert each.spec.projector == adapter.spec.projector
        assert each.spec.site_indices == adapter.spec.site_indices
        assert each.spec.null_image == ("zero_features" if kind == "linear" else "zero_pixels")
        assert all(torch.equal(value, adapter.state_dict()[key]) for key, value in each.state_dict().items())
    assert loaded[0].spec == loaded[1].spec
