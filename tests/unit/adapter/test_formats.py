"""Every layout: what is written is read back, number for number, and written again it is the same file."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.checkpoint import TARGETS, load_adapter, read_contents, save_adapter
from imprompt.adapter.checkpoint.identify import Hints, recognise
from imprompt.adapter.checkpoint.reading import parts_of
from imprompt.adapter.spec import AdapterSpec, LinearSpec, NormedKVSpec, PerceiverKVSpec, TimedKVSpec, TokensSpec
from imprompt.core.errors import CheckpointError
from tests.published import PUBLISHED, write_safetensors
from tests.tiny import seeded

# What a layout cannot hold is refused: a part of a file, and what diffusers has no adapter for.
IN_DIFFUSERS = ("sd1", "sdxl", "kolors", "flux-xlabs", "sd3-instantx")


def specs() -> dict[str, AdapterSpec]:
    """One for each published network, as its shapes tell; files of the same network once."""
    found: dict[str, AdapterSpec] = {}
    seen: list[tuple[Any, ...]] = []
    for published in PUBLISHED.values():
        tokens = TokensSpec(num_tokens=published.num_tokens, width=2048) if published.layer == "tokens" else None
        if published.sections[:1] == ("content_image_proj",) or "xlabs" in published.repository.lower() or tokens:
            continue
        shapes = {key.replace("adapter_modules.", "ip_adapter."): shape for key, shape in published.shapes.items()}
        layout = "adapter_modules" if "adapter_modules" in published.sections else "native"
        spec = recognise(shapes, Hints(variant=published.name, layout=layout)).spec
        if (spec.family, spec.projector) not in seen:
            seen.append((spec.family, spec.projector))
            found[published.name] = spec
    return found


def narrow(spec: AdapterSpec) -> AdapterSpec:
    """The same network with tiny widths; heads of 64 and face embeddings of 512 stay, which is how it is recognised."""
    sizes: dict[str, Any] = {
        "width": 64,
        "hidden_width": 24,
        "inner_width": 64,
        "num_heads": 1,
        "crop_width": 20,
        "depth": 2,
        "time_width": 16,
        "feature_width": spec.projector.feature_width if spec.projector.feature_width == 512 else 28,
    }
    if isinstance(spec.projector, TokensSpec):
        del sizes["feature_width"]
    fields = {name: value for name, value in sizes.items() if name in asdict(spec.projector)}
    projector = replace(spec.projector, **fields)
    width = 32 if spec.family == "kolors-text" else projector.width
    kinds = {TimedKVSpec: {"head_width": 8, "time_width": 64}, PerceiverKVSpec: {"num_heads": 1}}
    changes = kinds.get(type(spec.key_values), {})
    lora = spec.lora
    if lora is not None:
        count = len(lora.indices)
        keys = tuple(16 if index % 2 == 0 else width for index in lora.indices)
        lora = replace(lora, rank=4, widths=(16,) * count, key_widths=keys)
    return replace(
        spec,
        projector=projector,
        features=replace(spec.features, width=projector.feature_width),
        face_crop=None if spec.face_crop is None else replace(spec.face_crop, width=20),
        key_values=replace(spec.key_values, **changes),  # pyright: ignore
        cross_attention_dim=width,
        site_widths=(16,) * len(spec.site_widths),
        lora=lora,
    )


def built(spec: AdapterSpec) -> Adapter:
    def build() -> Adapter:
        adapter = Adapter(spec)
        for parameter in adapter.parameters():
            nn.init.normal_(parameter)
        return adapter

    return seeded(build, 3)


def extra_specs() -> dict[str, AdapterSpec]:
    """Networks whose files have other keys than ours, and so are not among `specs`."""
    kolors = specs()["ip-adapter_sdxl"]
    xlabs = replace(
        kolors,
        name="flux-ip-adapter",
        family="flux-xlabs",
        projector=LinearSpec(feature_width=28, num_tokens=4, width=64),
        key_values=replace(kolors.key_values, bias=True),  # pyright: ignore
        null_image="black_pixels",
        site_indices=tuple(range(5)),
        site_widths=(16,) * 5,
        cross_attention_dim=64,
    )
    tokens = TokensSpec(num_tokens=6, width=64)
    pulid = replace(xlabs, name="pulid", family="flux-pulid", projector=tokens)
    pulid = replace(pulid, features=replace(pulid.features, layer="tokens", width=64))
    pulid = replace(pulid, key_values=PerceiverKVSpec(num_heads=1, head_width=128))
    part = replace(specs()["ip-adapter-plus_sdxl_vit-h"], name="csgo-content", is_partial=True)
    part = replace(part, site_indices=part.site_indices[:24], site_widths=part.site_widths[:24])
    return {"xlabs": xlabs, "pulid": pulid, "csgo-content": part}


ALL = {**specs(), **extra_specs()}


def equal(first: Adapter, second: Adapter) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def contents_of(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata, whose order safetensors draws anew for every file."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()


def can_be_written(spec: AdapterSpec, target: str) -> bool:
    if target == "native":
        return True
    if spec.is_partial:
        return False
    if isinstance(spec.projector, TokensSpec):
        return target == "official"
    return target != "diffusers" or spec.family in IN_DIFFUSERS


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ALL)
def test_read_write_read(name: str, target: str, tmp_path: Path) -> None:
    adapter = built(narrow(ALL[name]))
    path = tmp_path / "first.safetensors"
    if not can_be_written(adapter.spec, target):
        with pytest.raises(CheckpointError, match="write it as"):
            save_adapter(adapter, path, format=target)
        assert not path.exists()
        return
    save_adapter(adapter, path, format=target)
    again = load_adapter(path)
    assert again.spec == adapter.spec and equal(again, adapter)
    second = save_adapter(again, tmp_path / "second.safetensors", format=target)
    (one, first_header), (other, second_header) = contents_of(path), contents_of(second)
    assert first_header == second_header and one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("target", ["official", "diffusers"])
@pytest.mark.parametrize("name", ALL)
def test_without_metadata_the_tensors_tell(name: str, target: str, tmp_path: Path) -> None:
    """As other programs would write it: no spec in the header, and the network is found all the same."""
    spec = narrow(ALL[name])
    if not can_be_written(spec, target) or isinstance(spec.projector, TokensSpec):  # whose number is in an encoder
        return
    adapter = built(spec)
    save_adapter(adapter, tmp_path / "a.safetensors", format=target)
    path = tmp_path / "bare.safetensors"
    save_file(load_file(tmp_path / "a.safetensors"), path)
    shortcut = getattr(spec.projector, "shortcut", None)
    again = load_adapter(path, shortcut=shortcut)
    assert equal(again, adapter)
    assert again.spec.projector == spec.projector and again.spec.site_indices == spec.site_indices
    assert again.spec.lora == spec.lora and again.spec.null_image == spec.null_image
    if not isinstance(spec.key_values, NormedKVSpec):
        assert again.spec.key_values == spec.key_values


@pytest.mark.parametrize(
    "name", [name for name, spec in ALL.items() if can_be_written(spec, "official") and name != "pulid"]
)
def test_official_pickles(name: str, tmp_path: Path) -> None:
    spec = narrow(ALL[name])
    adapter = built(spec)
    path = save_adapter(adapter, tmp_path / "a.bin", format="official")
    assert equal(load_adapter(path, shortcut=getattr(spec.projector, "shortcut", None)), adapter)


def test_official_names() -> None:
    """The published keys of what has names of its own."""
    from imprompt.adapter.checkpoint.writing import arrange

    for name, published in (("xlabs", "flux-ip-adapter"), ("kolors-ip-adapter-faceid-plus",) * 2):
        adapter = built(narrow(ALL[name]))
        keys = set(arrange(adapter.state_dict(), adapter.spec, "official"))
        assert keys & PUBLISHED[published].shapes.keys()
        if name != "xlabs":  # whose tiny one has fewer blocks
            shallow = {key for key in PUBLISHED[published].shapes if ".layers.2." in key or ".layers.3." in key}
            assert keys == PUBLISHED[published].shapes.keys() - shallow
        else:
            assert keys < PUBLISHED[published].shapes.keys()


def test_a_whole_denoiser_with_two_adapters(tmp_path: Path) -> None:
    """diffusers numbers adapters that were loaded together; what else the UNet has is left aside."""
    first = built(narrow(ALL["ip-adapter_sd15"]))
    second = built(narrow(ALL["ip-adapter-plus_sd15"]))
    state = {"conv_in.weight": torch.ones(2, 2)}
    for number, adapter in enumerate((first, second)):
        path = save_adapter(adapter, tmp_path / f"{number}.safetensors", format="diffusers")
        for key, value in load_file(path).items():
            key = key.replace("layers.0.", f"layers.{number}.", 1) if key.startswith("encoder_hid") else key
            state[key.replace("_ip.0.", f"_ip.{number}.")] = value
    path = tmp_path / "unet.safetensors"
    save_file(state, path)
    assert parts_of(path) == ("0", "1")
    with pytest.raises(CheckpointError, match="part='0'"):
        load_adapter(path)
    assert equal(load_adapter(path, part="0"), first) and equal(load_adapter(path, part="1"), second)
    assert read_contents(path, part="1").aside == {"the denoiser's own weights": 1 + 16 * 2 + 4}


def test_csgo_and_pulid_files_give_adapters(tmp_path: Path) -> None:
    """Published ones; `test_parts.py` writes them."""
    for name, part, width in (("csgo", "style", 64), ("pulid_flux_v0.9.1", None, 32)):
        path = write_safetensors(PUBLISHED[name], tmp_path / f"{name}.safetensors")
        spec = read_contents(path, part=part).spec
        assert save_adapter(built(narrow(spec)), tmp_path / f"{name}-{width}.safetensors").stat().st_size < 2**23


@pytest.mark.parametrize("target", ["comfyui", "", "Native"])
def test_layouts_that_do_not_exist(target: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected one of native, official, diffusers, comfy"):
        save_adapter(built(narrow(ALL["ip-adapter_sd15"])), tmp_path / "a.safetensors", format=target)
