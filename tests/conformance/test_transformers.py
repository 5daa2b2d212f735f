"""What attaching promises, for the diffusion transformers that adapters are published for, one call at a time."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from imprompt.adapter.attach import attach
from imprompt.adapter.conditioning import Branch, Conditioning
from imprompt.core.errors import ConditioningError, HostMismatch
from tests import tiny
from tests import tiny_transformers as transformers

WEIGHTS = (1.0, 0.4, 0.0, -0.6)
Case = tuple[str, Any, Any]  # family, host, adapter


@pytest.fixture(params=transformers.FAMILIES, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    """Shared by the tests of this file: each must leave them as they were."""
    host = transformers.host(request.param)
    return request.param, host, transformers.adapter(request.param, host)


def with_prompts(host: Any, arguments: dict[str, Any], adapter: Any, *branches: Any) -> Tensor:
    with attach(host, adapter) as images:
        images.set(transformers.conditioning(*branches))
        return tiny.call(host, arguments)


def differ(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-2)


def hooks_of(host: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in host.modules())


# One prompt ----------------------------------------------------------------------------------------------------------


def test_detach_restores_host(case: Case) -> None:
    _family, host, adapter = case
    arguments = transformers.inputs(host, 2)
    state = {key: value.clone() for key, value in host.state_dict().items()}
    processors, names = dict(host.attn_processors), [name for name, _ in host.named_modules()]
    plain = tiny.call(host, arguments)
    with attach(host, adapter) as images:
        assert torch.equal(tiny.call(host, arguments), plain)
        images.set(transformers.conditioning(transformers.branch(adapter, 2)))
        assert differ(tiny.call(host, arguments), plain)
        images.set(None)
        assert torch.equal(tiny.call(host, arguments), plain)
    assert torch.equal(tiny.call(host, arguments), plain)
    assert all(host.attn_processors[name] is processor for name, processor in processors.items())
    assert all(torch.equal(value, state[key]) for key, value in host.state_dict().items())
    assert [name for name, _ in host.named_modules()] == names
    assert hooks_of(host) == 0


def test_weight_zero_is_no_adapter(case: Case) -> None:
    _family, host, adapter = case
    arguments = transformers.inputs(host, 2)
    plain = tiny.call(host, arguments)
    assert torch.equal(with_prompts(host, arguments, adapter, transformers.branch(adapter, 2, weight=0.0)), plain)
    one = with_prompts(host, arguments, adapter, transformers.branch(adapter, 2, weight=[0.0, 1.0]))
    assert torch.equal(one[0], plain[0]) and differ(one[1], plain[1])


def test_every_site_acts(case: Case) -> None:
    """With the strength of one site alone, the output is another than with none, and than with any other's."""
    _family, host, adapter = case
    arguments = transformers.inputs(host)
    count = len(adapter.spec.site_indices)
    outputs = [tiny.call(host, arguments)]
    for number in range(count):
        scale = torch.zeros(count)
        scale[number] = 1.0
        outputs.append(with_prompts(host, arguments, adapter, transformers.branch(adapter, scale=scale)))
    assert all((a - b).abs().max() > 1e-3 for a in outputs for b in outputs if a is not b)


def test_gradients_reach_adapter_parameters_only(case: Case) -> None:
    _family, host, adapter = case
    adapter = copy.deepcopy(adapter).requires_grad_(True)
    with attach(host, adapter) as images:
        images.set(transformers.conditioning(transformers.branch(adapter, 2)))
        host(**transformers.inputs(host, 2)).sample.square().mean().backward()
    assert not [name for name, parameter in adapter.named_parameters() if parameter.grad is None]
    assert all(parameter.grad is None for parameter in host.parameters())


