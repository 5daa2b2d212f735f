"""diffusers reads what we write, and we read what it holds, tensor for tensor."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from safetensors.torch import load_file, save_file

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.checkpoint import load_adapter, save_adapter
from imprompt.adapter.spec import (
    AdapterSpec,
    FacePlusSpec,
    FeatureSpec,
    LinearKVSpec,
    LinearSpec,
    PooledMLPSpec,
    TimedKVSpec,
    TimeResamplerSpec,
)
from tests import tiny
from tests.parity.native import largest_difference, native_host
from tests.unit.adapter.test_formats import built

FACE = FeatureSpec(layer="face_embeds", width=512, encoder="?")
CROP = FeatureSpec(layer="hidden_states", index=-2, width=20, encoder="?")
SIZES: dict[str, Any] = {"feature_width": 512, "hidden_width": 1024, "num_tokens": 4, "width": 64}
# diffusers builds these with its own depth of four and heads of 64.
PROJECTORS = {
    "pooled_mlp": PooledMLPSpec(**SIZES),
    "face_plus": FacePlusSpec(**SIZES, crop_width=20, depth=4, head_width=64, shortcut=True),
}


def adapter_for(host: Any, kind: str) -> Adapter:
    if kind in tiny.PROJECTORS:
        return tiny.adapter(host, kind, official=True)
    base = tiny.adapter(host).spec
    width = host.config.cross_attention_dim
    fields = {**vars(base), "projector": PROJECTORS[kind], "features": FACE, "cross_attention_dim": width}
    fields |= {"face_crop": CROP if kind == "face_plus" else None, "null_image": "zero_features"}
    return built(AdapterSpec(**fields))


KINDS = (*tiny.PROJECTORS, *PROJECTORS)


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Adapter]:
    kind = request.param
    host = tiny.unet("sd1", **({} if kind in tiny.PROJECTORS else {"cross_attention_dim": 64}))
    return host, adapter_for(host, kind)


def equal(loaded: Adapter, adapter: Adapter) -> bool:
    state = loaded.state_dict()
    wanted = adapter.state_dict()
    return state.keys() == wanted.keys() and all(torch.equal(value, state[key]) for key, value in wanted.items())


def test_a_unets_own_state(pair: tuple[Any, Adapter], tmp_path: Path) -> None:
    host, adapter = pair
    theirs = native_host(host, adapter).state_dict()
    save_file({key: value.clone() for key, value in theirs.items()}, tmp_path / "diffusion_pytorch_model.safetensors")
    assert equal(load_adapter(tmp_path), adapter)  # a folder, as `save_pretrained` makes it


def test_what_we_write_is_that_state(pair: tuple[Any, Adapter], tmp_path: Path) -> None:
    host, adapter = pair
    path = save_adapter(adapter, tmp_path / "a.safetensors", format="diffusers", host=host)
    theirs = native_host(host, adapter).state_dict()
    ours = load_file(path)
    assert ours.keys() == theirs.keys() - host.state_dict().keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def flux() -> Any:
    return tiny.seeded(
        lambda: FluxTransformer2DModel(
            in_channels=4,
            num_layers=2,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=8,
            axes_dims_rope=(4, 4, 8),
        ),
        0,
    )


def test_flux(tmp_path: Path) -> None:
    spec = AdapterSpec(
        name="tiny",
        family="flux-xlabs",
        projector=LinearSpec(feature_width=12, num_tokens=4, width=32),
        features=FeatureSpec(layer="image_embeds", width=12, encoder="?"),
        null_image="black_pixels",
        cross_attention_dim=32,
        site_indices=(0, 1),
        site_widths=(32, 32),
        key_values=LinearKVSpec(bias=True),
    )
    adapter, host = built(spec), flux()
    own = set(host.state_dict())
    official = load_file(save_adapter(adapter, tmp_path / "official.safetensors", format="official"))
    assert all(key.startswith(("double_blocks.", "ip_adapter_proj_model.")) for key in official)
    sections: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in adapter.state_dict().items():
        sections[key.partition(".")[0]][key.partition(".")[2]] = value
    host._load_ip_adapter_weights([sections])
    check_state(host, own, adapter, tmp_path)


def test_stable_diffusion_3(tmp_path: Path) -> None:
    host = tiny.seeded(
        lambda: SD3Transformer2DModel(
            sample_size=8,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=16,
            pos_embed_max_size=8,
        ),
        0,
    )
    sizes = {"feature_width": 12, "inner_width": 1280, "depth": 4, "num_heads": 1, "head_width": 64}
    spec = AdapterSpec(
        name="tiny",
        family="sd3-instantx",
        projector=TimeResamplerSpec(**sizes, num_tokens=3, width=32, time_width=320),
        features=FeatureSpec(layer="hidden_states", index=-2, width=12, encoder="?"),
        null_image="zero_features",
        cross_attention_dim=32,
        site_indices=(0, 1),
        site_widths=(32, 32),
        key_values=TimedKVSpec(head_width=16, time_width=1280),
    )
    adapter = built(spec)
    sections: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in adapter.state_dict().items():
        sections[key.partition(".")[0]][key.partition(".")[2]] = value
    own = set(host.state_dict())
    host._load_ip_adapter_weights(sections)
    check_state(host, own, adapter, tmp_path)


def check_state(host: Any, own: set[str], adapter: Adapter, folder: Path) -> None:
    """Their state is read as ours, and ours written is theirs."""
    theirs = host.state_dict()
    save_file({key: value.clone().contiguous() for key, value in theirs.items()}, folder / "theirs.safetensors")
    assert equal(load_adapter(folder / "theirs.safetensors"), adapter)
    ours = load_file(save_adapter(adapter, folder / "ours.safetensors", format="diffusers"))
    assert ours.keys() == theirs.keys() - own
    assert max(largest_difference(value, theirs[key]) for key, value in ours.items()) == 0
