"""Folders of training runs: names that accelerate loses or orders anew, wrappers, shards, and what has to be joined."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.checkpointing import save_accelerator_state
from accelerate.utils.other import clean_state_dict_for_safetensors
from safetensors.torch import save_file
from torch import nn

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.checkpoint import load_adapter, read_contents
from imprompt.adapter.families.unet import numbered
from imprompt.core.errors import CheckpointError, ImpromptError, UnknownFormat
from tests import tiny


class Processor(nn.Module):
    """As the official scripts put one into every cross-attention."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        for name, weight in (("to_k_ip", keys), ("to_v_ip", values)):
            layer = nn.Linear(*reversed(weight.shape), bias=False)
            layer.weight.data.copy_(weight)
            setattr(self, name, layer)


class Trained(nn.Module):
    """The module of `tutorial_train.py`: the processors are there twice, in the UNet and in a list of their own."""

    def __init__(self, family: str = "sd1") -> None:
        super().__init__()
        self.unet = tiny.unet(family)
        self.adapter = tiny.adapter(self.unet, official=True)
        modules: list[nn.Module] = []
        for number, path in numbered(self.unet).items():
            attention = self.unet.get_submodule(path)
            if path.endswith("attn2"):
                site: Any = self.adapter.ip_adapter[str(number)]
                attention.processor = Processor(site.to_k_ip.weight, site.to_v_ip.weight)
            modules.append(attention.processor if path.endswith("attn2") else nn.Identity())
        self.image_proj_model = self.adapter.image_proj
        self.adapter_modules = nn.ModuleList(modules)

    def state(self) -> dict[str, torch.Tensor]:
        return {key: value for key, value in self.state_dict().items() if not key.startswith("adapter.")}


@pytest.fixture(scope="module", params=["sd1", "small", "sdxl", "sdxl_70"])
def trained(request: pytest.FixtureRequest) -> Trained:
    return Trained(request.param)


@pytest.fixture(scope="module")
def one() -> Trained:
    return Trained()


def is_right(loaded: Adapter, trained: Trained) -> bool:
    wanted = trained.adapter.state_dict()
    state = loaded.state_dict()
    return state.keys() == wanted.keys() and all(torch.equal(value, state[key]) for key, value in wanted.items())


@pytest.mark.parametrize("safe", [True, False])
def test_what_accelerate_saves(trained: Trained, safe: bool, tmp_path: Path) -> None:
    """With safetensors one of a tensor's two names is lost, and the order is the alphabet's: mid before up."""
    PartialState(cpu=True)  # accelerate's logging asks for it
    state = clean_state_dict_for_safetensors(trained.state()) if safe else trained.state()
    assert any(key.startswith("adapter_modules.") for key in state) != safe  # the case that empties others' converters
    save_accelerator_state(str(tmp_path), [state], [], [], [], 0, 0, safe_serialization=safe)
    contents = read_contents(tmp_path)
    assert contents.layout.name == "training"
    assert contents.aside.keys() == {"the UNet that it was trained with"}
    assert is_right(load_adapter(tmp_path), trained)
    (file,) = (path for path in tmp_path.iterdir() if "model" in path.name)
    assert is_right(load_adapter(file), trained)


def test_leftovers_of_adapter_modules(one: Trained, tmp_path: Path) -> None:
    state = {key: value for key, value in one.state().items() if not key.startswith("unet.")}
    save_file(state, tmp_path / "a.safetensors")
    assert is_right(load_adapter(tmp_path / "a.safetensors"), one)


def test_several_models_of_one_run(one: Trained, tmp_path: Path) -> None:
    """Prepared one by one, each lost its name: the UNet, the projector, the list of processors."""
    parts = {name: {} for name in ("unet", "image_proj_model", "adapter_modules")}
    for key, value in one.state().items():
        name, _, rest = key.partition(".")
        parts[name][rest] = value
    for order in (("unet", "image_proj_model"), ("adapter_modules", "image_proj_model")):
        folder = tmp_path / order[0]
        folder.mkdir()
        save_accelerator_state(str(folder), [parts[name] for name in order], [], [], [], 0, 0)
        assert [path.name for path in sorted(folder.glob("*model*"))] == ["model.safetensors", "model_1.safetensors"]
        assert is_right(load_adapter(folder), one)