def test_two_adapters_are_the_sum_of_their_branches(case: Case) -> None:
    """At the first site alone, whose query does not depend on the images; its block's output is compared."""
    family, host, adapter = case
    other = transformers.adapter(family, host, seed=2)
    arguments = transformers.inputs(host)
    only = torch.zeros(len(adapter.spec.site_indices))
    only[0] = 1.0
    parts = [
        transformers.branch(adapter, weight=0.7, scale=only),
        transformers.branch(other, weight=0.4, seed=5, scale=only, number=1),
    ]
    seen: list[Tensor] = []
    sink = host.get_submodule(attach_first_sink(host, adapter))

    def record(_module: Any, _inputs: Any, output: Any) -> None:
        seen.append(output[1] if isinstance(output, tuple) else output)

    with attach(host, adapter, other) as images:
        handle = sink.register_forward_hook(record)
        for branches in [(), parts[:1], parts[1:], parts]:
            images.set(transformers.conditioning(*branches) if branches else None)
            tiny.call(host, arguments)
        handle.remove()
    plain, one, two, both = seen
    assert differ(one, plain) and differ(two, plain) and differ(one, two)
    torch.testing.assert_close(both - plain, (one - plain) + (two - plain), atol=1e-5, rtol=1e-5)


def attach_first_sink(host: Any, adapter: Any) -> str:
    with attach(host, adapter) as images:
        return images.sites[0].sink


# Rows ----------------------------------------------------------------------------------------------------------------


