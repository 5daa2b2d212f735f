"""What attaching promises, for every host family and every projector."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from imprompt.adapter.attach import attach
from imprompt.adapter.checkpoint import load_adapter, save_adapter
from imprompt.core.errors import ConditioningError, EncoderMismatch, HostMismatch
from tests import tiny

CASES = [(family, kind) for family in tiny.FAMILIES for kind in tiny.PROJECTORS]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case), scope="module")
def case(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A host and its adapter, shared by the tests of this file: each must leave them as they were."""
    family, kind = request.param
    host = tiny.unet(family)
    return host, tiny.adapter(host, kind)


@pytest.fixture(params=[True, False], ids=["fused", "taps"], scope="module")
def fuse(request: pytest.FixtureRequest) -> bool:
    return request.param


def with_prompts(host: Any, inputs: dict[str, Any], adapter: Any, *branches: Any, fuse: bool = True) -> Tensor:
    with attach(host, adapter, fuse=fuse) as images:
        images.set(tiny.conditioning(*branches))
        return tiny.call(host, inputs)


def differ(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-2)


def test_detach_restores_host(case: Any, fuse: bool) -> None:
    host, adapter = case
    inputs = tiny.host_inputs(host, 2)
    processors = dict(host.attn_processors)
    state = {key: value.clone() for key, value in host.state_dict().items()}
    plain = tiny.call(host, inputs)

    with attach(host, adapter, fuse=fuse) as images:
        images.set(tiny.conditioning(tiny.branch(adapter, 2)))
        assert differ(tiny.call(host, inputs), plain)

    after = host.attn_processors
    assert after.keys() == processors.keys()
    assert all(after[name] is processor for name, processor in processors.items())
    assert all(torch.equal(value, state[key]) for key, value in host.state_dict().items())
    assert torch.equal(tiny.call(host, inputs), plain)
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    assert not any(getattr(module, hook) for module in host.modules() for hook in hooks)


def test_attached_host_keeps_state_dict(case: Any, fuse: bool) -> None:
    host, adapter = case
    tensors = {key: value.data_ptr() for key, value in host.state_dict().items()}
    state = copy.deepcopy(host.state_dict())
    names = [name for name, _ in host.named_modules()]
    with attach(host, adapter, fuse=fuse) as images:
        images.set(tiny.conditioning(tiny.branch(adapter)))
        tiny.call(host, tiny.host_inputs(host))
        attached = host.state_dict()
        assert {key: value.data_ptr() for key, value in attached.items()} == tensors
        assert all(torch.equal(attached[key], state[key]) for key in state)
        assert [name for name, _ in host.named_modules()] == names


def test_without_prompts_output_is_the_stock_one(case: Any, fuse: bool) -> None:
    host, adapter = case
    inputs = tiny.host_inputs(host, 2)
    plain = tiny.call(host, inputs)
    with attach(host, adapter, fuse=fuse) as images:
        assert torch.equal(tiny.call(host, inputs), plain)
        images.set(tiny.conditioning(tiny.branch(adapter, 2)))
        assert differ(tiny.call(host, inputs), plain)
        images.set(None)
        assert torch.equal(tiny.call(host, inputs), plain)


def test_weight_zero_is_no_adapter(case: Any, fuse: bool) -> None:
    host, adapter = case
    inputs = tiny.host_inputs(host, 2)
    plain = tiny.call(host, inputs)
    assert torch.equal(with_prompts(host, inputs, adapter, tiny.branch(adapter, 2, weight=0.0), fuse=fuse), plain)


def test_weight_zero_of_one_row_leaves_that_row(case: Any, fuse: bool) -> None:
    host, adapter = case
    inputs = tiny.host_inputs(host, 2)
    plain = tiny.call(host, inputs)
    output = with_prompts(host, inputs, adapter, tiny.branch(adapter, 2, weight=[0.0, 1.0]), fuse=fuse)
    assert torch.equal(output[0], plain[0])
    assert differ(output[1], plain[1])


