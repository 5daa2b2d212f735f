"""Published adapters: sites are numbered, shapes identified and parameters counted as their files have them."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from imprompt.adapter.adapter import Adapter, new_adapter
from imprompt.adapter.checkpoint.identify import identify
from imprompt.adapter.sites import find_sites
from imprompt.adapter.spec import AdapterSpec, FeatureSpec, LinearSpec, MLPSpec, ProjectorSpec, ResamplerSpec
from imprompt.core.errors import CheckpointError, HostMismatch, UnknownFormat

SD15: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
SDXL: dict[str, Any] = {
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
}


def plus(inner: int, heads: int, width: int) -> ResamplerSpec:
    return ResamplerSpec(
        feature_width=1280, inner_width=inner, depth=4, num_heads=heads, head_width=64, num_tokens=16, width=width
    )


# name, base, projector, parameters; the totals are those of the published files
PUBLISHED: list[tuple[str, dict[str, Any], ProjectorSpec, int]] = [
    ("ip-adapter_sd15", SD15, LinearSpec(feature_width=1024, num_tokens=4, width=768), 22_319_616),
    ("ip-adapter_sd15_vit-G", SD15, LinearSpec(feature_width=1280, num_tokens=4, width=768), 23_106_048),
    ("ip-adapter-plus_sd15", SD15, plus(768, 12, 768), 49_087_488),
    (
        "ip-adapter-full-face_sd15",
        SD15,
        MLPSpec(feature_width=1280, hidden_width=1280, num_tokens=257, width=768),
        21_794_304,
    ),
    ("ip-adapter_sdxl", SDXL, LinearSpec(feature_width=1280, num_tokens=4, width=2048), 351_285_248),
    ("ip-adapter_sdxl_vit-h", SDXL, LinearSpec(feature_width=1024, num_tokens=4, width=2048), 349_188_096),
    ("ip-adapter-plus_sdxl_vit-h", SDXL, plus(1280, 20, 2048), 423_748_864),
]


def meta_unet(config: dict[str, Any]) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def meta_adapter(config: dict[str, Any], projector: ProjectorSpec, name: str = "any") -> Adapter:
    features = FeatureSpec(layer="image_embeds", width=projector.feature_width, encoder="any")
    with torch.device("meta"):
        return new_adapter(meta_unet(config), projector, features, null_image="zero_features", name=name)


def shapes_of(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in adapter.state_dict().items()}


@pytest.mark.parametrize(("name", "config", "projector", "total"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_identified_by_shapes_alone(name: str, config: dict[str, Any], projector: ProjectorSpec, total: int) -> None:
    adapter = meta_adapter(config, projector)
    spec = identify(shapes_of(adapter))
    assert adapter.num_parameters == total
    assert spec.name == name
    assert spec.projector == projector
    assert spec.family == ("sdxl" if config is SDXL else "sd1")
    assert (spec.site_indices, spec.site_widths) == (adapter.spec.site_indices, adapter.spec.site_widths)
    assert spec.null_image == ("zero_features" if isinstance(projector, LinearSpec) else "zero_pixels")
    assert AdapterSpec.from_json(spec.to_json()) == spec


def test_sd15_sites_are_numbered_down_up_mid() -> None:
    sites = find_sites(meta_unet(SD15))
    assert [site.index for site in sites] == list(range(1, 32, 2))
    by_index = {site.index: (site.block, site.query_width) for site in sites}
    assert by_index[1] == ("down_blocks.0.attentions.0", 320)
    assert by_index[11] == ("down_blocks.2.attentions.1", 1280)
    assert by_index[13] == ("up_blocks.1.attentions.0", 1280)
    assert by_index[29] == ("up_blocks.3.attentions.2", 320)
    assert by_index[31] == ("mid_block.attentions.0", 1280)
    assert {site.num_heads for site in sites} == {8}
    assert {site.key_width for site in sites} == {768}


def test_sdxl_sites_are_numbered_down_up_mid() -> None:
    sites = find_sites(meta_unet(SDXL))
    assert [site.index for site in sites] == list(range(1, 140, 2))
    blocks = [site.block for site in sites]
    assert blocks[24:34] == ["up_blocks.0.attentions.0"] * 10
    assert blocks[4:14] == ["down_blocks.2.attentions.0"] * 10
    assert blocks[-10:] == ["mid_block.attentions.0"] * 10
    assert {(site.query_width, site.num_heads) for site in sites} == {(640, 10), (1280, 20)}
    assert all(a.index < b.index for a, b in pairwise(sites))


def test_a_host_without_cross_attention_is_refused() -> None:
    with pytest.raises(HostMismatch, match="no cross-attention"):
        find_sites(torch.nn.Linear(2, 2))


def test_what_is_no_adapter_says_so() -> None:
    with pytest.raises(UnknownFormat, match=r"expected keys like 'ip_adapter.1.to_k_ip.weight'"):
        identify({"lora_down.weight": (4, 4)})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ip_adapter.0.to_q_lora.down.weight": (128, 320)}, "FaceID"),
        ({"image_proj.perceiver_resampler.proj_in.weight": (768, 1280)}, "FaceID"),
        ({"image_proj.something": (1,)}, "no known projector"),
    ],
)
def test_kinds_of_later_versions_are_named(keys: dict[str, tuple[int, ...]], message: str) -> None:
    shapes = {"ip_adapter.1.to_k_ip.weight": (320, 768), "ip_adapter.1.to_v_ip.weight": (320, 768)}
    with pytest.raises(UnknownFormat, match=message):
        identify(shapes | keys)


def test_a_face_resampler_is_named() -> None:
    projector = ResamplerSpec(
        feature_width=512, inner_width=64, depth=1, num_heads=1, head_width=64, num_tokens=16, width=768
    )
    with pytest.raises(UnknownFormat, match="512-wide face embeddings"):
        identify(shapes_of(meta_adapter(SD15, projector)))


def test_heads_that_cannot_be_told_are_not_guessed() -> None:
    projector = ResamplerSpec(
        feature_width=1280, inner_width=96, depth=1, num_heads=4, head_width=24, num_tokens=16, width=768
    )
    with pytest.raises(CheckpointError, match="queries of width 96"):
        identify(shapes_of(meta_adapter(SD15, projector)))


def test_joined_halves_of_two_adapters_are_refused() -> None:
    shapes = shapes_of(meta_adapter(SD15, LinearSpec(feature_width=1024, num_tokens=4, width=768)))
    shapes |= {"image_proj.proj.weight": (8192, 1024), "image_proj.norm.weight": (2048,)}
    with pytest.raises(CheckpointError, match="joins halves of two adapters"):
        identify(shapes)


@pytest.mark.parametrize("text", ["", "{}", '{"projector": {"kind": "magic"}}', "[1]"])
def test_an_unreadable_spec_says_what_to_do(text: str) -> None:
    with pytest.raises(CheckpointError, match="remove the metadata key"):
        AdapterSpec.from_json(text)
