from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from imprompt.training.config import OptimizerConfig
from imprompt.training.loop.optimizers import autocast_format, build_optimizer, optimizer_tensors, restore_optimizer


class Blockwise(torch.optim.SGD):
    """Keeps what bitsandbytes 0.50 keeps: a number, and tensors one level down."""

    def state_dict(self):
        return {"state": {0: {"step": 3, "quantised": {"state1": torch.arange(4, dtype=torch.uint8)}}}}

    def load_state_dict(self, state):
        self.loaded = state["state"]


def test_the_state_of_an_optimizer_of_eight_bits_comes_back_from_a_file(tmp_path):
    optimizer = Blockwise([nn.Parameter(torch.zeros(1))])
    save_file(optimizer_tensors(optimizer), tmp_path / "optimizer.safetensors")
    restore_optimizer(optimizer, load_file(tmp_path / "optimizer.safetensors"))
    assert optimizer.loaded[0]["step"] == 3
    assert isinstance(optimizer.loaded[0]["step"], int)
    assert torch.equal(optimizer.loaded[0]["quantised"]["state1"], torch.arange(4, dtype=torch.uint8))


def test_vectors_are_spared_decay():
    optimizer = build_optimizer(nn.Linear(3, 2), OptimizerConfig(weight_decay=0.1))
    assert [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups] == [(0.1, 1), (0.0, 1)]


def test_the_format_of_arithmetic_follows_setting_and_device(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    cpu = torch.device("cpu")
    assert autocast_format("auto", cpu) is None
    assert autocast_format("no", cpu) is None
    assert autocast_format("bfloat16", cpu) is torch.bfloat16
    assert autocast_format("float16", cpu) is torch.float16


def test_eight_bits_take_the_groups_and_settings(monkeypatch):
    calls = []

    def adamw8bit(groups, **options):
        calls.append(options)
        return torch.optim.SGD(groups)

    module = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=adamw8bit))
    monkeypatch.setattr("imprompt.training.loop.optimizers.importlib.import_module", lambda name: module)
    build_optimizer(nn.Linear(3, 2), OptimizerConfig(name="adamw8bit", learning_rate=1e-3, weight_decay=0.1))
    assert calls == [{"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.1}]