def test_two_prompts_are_the_sum_of_their_branches(case: Any, fuse: bool) -> None:
    """At each site; the sites after the first see other queries, so the first site is where sums can be compared."""
    host, adapter = case
    inputs = tiny.host_inputs(host)
    first, second = tiny.branch(adapter, weight=0.7), tiny.branch(adapter, weight=0.4, seed=5)
    attention = host.get_submodule(attach_first_site(host))
    seen: list[Tensor] = []
    handle = attention.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    tiny.call(host, inputs)
    for branches in [(first,), (second,), (first, second)]:
        with_prompts(host, inputs, adapter, *branches, fuse=fuse)
    handle.remove()
    plain, one, two, both = seen
    assert differ(one, plain) and differ(two, plain) and differ(one, two)
    torch.testing.assert_close(both - plain, (one - plain) + (two - plain), atol=1e-5, rtol=1e-5)


def attach_first_site(host: Any) -> str:
    """The cross-attention that runs first."""
    return next(name for name, _ in host.named_modules() if name.startswith("down_blocks") and name.endswith("attn2"))


def test_several_prompts_do_not_depend_on_their_order(case: Any) -> None:
    host, adapter = case
    inputs = tiny.host_inputs(host)
    first, second = tiny.branch(adapter, weight=0.7), tiny.branch(adapter, weight=0.4, seed=5)
    one = with_prompts(host, inputs, adapter, first, second)
    other = with_prompts(host, inputs, adapter, second, first)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_mask_of_ones_is_no_mask(case: Any, fuse: bool) -> None:
    host, adapter = case
    inputs = tiny.host_inputs(host, size=(16, 24))
    free = with_prompts(host, inputs, adapter, tiny.branch(adapter), fuse=fuse)
    masked = with_prompts(host, inputs, adapter, tiny.branch(adapter, region=torch.ones(1, 40, 60)), fuse=fuse)
    assert torch.equal(masked, free)


def test_mask_of_zeros_is_no_adapter(case: Any, fuse: bool) -> None:
    host, adapter = case
    inputs = tiny.host_inputs(host, size=(16, 24))
    plain = tiny.call(host, inputs)
    masked = with_prompts(host, inputs, adapter, tiny.branch(adapter, region=torch.zeros(1, 40, 60)), fuse=fuse)
    assert torch.equal(masked, plain)


def test_mask_acts_where_it_is_one(case: Any, fuse: bool) -> None:
    """Left half: at the first site only queries of the left half change, for a picture that is not square."""
    host, adapter = case
    size = (16, 24)
    inputs = tiny.host_inputs(host, size=size)
    left = torch.zeros(1, *size)
    left[..., : size[1] // 2] = 1
    attention = host.get_submodule(attach_first_site(host))
    seen: list[Tensor] = []
    handle = attention.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    tiny.call(host, inputs)
    with_prompts(host, inputs, adapter, tiny.branch(adapter, region=left), fuse=fuse)
    handle.remove()
    cells = seen[0].shape[1]
    down = 1 if cells == size[0] * size[1] else 2
    change = (seen[1] - seen[0]).abs().amax(-1).view(size[0] // down, size[1] // down)
    half = change.shape[1] // 2
    assert (change[:, half:] == 0).all()
    assert (change[:, :half] > 1e-3).all()


def test_gradients_reach_adapter_parameters_only(case: Any, fuse: bool) -> None:
    host, adapter = case[0], copy.deepcopy(case[1]).requires_grad_(True)
    inputs = tiny.host_inputs(host, 2)
    with attach(host, adapter, fuse=fuse) as images:
        images.set(tiny.conditioning(tiny.branch(adapter, 2)))
        host(**inputs).sample.square().mean().backward()
    missing = [name for name, parameter in adapter.named_parameters() if parameter.grad is None]
    zero = [name for name, parameter in adapter.named_parameters() if not parameter.grad.abs().sum() > 0]
    # A key's bias would shift all scores of a row alike; nothing here has one, so every parameter must move.
    assert not missing and not zero
    assert all(parameter.grad is None for parameter in host.parameters())


def test_gradients_are_right(case: Any, fuse: bool) -> None:
    """A step along the gradient changes the loss as the gradient says."""
    host, adapter = (copy.deepcopy(module).double() for module in case)
    adapter.requires_grad_(True)
    inputs = {key: to_double(value) for key, value in tiny.host_inputs(host).items()}

    def loss() -> Tensor:
        with attach(host, adapter, fuse=fuse) as images:
            images.set(tiny.conditioning(tiny.branch(adapter)))
            return host(**inputs).sample.square().mean()

    start = loss()
    start.backward()
    parameters = list(adapter.parameters())
    slope = sum(parameter.grad.square().sum() for parameter in parameters)
    step = 1e-8 / slope.sqrt()
    with torch.no_grad():
        for parameter in parameters:
            parameter += step * parameter.grad
    torch.testing.assert_close((loss() - start) / step, slope, rtol=1e-3, atol=0)


def to_double(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: to_double(part) for key, part in value.items()}
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def test_save_and_load_are_equal(case: Any, tmp_path: Any) -> None:
    host, adapter = case
    inputs = tiny.host_inputs(host)
    loaded = load_adapter(save_adapter(adapter, tmp_path / "adapter.safetensors"))
    assert loaded.spec == adapter.spec
    before, after = adapter.state_dict(), loaded.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[key], after[key]) for key in before)
    one, other = (with_prompts(host, inputs, each, tiny.branch(each)) for each in (adapter, loaded))
    assert torch.equal(one, other)