def test_rows_equal_their_own_runs(case: Case) -> None:
    """Other images, weights, token counts and regions in every row, and a row without any image."""
    _family, host, adapter = case
    rows = len(WEIGHTS) + 1
    arguments = transformers.inputs(host, rows)
    if "img_ids" not in arguments:  # FLUX pipelines have one timestep for all; where rows differ, they must not mix
        arguments["timestep"] = torch.linspace(900.0, 100.0, rows)
    tokens = adapter.project(transformers.features(adapter, rows))
    length = tokens.shape[1]
    counts = [length, length - 1, length, 2, 0]
    regions = tiny.rand(rows, 24, 32, seed=6).sigmoid()
    mask = torch.arange(length)[None] < torch.tensor(counts)[:, None]
    num_sites = len(adapter.spec.site_indices)
    together = Branch(
        tokens=torch.where(mask[..., None], tokens, 1e3),  # what is masked must not matter
        null_tokens=None,
        scale=torch.tensor([*WEIGHTS, 0.0]).expand(1, num_sites, rows),
        region=regions,
        token_mask=mask,
    )
    plain = tiny.call(host, arguments)
    output = with_prompts(host, arguments, adapter, together)
    for row, count in enumerate(counts[:-1]):
        alone = Branch(
            tokens=tokens[row : row + 1, :count],
            null_tokens=None,
            scale=torch.full((1, num_sites, 1), WEIGHTS[row]),
            region=regions[row : row + 1],
        )
        wanted = with_prompts(host, transformers.row_of(arguments, row), adapter, alone)
        torch.testing.assert_close(output[row], wanted[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(output[-1], plain[-1])
    assert torch.equal(output[2], plain[2])


def test_one_row_serves_a_batch_of_any_size(case: Case) -> None:
    _family, host, adapter = case
    with attach(host, adapter) as images:
        images.set(transformers.conditioning(transformers.branch(adapter)))
        for rows in (3, 1, 2):
            arguments = transformers.inputs(host, rows)
            output = tiny.call(host, arguments)
            for row in range(rows):
                alone = tiny.call(host, transformers.row_of(arguments, row))
                torch.testing.assert_close(output[row], alone[0], atol=1e-5, rtol=1e-5)


def test_layouts_of_guidance(case: Case) -> None:
    """Negative rows have the null tokens, or none where the adapter knows no null image."""
    family, host, adapter = case
    arguments = transformers.inputs(host, 2)
    shown, nothing = transformers.features(adapter), torch.zeros_like(transformers.features(adapter))
    with attach(host, adapter, guidance="cfg") as images:
        images.set(transformers.conditioning(transformers.branch(adapter, given=shown)))
        output = tiny.call(host, arguments)
    positive = with_prompts(host, transformers.row_of(arguments, 1), adapter, transformers.branch(adapter, given=shown))
    weight = 0.0 if family in ("flux-instantx", "flux-pulid") else 1.0
    negative = with_prompts(
        host, transformers.row_of(arguments, 0), adapter, transformers.branch(adapter, given=nothing, weight=weight)
    )
    torch.testing.assert_close(output, torch.cat([negative, positive]), atol=1e-5, rtol=1e-5)


# Regions -------------------------------------------------------------------------------------------------------------


def test_mask_of_ones_is_no_mask_and_of_zeros_no_adapter(case: Case) -> None:
    _family, host, adapter = case
    arguments = transformers.inputs(host)
    free = with_prompts(host, arguments, adapter, transformers.branch(adapter))
    ones = with_prompts(host, arguments, adapter, transformers.branch(adapter, region=torch.ones(1, 45, 60)))
    zeros = with_prompts(host, arguments, adapter, transformers.branch(adapter, region=torch.zeros(1, 45, 60)))
    assert torch.equal(ones, free)
    assert torch.equal(zeros, tiny.call(host, arguments))


@pytest.mark.parametrize("side", ["left", "top"])
def test_mask_acts_where_it_is_one(case: Case, side: str) -> None:
    """At every site alone, read off what it adds to its sink: only the picture's tokens under the mask have a change.

    Beside the picture, InstantX's text tokens see the image at the mask's mean.
    """
    family, host, adapter = case
    height, width = transformers.GRID
    region = torch.zeros(1, 3 * height, 3 * width)
    region[(..., slice(3 * width // 2)) if side == "left" else (..., slice(3 * height // 2), slice(None))] = 1
    arguments = transformers.inputs(host)
    with attach(host, adapter) as images:
        images.set(transformers.conditioning(transformers.branch(adapter, region=region)))
        tiny.call(host, arguments)
        added: dict[str, Tensor] = {}
        for tap in images._taps:  # what a tap adds, before it is merged into the host's sequence
            image = tap.image

            def spy(*reads: Tensor, image: Any = image, name: str = tap.site.name, **more: Any) -> Any:
                added[name] = image(*reads, **more)
                return added[name]

            tap.image = spy
        tiny.call(host, arguments)
    assert len(added) == len(adapter.sites)
    for name, branch in added.items():
        change = branch.abs().amax((1, 3))[0]
        others = change.numel() - height * width
        assert others == (transformers.TEXT_LENGTH if family == "flux-instantx" and name.startswith("single") else 0)
        assert (change[:others] > 0).all()
        grid = change[others:].view(height, width)
        inside, outside = (
            (grid[:, : width // 2], grid[:, width // 2 :])
            if side == "left"
            else (
                grid[: height // 2],
                grid[height // 2 :],
            )
        )
        assert (inside > 0).all() and (outside == 0).all()


def test_size_may_change_between_calls(case: Case) -> None:
    family, host, adapter = case
    other = transformers.host(family)
    region = torch.zeros(1, 24, 40)
    region[..., :20] = 1
    with attach(host, adapter) as images:
        images.set(transformers.conditioning(transformers.branch(adapter, region=region)))
        for grid in [(6, 8), (4, 7), (8, 6), (6, 8)]:
            arguments = transformers.inputs(host, grid=grid)
            wanted = with_prompts(other, arguments, adapter, transformers.branch(adapter, region=region))
            assert torch.equal(tiny.call(host, arguments), wanted)


def test_mask_beside_references_is_refused() -> None:
    """Kontext puts the tokens of pictures that it edits behind its own; without a mask they are no matter."""
    host = transformers.flux()
    adapter = transformers.adapter("flux", host)
    arguments = transformers.inputs(host, grid=(6, 8))
    arguments["img_ids"] = torch.cat([transformers.ids(6, 4), transformers.ids(6, 4, number=1)])
    assert differ(with_prompts(host, arguments, adapter, transformers.branch(adapter)), tiny.call(host, arguments))
    with pytest.raises(ConditioningError, match="a mask cannot be placed"):
        with_prompts(host, arguments, adapter, transformers.branch(adapter, region=torch.ones(1, 24, 32)))


# What else users do to a denoiser ------------------------------------------------------------------------------------


def add_lora(host: Any) -> Any:
    targets = ["to_q", "to_k", "to_v", "to_out.0", "proj_out"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        host.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False))
    return host


def test_lora_before_and_after_attaching_are_equal(case: Case) -> None:
    family, host, adapter = case
    arguments = transformers.inputs(host, 2)
    branch = transformers.branch(adapter, 2)
    alone = with_prompts(host, arguments, adapter, branch)
    before = with_prompts(add_lora(transformers.host(family)), arguments, adapter, branch)
    assert differ(before, alone)
    other = transformers.host(family)
    with attach(other, adapter) as images:
        images.set(transformers.conditioning(branch))
        assert torch.equal(tiny.call(other, arguments), alone)
        add_lora(other)
        assert torch.equal(tiny.call(other, arguments), before)
        images.set(None)
        assert torch.equal(tiny.call(other, arguments), tiny.call(add_lora(transformers.host(family)), arguments))
    assert hooks_of(other) == 0


def test_fused_projections(case: Case) -> None:
    """FLUX makes all three at once and norms the queries as ever.

    diffusers' fused processor of SD3 (`FusedJointAttnProcessor2_0`) leaves the norms out and makes none of what is
    read: without a word the image would have no effect.
    """
    family, host, adapter = case
    arguments = transformers.inputs(host, 2)
    branch = transformers.branch(adapter, 2)
    fused = transformers.host(family)
    fused.fuse_qkv_projections()
    if family.startswith("sd3"):
        with pytest.raises(HostMismatch, match=r"transformer_blocks\.0\.attn made 0 of the . .*do not fuse"):
            with_prompts(fused, arguments, adapter, branch)
        return
    wanted = with_prompts(host, arguments, adapter, branch)
    torch.testing.assert_close(with_prompts(fused, arguments, adapter, branch), wanted, atol=1e-5, rtol=1e-5)


def test_skipped_layers_ask_for_positive_rows_alone() -> None:
    """SD3's skip-layer guidance calls once more for them, without some blocks."""
    for family in ("sd3", "sd3-instantx"):
        host = transformers.sd3()
        adapter = transformers.adapter(family, host)
        arguments = {**transformers.inputs(host, 2), "skip_layers": [1]}
        branch = transformers.branch(adapter, 2)
        with attach(host, adapter, guidance="cfg") as images:
            images.set(transformers.conditioning(branch))
            output = tiny.call(host, arguments)
        assert torch.equal(output, with_prompts(host, arguments, adapter, branch))
        assert differ(output, tiny.call(host, arguments))


# Wrong use -----------------------------------------------------------------------------------------------------------


def test_wrong_base_is_named(case: Case) -> None:
    family, host, adapter = case
    foreign = transformers.flux() if family.startswith("sd3") else transformers.sd3()
    with pytest.raises(HostMismatch, match=f"family '{family}' are for {type(host).__name__}; got"):
        attach(foreign, adapter)
    deeper = transformers.host(family, num_layers=7)
    with pytest.raises(HostMismatch, match="wants a .* host with"):
        attach(deeper, adapter)
    wider = transformers.host(family, num_attention_heads=4, **sizes_for(family))
    with pytest.raises(HostMismatch, match="keys of width 16 at number 0.*width 32"):
        attach(wider, adapter)
    assert hooks_of(foreign) == hooks_of(deeper) == hooks_of(wider) == 0


def sizes_for(family: str) -> dict[str, Any]:
    return {"caption_projection_dim": 32} if family.startswith("sd3") else {}


def test_adapters_of_two_families_are_refused() -> None:
    host = transformers.flux()
    adapters = [transformers.adapter(family, host) for family in ("flux-xlabs", "flux-instantx")]
    with pytest.raises(HostMismatch, match="'flux-xlabs' and 'flux-instantx'; attach those of one family"):
        attach(host, *adapters)


def test_separate_calls_without_a_pipeline_are_refused() -> None:
    host = transformers.flux()
    adapter = transformers.adapter("flux", host)
    with attach(host, adapter, guidance="separate") as images:
        images.set(transformers.conditioning(transformers.branch(adapter)))
        with pytest.raises(ConditioningError, match="called once for each half of guidance.*pass guidance="):
            tiny.call(host, transformers.inputs(host))


def test_rows_that_do_not_fit_are_refused(case: Case) -> None:
    _family, host, adapter = case
    with attach(host, adapter) as images:
        images.set(Conditioning(branches=(transformers.branch(adapter, 2),), rows=2))
        with pytest.raises(ConditioningError, match="a batch of 3"):
            tiny.call(host, transformers.inputs(host, 3))