def test_shards(one: Trained, tmp_path: Path) -> None:
    items = sorted(one.state().items())
    half = len(items) // 2
    for number, part in enumerate((items[:half], items[half:]), 1):
        save_file({key: value.clone() for key, value in part}, tmp_path / f"model-{number:05}-of-00002.safetensors")
    assert is_right(load_adapter(tmp_path), one)


@pytest.mark.parametrize("place", ["", "pytorch_model/", "global_step20/"])
@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_deepspeed(one: Trained, place: str, wrapper: str, tmp_path: Path) -> None:
    path = tmp_path / place / "mp_rank_00_model_states.pt"
    path.parent.mkdir(exist_ok=True)
    module = {f"{wrapper}{key}": value for key, value in one.state().items()}
    torch.save({"module": module, "global_steps": 20, "ds_config": {"zero": [1, 2]}, "buffer_names": []}, path)
    assert is_right(load_adapter(tmp_path), one)


def test_fsdp(one: Trained, tmp_path: Path) -> None:
    state = {key.replace("unet.", "unet._fsdp_wrapped_module."): value for key, value in one.state().items()}
    torch.save(state, tmp_path / "pytorch_model_fsdp.bin")
    assert is_right(load_adapter(tmp_path), one)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["zero_pp_rank_0_mp_rank_00_model_states.pt"], "zero_to_fp32.py . pytorch_model.bin"),
        (["pytorch_model/zero_pp_rank_1_mp_rank_00_model_states.pt", "model.safetensors"], "zero_to_fp32.py"),
        (["pytorch_model_fsdp_0/__0_0.distcp"], "accelerate merge-weights"),
        (["optimizer.bin", "random_states_0.pkl"], "a folder with optimizer.bin, random_states_0.pkl; expected one of"),
        ([], "a folder with nothing"),
    ],
)
def test_folders_that_need_another_program_first(names: list[str], words: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"123")
    with pytest.raises(CheckpointError) as error:
        load_adapter(tmp_path)
    assert words in str(error.value) and tmp_path.name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("lost", [1, 2])
def test_layers_that_were_lost_are_named(one: Trained, lost: int, tmp_path: Path) -> None:
    """The UNet's own weights say where there should be one."""
    gone = ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor", "unet.up_blocks.1.attentions.2")[:lost]
    state = {
        key: value
        for key, value in one.state().items()
        if not key.startswith("adapter_modules.") and not (key.startswith(gone) and "_ip" in key)
    }
    save_file(state, tmp_path / "model.safetensors", metadata={"imprompt_spec": one.adapter.spec.to_json()})
    with pytest.raises(CheckpointError) as error:
        load_adapter(tmp_path)
    assert f"lacks the keys and values of {lost} of 16 attentions" in str(error.value)
    assert "31 (" in str(error.value) and "safe_serialization=False" in str(error.value)


def test_a_run_without_its_projector(one: Trained, tmp_path: Path) -> None:
    state = {key: value for key, value in one.state().items() if key.startswith("unet.")}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UnknownFormat, match="no known projector"):
        load_adapter(tmp_path)


def test_special_files_and_broken_links(tmp_path: Path) -> None:
    """Neither a pipe nor a device is read, and a link that leads nowhere is no file."""
    import os

    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "zero.bin").symlink_to("/dev/zero")
    (tmp_path / "nowhere.bin").symlink_to("gone.bin")
    (tmp_path / "loop.bin").symlink_to("loop.bin")
    for name in ("pipe.safetensors", "zero.bin", "nowhere.bin", "loop.bin"):
        with pytest.raises((ImpromptError, OSError)) as error:
            load_adapter(tmp_path / name)
        assert name in str(error.value)


def test_invokeais_folder(one: Trained, tmp_path: Path) -> None:
    """Weights beside the name of the image encoder, which the weights tell by themselves."""
    parts = {"image_proj": one.adapter.image_proj.state_dict(), "ip_adapter": one.adapter.ip_adapter.state_dict()}
    torch.save(parts, tmp_path / "ip_adapter.bin")
    (tmp_path / "image_encoder.txt").write_text("someone/ip_adapter_sd_image_encoder")
    loaded = load_adapter(tmp_path)
    for name, tensor in one.adapter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