def test_wrong_encoder_is_named(case: Any) -> None:
    _host, adapter = case
    wanted = adapter.spec.features.width
    with pytest.raises(EncoderMismatch) as caught:
        adapter.project(torch.zeros(*tiny.features(adapter).shape[:-1], wanted + 3))
    assert str(wanted) in str(caught.value) and str(wanted + 3) in str(caught.value)
    assert adapter.spec.features.encoder in str(caught.value)


def test_wrong_layer_is_named(case: Any) -> None:
    _host, adapter = case
    width = adapter.spec.features.width
    other_rank = torch.zeros(1, 5, width) if adapter.spec.features.layer == "image_embeds" else torch.zeros(1, width)
    with pytest.raises(EncoderMismatch, match=adapter.spec.features.layer):
        adapter.project(other_rank)


def test_wrong_base_is_named_and_left_alone(case: Any) -> None:
    host, adapter = case
    other = tiny.unet("small", cross_attention_dim=32)
    processors = dict(other.attn_processors)
    with pytest.raises(HostMismatch) as caught:
        attach(other, adapter)
    assert "24" in str(caught.value) and "32" in str(caught.value)
    assert all(other.attn_processors[name] is processor for name, processor in processors.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in other.modules())

    with pytest.raises(HostMismatch):
        attach(tiny.unet("small"), adapter)


def test_sites_of_another_width_are_named() -> None:
    adapter = tiny.adapter(tiny.unet())
    wider = tiny.unet("sd1", block_out_channels=(16, 16, 16, 16))
    with pytest.raises(HostMismatch, match="keys of width 8 at number 1.*width 16"):
        attach(wider, adapter)


def test_detached_attachment_says_so(case: Any) -> None:
    host, adapter = case
    images = attach(host, adapter)
    images.detach()
    images.detach()
    with pytest.raises(ConditioningError, match="detached"):
        images.set(tiny.conditioning(tiny.branch(adapter)))


def test_offload_is_equal(case: Any) -> None:
    host, adapter = case
    inputs = tiny.host_inputs(host)
    kept = with_prompts(host, inputs, adapter, tiny.branch(adapter))
    with attach(host, adapter, offload=True) as images:
        images.set(tiny.conditioning(tiny.branch(adapter)))
        assert torch.equal(tiny.call(host, inputs), kept)


def test_keys_and_values_are_computed_once_a_set(case: Any) -> None:
    host, adapter = case[0], copy.deepcopy(case[1])
    calls: list[str] = []
    for name, module in adapter.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    with attach(host, adapter) as images:
        images.set(tiny.conditioning(tiny.branch(adapter)))
        num_sites = len(images.sites)
        assert sum(name.endswith("to_k_ip") for name in calls) == num_sites
        calls.clear()
        for step in range(3):
            tiny.call(host, tiny.host_inputs(host, seed=step))
    assert not calls
