"""How an attachment is put on, all of it or nothing, and what it does again at a call: as little as it can."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import imprompt
from imprompt.adapter import lora
from imprompt.adapter.attach import attach
from imprompt.adapter.bank import Bank
from imprompt.adapter.families.calls import raster_of_ids
from imprompt.adapter.families.flux import grid_of_ids
from imprompt.adapter.taps import SiteTap
from tests import tiny, tiny_faces
from tests import tiny_transformers as transformers


def hooks_of(host: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in host.modules())


def fail_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Have the tap of this number fail after it has made its first hook."""
    install, count = SiteTap._give, Counter[str]()
    register = torch.nn.Module.register_forward_pre_hook

    def failing(self: Any, hook: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(hook, "__func__", None) is install:
            count["taps"] += 1
            if count["taps"] == number:
                raise RuntimeError("no more hooks")
        return register(self, hook, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "register_forward_pre_hook", failing)


def test_attaching_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    host = tiny_faces.host("sdxl_70")
    adapter = tiny_faces.adapter(host, "faceid")
    processors = dict(host.attn_processors)
    fail_at(monkeypatch, 3)
    with pytest.raises(RuntimeError, match="no more hooks"):
        attach(host, adapter)
    assert hooks_of(host) == 0
    assert all(host.attn_processors[name] is processor for name, processor in processors.items())


def test_attaching_to_two_denoisers_that_fails_leaves_nothing_on_either(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = [transformers.flux(), transformers.flux()]
    pipe = SimpleNamespace(transformer=hosts[0], transformer_2=hosts[1])
    adapter = transformers.adapter("flux", hosts[0])
    fail_at(monkeypatch, len(adapter.spec.site_indices) + 3)  # past all of one denoiser
    with pytest.raises(RuntimeError, match="no more hooks"):
        attach(pipe, adapter)
    assert [hooks_of(host) for host in hosts] == [0, 0]


def test_each_half_of_guidance_is_bound_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = transformers.pipeline("flux", transformers.flux())
    adapter = transformers.adapter("flux", pipe.transformer)
    count, bind = Counter[str](), Bank.bind

    def counted(self: Bank, *args: Any, **kwargs: Any) -> Any:
        count["binds"] += 1
        return bind(self, *args, **kwargs)

    monkeypatch.setattr(Bank, "bind", counted)
    with attach(pipe, adapter) as images:
        for expected in (2, 4):  # and again after the next `set`
            images.set(transformers.conditioning(transformers.branch(adapter, 2)))
            transformers.generate(pipe, 2, steps=5)
            assert count["binds"] == expected
        images.set(None)
        assert not images._bound and not images._indices


def test_rows_are_copied_to_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a schedule, and a LoRA that acts on one row of two."""
    host = tiny_faces.host("sdxl_70")
    adapter = tiny_faces.adapter(host, "faceid")
    inputs = tiny.host_inputs(host, 2)
    with attach(host, adapter) as images:
        images.set(tiny.conditioning(tiny.branch(adapter, 2, weight=[0.0, 1.0])))
        wanted = tiny.call(host, inputs)

        def refuse(*_args: Any, **_kwargs: Any) -> Any:
            raise AssertionError("a tensor was made of numbers again")

        for module in (lora, attach.__globals__):
            torch_like = SimpleNamespace(**{**vars(torch), "tensor": refuse})
            if isinstance(module, dict):
                monkeypatch.setitem(module, "torch", torch_like)
            else:
                monkeypatch.setattr(module, "torch", torch_like)
        assert torch.equal(tiny.call(host, inputs), wanted)


@pytest.mark.parametrize("measure", [grid_of_ids, raster_of_ids])
def test_places_of_tokens_are_measured_once(measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = transformers.ids(6, 4)
    assert measure(ids) == (6, 4)
    monkeypatch.setattr(torch.Tensor, "tolist", None)
    monkeypatch.setattr(torch.Tensor, "unique", None)
    assert measure(ids) == (6, 4)
    monkeypatch.undo()
    assert measure(transformers.ids(4, 6)) == (4, 6)
    ids[:, 1] = 0  # written to
    assert measure(ids) == (1, 4)


def test_layers_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    host = tiny_faces.host("sdxl_70")
    adapter = tiny_faces.adapter(host, "faceid")
    with attach(host, adapter) as images:
        images.set(tiny.conditioning(tiny.branch(adapter)))
        monkeypatch.setattr("imprompt.adapter.places.submodule", None)
        monkeypatch.setattr(lora, "submodule", None, raising=False)
        assert not images._loras.refresh()
        tiny.call(host, tiny.host_inputs(host, 1))


class Moves(list[str]):
    """Where an adapter is sent, in order."""

    def __init__(self, adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        move = adapter.to

        def to(device: Any) -> Any:
            self.append(str(device))
            return move(device)

        monkeypatch.setattr(adapter, "to", to)


def test_an_adapter_comes_and_goes_once_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """For several prompts, two denoisers, and where pictures are encoded too."""
    hosts = [transformers.flux(), transformers.flux()]
    pipe = SimpleNamespace(transformer=hosts[0], transformer_2=hosts[1])
    adapter = transformers.adapter("flux", hosts[0])
    moves = Moves(adapter, monkeypatch)
    with attach(pipe, adapter, offload=True) as images:
        images.set(transformers.conditioning(*(transformers.branch(adapter, seed=seed) for seed in (1, 2))))
        assert len(moves) == 2
        assert images.second is not None and images.second._banks is images._banks
        moves.clear()
        images.set(None)
        assert not moves and not images.second._banks
    features = torch.randn(1, adapter.spec.features.width)
    with imprompt.attach(pipe, adapter, offload=True) as images:
        images.set(*[imprompt.ImagePrompt(features=features[:, None] if features_are_long(adapter) else features)] * 2)
        assert len(moves) == 2


def features_are_long(adapter: Any) -> bool:
    return adapter.spec.features.is_sequence
