"""Sites and variants at their true sizes, on the meta device (facts: the published files' tables)."""

from functools import lru_cache
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from imprompt.adapter.adapter import Adapter, new_adapter
from imprompt.adapter.checkpoint.identify import identify
from imprompt.adapter.families.unet import find_sites
from imprompt.adapter.spec import FeatureSpec, LinearSpec, MLPSpec, ProjectorSpec, ResamplerSpec
from imprompt.core.errors import CheckpointError, ImpromptError, UnknownFormat


@lru_cache
def meta_unet(family: str) -> Any:
    kolors = {"encoder_hid_dim": 4096, "encoder_hid_dim_type": "text_proj"} if family == "kolors" else {}
    with torch.device("meta"):
        if family == "sd1":
            return UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
        return UNet2DConditionModel(
            cross_attention_dim=2048,
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(5, 10, 20),
            transformer_layers_per_block=(1, 2, 10),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            **kolors,
        )


def places(*groups: tuple[str, int, int, int]) -> dict[int, tuple[str, int]]:
    """Number -> (transformer, width), for (block, transformers, layers in each, width) in checkpoint order."""
    rows = [
        (f"{block}.attentions.{transformer}", width)
        for block, transformers, layers, width in groups
        for transformer in range(transformers)
        for _ in range(layers)
    ]
    return {2 * position + 1: row for position, row in enumerate(rows)}


SD1_SITES = places(
    ("down_blocks.0", 2, 1, 320),
    ("down_blocks.1", 2, 1, 640),
    ("down_blocks.2", 2, 1, 1280),
    ("up_blocks.1", 3, 1, 1280),
    ("up_blocks.2", 3, 1, 640),
    ("up_blocks.3", 3, 1, 320),
    ("mid_block", 1, 1, 1280),
)
SDXL_SITES = places(
    ("down_blocks.1", 2, 2, 640),
    ("down_blocks.2", 2, 10, 1280),
    ("up_blocks.0", 3, 10, 1280),
    ("up_blocks.1", 3, 2, 640),
    ("mid_block", 1, 10, 1280),
)


@pytest.mark.parametrize(("family", "table"), [("sd1", SD1_SITES), ("sdxl", SDXL_SITES)])
def test_sites_are_numbered_as_published(family: str, table: dict[int, tuple[str, int]]) -> None:
    sites = find_sites(meta_unet(family))
    assert {site.index: (site.block, site.query_width) for site in sites} == table
    assert [site.index for site in sites] == list(range(1, 2 * len(sites), 2))
    assert {site.key_width for site in sites} == {768 if family == "sd1" else 2048}
    heads = {site.query_width: site.num_heads for site in sites}
    assert heads == ({320: 8, 640: 8, 1280: 8} if family == "sd1" else {640: 10, 1280: 20})
    assert all(site.name.startswith(site.block) and site.name.endswith(".attn2") for site in sites)


def test_landmarks() -> None:
    """Single entries of the published tables, typed by hand."""
    sd1 = {site.index: site.name for site in find_sites(meta_unet("sd1"))}
    assert sd1[1] == "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    assert sd1[13] == "up_blocks.1.attentions.0.transformer_blocks.0.attn2"
    assert sd1[31] == "mid_block.attentions.0.transformer_blocks.0.attn2"
    sdxl = {site.index: site.name for site in find_sites(meta_unet("sdxl"))}
    assert sdxl[29] == "down_blocks.2.attentions.1.transformer_blocks.0.attn2"
    assert sdxl[87] == "up_blocks.0.attentions.1.transformer_blocks.9.attn2"
    assert sdxl[139] == "mid_block.attentions.0.transformer_blocks.9.attn2"


def linear(feature_width: int, width: int) -> LinearSpec:
    return LinearSpec(feature_width=feature_width, num_tokens=4, width=width)


def resampler(feature_width: int, inner_width: int, num_heads: int, width: int) -> ResamplerSpec:
    return ResamplerSpec(
        feature_width=feature_width,
        inner_width=inner_width,
        depth=4,
        num_heads=num_heads,
        head_width=64,
        num_tokens=16,
        width=width,
    )


FULL = MLPSpec(feature_width=1280, hidden_width=1280, num_tokens=257, width=768)

# name, UNet, projector, encoder, parameters
VARIANTS: list[tuple[str, str, ProjectorSpec, str, int]] = [
    ("ip-adapter_sd15", "sd1", linear(1024, 768), "OpenCLIP ViT-H/14", 22_319_616),
    ("ip-adapter_sd15_vit-G", "sd1", linear(1280, 768), "OpenCLIP ViT-bigG/14", 23_106_048),
    ("ip-adapter-plus_sd15", "sd1", resampler(1280, 768, 12, 768), "OpenCLIP ViT-H/14", 49_087_488),
    ("ip-adapter-full-face_sd15", "sd1", FULL, "OpenCLIP ViT-H/14", 21_794_304),
    ("ip-adapter_sdxl", "sdxl", linear(1280, 2048), "OpenCLIP ViT-bigG/14", 351_285_248),
    ("ip-adapter_sdxl_vit-h", "sdxl", linear(1024, 2048), "OpenCLIP ViT-H/14", 349_188_096),
    ("ip-adapter-plus_sdxl_vit-h", "sdxl", resampler(1280, 1280, 20, 2048), "OpenCLIP ViT-H/14", 423_748_864),
    ("kolors-ip-adapter-plus", "kolors", resampler(1024, 2048, 12, 2048), "CLIP ViT-L/14-336", 506_552_320),
]


