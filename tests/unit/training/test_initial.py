"""What a run begins with: the published shapes, keys and values of the text, and files that can be read again."""

from dataclasses import replace

import pytest
import torch

from imprompt.adapter.checkpoint import load_adapter, save_adapter
from imprompt.adapter.families import family_of
from imprompt.adapter.sites import submodule
from imprompt.adapter.spec import FacePlusSpec, LinearSpec, ResamplerSpec
from imprompt.core.errors import EncoderMismatch, HostMismatch
from imprompt.encoders.base import EncoderSpec
from imprompt.training.adapters.initial import VARIANTS, initial_adapter
from imprompt.training.config import AdapterConfig
from tests import published, tiny
from tests import tiny_transformers as wide

VIT_H = EncoderSpec("OpenCLIP ViT-H/14", "clip", 224, 1280, 1024, 32, 257, "hash")
TINY = EncoderSpec("tiny CLIP", "clip", 16, 20, 12, 3, 5, "hash")
HOSTS = {"unet": lambda: tiny.unet("small"), "sd3": wide.sd3, "flux": wide.flux}
NAMES = {
    "global": "ip-adapter_sd15",
    "plus": "ip-adapter-plus_sd15",
    "full": "ip-adapter-full-face_sd15",
    "faceid": "ip-adapter-faceid_sd15",
    "faceid-plus": "ip-adapter-faceid-plusv2_sd15",
}


@pytest.fixture(scope="module")
def sd15():
    """Stable Diffusion 1.5's own shape, without weights."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_new_adapter_has_the_shapes_of_the_published_one(sd15, kind, monkeypatch):
    monkeypatch.setattr(torch.nn.init, "normal_", lambda weight, **_: weight)
    with torch.device("meta"):
        made = initial_adapter(AdapterConfig(kind=kind), sd15, VIT_H, "sd15")
    shapes = published.PUBLISHED[NAMES[kind]].shapes
    assert {name: tuple(value.shape) for name, value in made.state_dict().items()} == dict(shapes)


@pytest.mark.parametrize("family", HOSTS)
@pytest.mark.parametrize("kind", VARIANTS)
def test_keys_and_values_start_as_the_texts(family, kind, tmp_path):
    host = HOSTS[family]()
    made = initial_adapter(AdapterConfig(kind=kind, lora_rank=4), host, TINY, "tiny")
    site = made.sites[0]
    place = family_of(host).sites(host)[0]
    assert torch.equal(site.to_k_ip.weight, submodule(host, place.text_keys).weight)
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in made.parameters())
    again = load_adapter(save_adapter(made, tmp_path / "adapter.safetensors"))
    assert again.spec == made.spec
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in made.state_dict().items())


def test_sizes_follow_the_base():
    spec = initial_adapter(AdapterConfig(kind="plus", num_tokens=9), tiny.unet(), TINY, "tiny").spec
    assert isinstance(spec.projector, ResamplerSpec)
    assert (spec.num_tokens, spec.projector.inner_width, spec.projector.num_heads) == (9, 64, 1)
    narrow = initial_adapter(AdapterConfig(kind="global"), tiny.unet(), replace(TINY, projection_dim=7), "tiny").spec
    assert isinstance(narrow.projector, LinearSpec)
    assert (narrow.projector.feature_width, narrow.null_image, narrow.name) == (7, "zero_features", "ip-adapter_tiny")


def test_a_face_adapter_changes_the_host_by_nothing_at_first():
    made = initial_adapter(AdapterConfig(kind="faceid", lora_rank=4), tiny.unet(), None, "tiny")
    changes = {name: value for name, value in made.named_parameters() if "_lora." in name}
    assert made.spec.lora is not None and made.spec.lora.rank == 4
    assert len(changes) == 8 * len(made.spec.lora.indices)
    assert not any(value.any() for name, value in changes.items() if name.endswith("up.weight"))
    assert all(value.any() for name, value in changes.items() if name.endswith("down.weight"))
    assert initial_adapter(AdapterConfig(kind="faceid", lora_rank=0), tiny.unet(), None, "tiny").spec.lora is None


def test_the_aligned_face_has_a_null_image_of_its_own():
    spec = initial_adapter(AdapterConfig(kind="faceid-plus"), tiny.unet(), TINY, "tiny").spec
    assert isinstance(spec.projector, FacePlusSpec) and spec.projector.shortcut
    assert spec.face_crop is not None and spec.face_crop.index == -2
    assert (spec.null_image, spec.null_crop) == ("zero_features", "zero_pixels")


def test_going_on_keeps_the_adapter_and_refuses_another_base(tmp_path):
    first = tiny.adapter(tiny.unet("small"), "resampler")
    file = save_adapter(first, tmp_path / "first.safetensors")
    config = AdapterConfig(kind="plus", initial=str(file))
    made = initial_adapter(config, tiny.unet("small"), None, "tiny")
    assert made.spec == first.spec
    assert all(weight.requires_grad for weight in made.parameters())
    with pytest.raises(HostMismatch, match="start from an adapter of this base"):
        initial_adapter(config, wide.flux(), None, "tiny")


def test_a_kind_that_reads_pictures_wants_an_encoder():
    with pytest.raises(EncoderMismatch, match="adapter.image_encoder="):
        initial_adapter(AdapterConfig(kind="plus"), tiny.unet(), None, "tiny")
