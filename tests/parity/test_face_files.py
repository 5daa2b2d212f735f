"""Adapters of faces in files laid out as published, narrow: what is read out of them acts as what was written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import imprompt
from imprompt import ImagePrompt
from imprompt.adapter.adapter import Adapter
from imprompt.adapter.attach import attach
from imprompt.adapter.checkpoint import load_adapter, save_adapter
from imprompt.adapter.families.unet import numbered
from imprompt.adapter.lora import TARGETS
from imprompt.encoders.vision import VisionEncoder
from tests import tiny, tiny_faces
from tests.parity.native import official_state
from tests.parity.test_faces import CSGO, aspect, branch_of


def pickled(adapter: Any, path: Path, sections: tuple[str, str] = ("image_proj", "ip_adapter")) -> Path:
    """As the authors' scripts save it: a pickle of two dictionaries, and nothing about itself."""
    state = official_state(adapter)
    torch.save({name: state[ours] for name, ours in zip(sections, state, strict=True)}, path)
    return path


def shown(pipe: Any, adapter: Any) -> Tensor:
    clip = VisionEncoder(tiny.vision_tower(), tiny.image_processor())
    encoders: dict[str, Any] = {"image_encoder": clip} if adapter.spec.face_crop else {}
    with imprompt.attach(pipe, adapter, face_encoder=tiny_faces.faces(), **encoders) as images:
        images.set(ImagePrompt([tiny_faces.portrait(1), tiny_faces.portrait(2)], weight=0.8))
        return tiny.generate(pipe, steps=1, guidance_scale=3.0)


@pytest.mark.parametrize("kind", tiny_faces.KINDS)
def test_a_file_acts_as_the_adapter(kind: str, tmp_path: Path) -> None:
    pipe = tiny_faces.pipeline()
    adapter = tiny_faces.adapter(pipe.unet, kind)
    path = pickled(adapter, tmp_path / "adapter.bin")
    version: dict[str, Any] = {"shortcut": kind == "faceid-plusv2"} if "plus" in kind else {}
    loaded = load_adapter(path, **version)
    assert loaded.spec.projector == adapter.spec.projector and loaded.spec.lora == adapter.spec.lora
    assert torch.equal(shown(pipe, loaded), shown(pipe, adapter))
    if version:
        other = load_adapter(path, shortcut=not version["shortcut"])
        assert (shown(pipe, other) - shown(pipe, adapter)).abs().max() > 1e-2


def test_a_lora_in_a_file_of_its_own(tmp_path: Path) -> None:
    """As h94 publishes it beside the adapter, whose own may be left out."""
    pipe = tiny_faces.pipeline()
    adapter = tiny_faces.adapter(pipe.unet, "faceid")
    names = numbered(pipe.unet)
    lora = {
        f"unet.{names[int(index)]}.processor.{name}_lora.{half}.weight": getattr(change, half).weight
        for index, part in adapter.ip_adapter.items()
        for name in TARGETS
        for change in (getattr(part, f"{name}_lora"),)
        for half in ("down", "up")
    }
    save_file(lora, tmp_path / "lora.safetensors")
    alone = Adapter(replace(adapter.spec, family="sd1", lora=None))  # a narrow one does not tell its base by its shapes
    alone.load_state_dict({key: value for key, value in adapter.state_dict().items() if "_lora" not in key})
    path = save_adapter(alone, tmp_path / "adapter.safetensors")
    bare, loaded = load_adapter(path), load_adapter(path, lora=tmp_path / "lora.safetensors")
    assert bare.spec.lora is None and loaded.spec.lora == adapter.spec.lora
    for each in (bare, loaded):
        each.spec = replace(each.spec, family="unet")  # the narrow host is no Stable Diffusion 1
    assert torch.equal(shown(pipe, loaded), shown(pipe, adapter))
    assert (shown(pipe, bare) - shown(pipe, adapter)).abs().max() > 1e-2


def test_kolors_face_adapter(tmp_path: Path) -> None:
    host = tiny_faces.host("kolors")
    adapter = tiny_faces.adapter(host, "kolors-faceid")
    loaded = load_adapter(pickled(adapter, tmp_path / "ipa-faceid-plus.bin", ("image_proj", "adapter_modules")))
    assert (loaded.spec.family, loaded.spec.null_crop) == ("kolors-text", "zero_features")
    outputs = []
    for each in (adapter, loaded):
        faces = tiny.rand(2, tiny_faces.FACE)
        with attach(host, each) as images:
            images.set(tiny.conditioning(branch_of(each, faces, aspect(2))))
            outputs.append(tiny.call(host, tiny.host_inputs(host, 2)))
    assert torch.equal(*outputs)


def test_both_halves_of_csgo(tmp_path: Path) -> None:
    host = tiny_faces.host("sdxl_70")
    halves = {kind: tiny_faces.adapter(host, f"csgo-{kind}", seed=seed) for seed, kind in enumerate(CSGO)}
    state: dict[str, dict[str, Tensor]] = {"ip_adapter": {}}
    for kind, adapter in halves.items():
        sections = official_state(adapter)
        state[f"{kind}_image_proj"] = sections["image_proj"]
        state["ip_adapter"] |= sections["ip_adapter"]
    torch.save(state, tmp_path / "csgo.bin")
    loaded = {kind: load_adapter(tmp_path / "csgo.bin", part=kind) for kind in CSGO}
    for half in loaded.values():
        half.spec = replace(half.spec, family="unet")  # the narrow host is no Stable Diffusion XL
    outputs = []
    for each in (halves, loaded):
        content, style = (each[kind] for kind in CSGO)
        assert content.spec.is_partial and style.spec.is_partial
        with attach(host, content, style) as images:
            branches = branch_of(content, aspect(1)), branch_of(style, aspect(1, seed=2), number=1)
            images.set(tiny.conditioning(*branches))
            outputs.append(tiny.call(host, tiny.host_inputs(host)))
    assert torch.equal(*outputs)