@lru_cache
def variant(name: str) -> Adapter:
    _name, family, projector, _encoder, _count = next(each for each in VARIANTS if each[0] == name)
    pooled = isinstance(projector, LinearSpec)
    features = FeatureSpec(
        layer="image_embeds" if pooled else "hidden_states",
        index=None if pooled else -2,
        width=projector.feature_width,
        encoder="?",
    )
    with torch.device("meta"):
        return new_adapter(meta_unet(family), projector, features, null_image="zero_features", name=name)


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in variant(name).state_dict().items()}


@pytest.mark.parametrize(
    ("name", "family", "projector", "encoder", "count"), VARIANTS, ids=[each[0] for each in VARIANTS]
)
def test_published_variant(name: str, family: str, projector: ProjectorSpec, encoder: str, count: int) -> None:
    assert variant(name).num_parameters == count
    spec = identify(shapes_of(name))
    assert spec.name == name
    assert spec.family == family
    assert spec.projector == projector
    assert spec.features.encoder == encoder
    pooled = isinstance(projector, LinearSpec)
    assert (spec.features.layer, spec.features.index) == (("image_embeds", None) if pooled else ("hidden_states", -2))
    assert spec.null_image == ("zero_features" if pooled else "zero_pixels")
    assert (spec.site_indices, spec.site_widths) == (variant(name).spec.site_indices, variant(name).spec.site_widths)
    with torch.device("meta"):
        rebuilt = Adapter(spec)
    assert {key: tuple(value.shape) for key, value in rebuilt.state_dict().items()} == shapes_of(name)
    assert f"{count:,}" in repr(rebuilt) and encoder in repr(rebuilt)


def test_keys_of_a_published_file() -> None:
    keys = set(shapes_of("ip-adapter-plus_sd15"))
    blocks = {f"image_proj.layers.{number}" for number in range(4)}
    wanted = {f"image_proj.{each}" for each in ("latents", "proj_in.weight", "proj_in.bias", "proj_out.weight")}
    wanted |= {f"image_proj.{each}" for each in ("proj_out.bias", "norm_out.weight", "norm_out.bias")}
    wanted |= {f"{b}.0.{each}.weight" for b in blocks for each in ("norm1", "norm2", "to_q", "to_kv", "to_out")}
    wanted |= {f"{b}.0.{each}.bias" for b in blocks for each in ("norm1", "norm2")}
    wanted |= {f"{b}.1.{each}" for b in blocks for each in ("0.weight", "0.bias", "1.weight", "3.weight")}
    wanted |= {f"ip_adapter.{n}.{each}.weight" for n in range(1, 32, 2) for each in ("to_k_ip", "to_v_ip")}
    assert keys == wanted
    assert set(shapes_of("ip-adapter_sd15")) >= {f"image_proj.{each}" for each in ("proj.weight", "norm.bias")}


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"lora_unet.down.weight": (4, 4)},
        {"image_proj.proj.weight": (3072, 1024), "image_proj.norm.weight": (768,)},
        {"ip_adapter.1.to_k_ip.weight": (320, 768)},
        {"ip_adapter.1.to_k_ip.weight": (320, 768), "image_proj.other.weight": (3, 3)},
    ],
    ids=["empty", "lora", "projector alone", "sites alone", "unknown projector"],
)
def test_other_files_are_named(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(UnknownFormat):
        identify(shapes)


def test_halves_of_two_adapters_are_named() -> None:
    sites = {key: shape for key, shape in shapes_of("ip-adapter_sdxl").items() if key.startswith("ip_adapter.")}
    head = {key: shape for key, shape in shapes_of("ip-adapter_sd15").items() if key.startswith("image_proj.")}
    with pytest.raises(CheckpointError, match=r"768.*2048"):
        identify({**head, **sites})


@pytest.mark.parametrize("name", ["ip-adapter_sd15", "ip-adapter-plus_sd15", "ip-adapter-full-face_sd15"])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (0, 0), (1, 1), (3, 0, 2), (7, 5, 3)])
def test_any_broken_shape_is_our_error(name: str, shape: tuple[int, ...]) -> None:
    """One tensor at a time has another shape: a spec that the tensors' check will refuse, or an error of ours."""
    whole = shapes_of(name)
    for key in whole:
        try:
            spec = identify({**whole, key: shape})
            with torch.device("meta"):
                rebuilt = Adapter(spec)
        except ImpromptError:
            continue
        assert {k: tuple(v.shape) for k, v in rebuilt.state_dict().items()} != {**whole, key: shape}


@pytest.mark.parametrize("name", ["ip-adapter_sd15", "ip-adapter-plus_sd15", "ip-adapter-full-face_sd15"])
def test_any_missing_tensor_is_our_error(name: str) -> None:
    whole = shapes_of(name)
    for missing in whole:
        shapes = {key: shape for key, shape in whole.items() if key != missing}
        try:
            spec = identify(shapes)
        except ImpromptError:
            continue
        with torch.device("meta"):
            assert set(Adapter(spec).state_dict()) != set(shapes)
