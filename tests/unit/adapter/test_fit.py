"""Adapters and hosts of the same shape: the base that an adapter was made for, at true sizes on the meta device."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.attach import attach
from imprompt.adapter.families import family_named, family_of
from imprompt.adapter.fit import check_fit, common_family
from imprompt.adapter.spec import AdapterSpec
from imprompt.core.errors import HostMismatch
from tests import tiny, tiny_faces
from tests.denoisers import DENOISERS
from tests.unit.adapter.test_identify import meta_unet, variant

SHAPED_ALIKE = ("sdxl", "kolors")
NAMES = {"ip-adapter-plus_sdxl_vit-h": "sdxl", "kolors-ip-adapter-plus": "kolors", "ip-adapter_sdxl": "sdxl"}


@pytest.mark.parametrize("family", ["sd1", *SHAPED_ALIKE])
def test_a_host_is_of_its_own_family(family: str) -> None:
    assert family_of(meta_unet(family)).name == family
    fitting = [name for name in ("sd1", "sd2", "sdxl", "kolors") if family_named(name).fits(meta_unet(family))]
    assert fitting == [family]


@pytest.mark.parametrize("base", SHAPED_ALIKE)
@pytest.mark.parametrize("name", NAMES)
def test_a_base_of_the_same_shape_is_named(name: str, base: str) -> None:
    adapter, host = variant(name), meta_unet(base)
    sites = family_named(adapter.spec.family).sites(host)
    if NAMES[name] == base:
        check_fit(adapter, sites, host)
        return
    wanted, found = (family_named(each).title for each in (NAMES[name], base))
    with pytest.raises(HostMismatch, match=f"'{name}' is for {wanted}, but this UNet.* is that of {found}"):
        check_fit(adapter, sites, host)


@pytest.mark.parametrize("base", SHAPED_ALIKE)
def test_an_adapter_of_no_named_base_is_free(base: str) -> None:
    with torch.device("meta"):
        adapter = Adapter(replace(variant("ip-adapter_sdxl").spec, family="unet"))
    check_fit(adapter, family_named("unet").sites(meta_unet(base)), meta_unet(base))


def test_specs_of_earlier_versions_called_kolors_sdxl() -> None:
    spec = variant("kolors-ip-adapter-plus").spec
    earlier = json.dumps({**json.loads(spec.to_json()), "family": "sdxl"})
    assert AdapterSpec.from_json(earlier) == spec
    others = replace(spec, name="own", family="sdxl")
    assert AdapterSpec.from_json(others.to_json()) == others


def test_kolors_is_known_where_diffusers_has_loaded_an_adapter_of_its_own() -> None:
    for family, is_kolors in (("kolors", True), ("sdxl", False)):
        host: Any = tiny.unet(family)
        if is_kolors:
            host.text_encoder_hid_proj = host.encoder_hid_proj
        host.encoder_hid_proj = torch.nn.Identity()
        host.config["encoder_hid_dim_type"] = "ip_image_proj"
        assert family_named("kolors").fits(host) == is_kolors


def test_both_adapters_of_kolors_act_together() -> None:
    """The tokens of one pass the text projection, those of the other do not."""
    host = tiny_faces.host("kolors")
    inputs = tiny.host_inputs(host)
    plus, face = tiny.adapter(host), tiny_faces.adapter(host, "kolors-faceid")
    assert (plus.spec.family, face.spec.family) == ("kolors", "kolors-text")
    tokens = face.project(tiny.rand(1, tiny_faces.FACE), crop=tiny.rand(1, 5, tiny_faces.CROP))
    branches = [tiny.branch(plus), replace(tiny.branch(plus), tokens=tokens, null_tokens=None)]

    def output(*numbers: int) -> torch.Tensor:
        adapters = [(plus, face)[number] for number in numbers]
        with attach(host, *adapters) as images:
            placed = [replace(branches[number], adapter=place) for place, number in enumerate(numbers)]
            images.set(tiny.conditioning(*placed))
            return tiny.call(host, inputs)

    together, plus_alone, face_alone = output(0, 1), output(0), output(1)
    torch.testing.assert_close(output(1, 0), together, rtol=0, atol=1e-6)
    for alone, other in ((plus_alone, 1), (face_alone, 0)):
        silent = list(branches)
        branches[other] = replace(branches[other], scale=0 * branches[other].scale)
        torch.testing.assert_close(output(0, 1), alone, rtol=0, atol=1e-6)
        assert (alone - together).abs().max() > 1e-2
        branches[:] = silent


def test_adapters_of_other_families_do_not_go_together() -> None:
    plus, sdxl = variant("kolors-ip-adapter-plus"), variant("ip-adapter_sdxl")
    with pytest.raises(HostMismatch, match="'kolors' and 'sdxl'; attach those of one family"):
        common_family((plus, sdxl))


@pytest.mark.parametrize("name", ["UNet3DConditionModel", "UNetSpatioTemporalConditionModel", "DreamLiteUNetModel"])
def test_blocks_are_the_transformers_that_hold_the_attentions(name: str) -> None:
    host = DENOISERS[name].build(seed=0)
    blocks = {site.block for site in family_of(host).sites(host)}
    assert "mid_block.attentions.0" in blocks and "down_blocks.0.attentions.0" in blocks
    assert not any("transformer_blocks" in block for block in blocks)
