"""LoRA files of FaceID adapters: every style of names gives the LoRA that is inside the adapter."""

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.checkpoint import load_adapter, save_adapter
from imprompt.adapter.checkpoint.paths import attention_paths
from imprompt.core.errors import CheckpointError
from imprompt.core.published import PUBLISHED_ADAPTERS
from tests.published import SD1_LORA, SDXL_LORA, Shapes
from tests.unit.adapter.test_formats import ALL, built, narrow

KOHYA = "lora_unet_{flat}_{layer_}.lora_{half}.weight"
STYLES = {
    "kohya": KOHYA,
    "processors": "unet.{path}.processor.{name}_lora.{half}.weight",
    "processors bare": "{path}.processor.{name}_lora.{half}.weight",
    "old diffusers": "unet.{path}.{layer}.lora.{half}.weight",
    "peft": "unet.{path}.{layer}.lora_{letter}.weight",
    "peft named": "{path}.{layer}.lora_{letter}.default.weight",
    "peft model": "base_model.model.{path}.{layer}.lora_{letter}.weight",
}


def named(style: str, key: str, family: str) -> str:
    _, number, name, half, _ = key.split(".")
    name = name.removesuffix("_lora")
    layer = "to_out.0" if name == "to_out" else name
    path = attention_paths(family)[int(number)]
    return style.format(
        path=path,
        flat=path.replace(".", "_"),
        name=name,
        layer=layer,
        layer_=layer.replace(".", "_"),
        half=half,
        letter={"down": "A", "up": "B"}[half],
    )


@pytest.fixture(params=["ip-adapter-faceid_sd15", "ip-adapter-faceid_sdxl"])
def adapter(request: pytest.FixtureRequest) -> Adapter:
    return built(narrow(ALL[request.param]))


def lora_of(adapter: Adapter) -> dict[str, Tensor]:
    return {key: value for key, value in adapter.state_dict().items() if "_lora." in key}


def without_lora(adapter: Adapter, folder: Path) -> Path:
    bare = built(replace(adapter.spec, lora=None))
    bare.load_state_dict({key: value for key, value in adapter.state_dict().items() if "_lora." not in key})
    return save_adapter(bare, folder / "bare.safetensors")


@pytest.mark.parametrize("style", STYLES)
def test_every_style(adapter: Adapter, style: str, tmp_path: Path) -> None:
    state = {named(STYLES[style], key, adapter.spec.family): value for key, value in lora_of(adapter).items()}
    save_file(state, tmp_path / "lora.safetensors")
    loaded = load_adapter(without_lora(adapter, tmp_path), lora=tmp_path / "lora.safetensors")
    assert loaded.spec.lora == adapter.spec.lora
    found = loaded.state_dict()
    assert all(torch.equal(value, found[key]) for key, value in adapter.state_dict().items())


def test_one_inside_gives_way(adapter: Adapter, tmp_path: Path) -> None:
    state = {named(KOHYA, key, adapter.spec.family): 2 * value for key, value in lora_of(adapter).items()}
    save_file(state, tmp_path / "lora.safetensors")
    path = save_adapter(adapter, tmp_path / "a.safetensors")
    loaded = load_adapter(path, lora=tmp_path / "lora.safetensors").state_dict()
    assert all(torch.equal(2 * value, loaded[key]) for key, value in lora_of(adapter).items())


@pytest.mark.parametrize(("alpha", "factor"), [(4, 1.0), (2, 0.5)])
def test_alphas_are_multiplied_into_the_weights(adapter: Adapter, alpha: int, factor: float, tmp_path: Path) -> None:
    state: dict[str, Tensor] = {}
    for key, value in lora_of(adapter).items():
        state[named(KOHYA, key, adapter.spec.family)] = value
        state[named(KOHYA, key, adapter.spec.family).partition(".")[0] + ".alpha"] = torch.tensor(alpha)
    save_file(state, tmp_path / "lora.safetensors")
    loaded = load_adapter(without_lora(adapter, tmp_path), lora=tmp_path / "lora.safetensors").state_dict()
    for key, value in lora_of(adapter).items():
        assert torch.equal(loaded[key], value * (factor if ".up." in key else 1))


@pytest.mark.parametrize("change", ["foreign", "lost half", "other base", "empty", "not finite"])
def test_refusals(change: str, tmp_path: Path) -> None:
    adapter = built(narrow(ALL["ip-adapter-faceid_sd15"]))
    state = {named(KOHYA, key, "sd1"): value for key, value in lora_of(adapter).items()}
    first = next(iter(state))
    if change == "foreign":
        state["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"] = torch.ones(2)
    elif change == "lost half":
        state = {key: value for key, value in state.items() if not (key.startswith(first[:70]) and ".lora_up" in key)}
    elif change == "other base":
        state = {
            "lora_unet_down_blocks_7_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight": torch.ones(2, 2)
        }
    elif change == "empty":
        state = {"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.alpha": torch.ones(())}
    else:
        state[first] = torch.full_like(state[first], torch.nan)
    save_file(state, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_adapter(without_lora(adapter, tmp_path), lora=tmp_path / "lora.safetensors")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


# The published files -------------------------------------------------------------------------------------------------


def file_size(shapes: Shapes, family: str, *, alpha: bool) -> int:
    """Bytes of a safetensors file of kohya's names; tensors of eight bytes come before those of two."""
    tensors: list[tuple[int, str, list[int], str]] = []
    for key, shape in shapes.items():
        name = named(KOHYA, f"ip_adapter.{key}", family)
        tensors.append((2, name, list(shape), "F16"))
        if alpha and ".down." in key:
            tensors.append((8, name.partition(".")[0] + ".alpha", [], "I64"))
    header: dict[str, object] = {}
    start = 0
    for size, name, shape, dtype in sorted(tensors, key=lambda each: (-each[0], each[1])):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size * prod(shape)]}
        start += size * prod(shape)
    text = len(json.dumps(header, separators=(",", ":")))
    return 8 + text + -text % 8 + start


@pytest.mark.parametrize(("family", "shapes", "alpha"), [("sd1", SD1_LORA, False), ("sdxl", SDXL_LORA, True)])
def test_kohyas_names_fill_the_published_files_to_the_byte(family: str, shapes: Shapes, alpha: bool) -> None:
    """No such file could be opened here, but their sizes are known, and other names would miss them."""
    sizes = {each.lora.num_bytes for each in PUBLISHED_ADAPTERS if each.lora and each.family == family}
    assert sizes == {file_size(shapes, family, alpha=alpha)}
