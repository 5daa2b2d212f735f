"""Every denoiser class of diffusers: the rows of its family's table are right, or it says why it has none."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from imprompt.adapter.attach import attach
from imprompt.adapter.conditioning import Conditioning
from imprompt.adapter.families import NOT_ATTACHABLE, all_families, family_of
from imprompt.adapter.sites import Site
from imprompt.core.errors import ConditioningError, HostMismatch
from tests import tiny
from tests.denoisers import DENOISERS, all_denoiser_classes, report
from tests.denoisers.attached import ATTACHABLE, Attachable, attachable
from tests.denoisers.recorded import first_of_every_place, merged, record, rows_of, with_and_without

# Calls that hold references beside the picture: where the picture's own part of the latents is.
OWN_LATENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "QwenImage21Transformer2DModel": lambda latents: latents[:, 4:],
    "JoyImageEditTransformer3DModel": lambda latents: latents[:, 1],
    "JoyImageEditPlusTransformer3DModel": lambda latents: latents[:, :6],
}
# Sinks that are given more than attention brings: Motif-Video adds what its own text attention puts out, with a bias.
MIXED = {"MotifVideoTransformer3DModel"}
# Tiny models that make a rounding error of one kernel a hundred times larger.
TURBULENT = {"Kandinsky3UNet"}
# Such a one whose embeddings are kept in float32, so that float64 does not help; share of the largest value.
ROUNDS_AS_WELL = {"Kandinsky5Transformer3DModel": 1e-4}
# What hosts cannot do here, with or without an adapter.
NO_GRADIENTS = {"AnyFlowFARTransformer3DModel": "FlexAttention has no backward pass on CPUs"}
# Columns of the picture where its adapter first acts.
COLUMNS = {
    "UNet2DConditionModel": 6,
    "UNet3DConditionModel": 6,
    "I2VGenXLUNet": 6,
    "UNetMotionModel": 6,
    "UNetSpatioTemporalConditionModel": 6,
    "UNetControlNetXSModel": 6,
    "DreamLiteUNetModel": 6,
    "StableCascadeUNet": 6,
    "UVit2DModel": 6,
    "Kandinsky3UNet": 8,
    "QwenImage21Transformer2DModel": 4,
}
WITHOUT_GRID = {
    "AnyFlowFARTransformer3DModel": "chunks of frames are patched more coarsely",
    "Cosmos3OmniTransformer": "one packed sequence",
    "Ideogram4Transformer2DModel": "a mark for every token",
    "MiniMaxH3Transformer3DModel": "indices",
    "SanaWMLTX2RefinerTransformer3DModel": "rotations",
}


@pytest.fixture(scope="module", params=ATTACHABLE)
def host(request: pytest.FixtureRequest) -> Attachable:
    return attachable(request.param)


def test_every_class_attaches_or_says_why_not() -> None:
    known = {name for family in all_families().values() for name in family.hosts}
    assert known | set(NOT_ATTACHABLE) == set(all_denoiser_classes())
    assert known.isdisjoint(NOT_ATTACHABLE)


def test_the_page_is_what_the_walk_finds() -> None:
    assert report.PAGE.read_text() == report.render(), "run python -m tests.denoisers.report"


@pytest.mark.parametrize("name", sorted(set(NOT_ATTACHABLE) & set(DENOISERS)))
def test_a_class_without_a_place_says_why(name: str) -> None:
    with pytest.raises(HostMismatch, match=f"{name} takes no image prompt: it {NOT_ATTACHABLE[name]}"):
        family_of(DENOISERS[name].build())


def test_a_class_that_is_unknown_says_which_are_known() -> None:
    with pytest.raises(HostMismatch, match=r"Linear is no denoiser that imprompt knows; expected one of Allegro"):
        family_of(torch.nn.Linear(1, 1))


def test_without_prompts_and_detached_nothing_is_changed(host: Attachable) -> None:
    hooks = _hooks(host.model)
    attachment = attach(host.model, host.adapter)
    assert torch.equal(host.call(), host.plain)
    attachment.set(Conditioning(branches=(host.branch(),), rows=host.rows))
    assert not torch.equal(host.call(), host.plain)
    attachment.set(None)
    assert torch.equal(host.call(), host.plain)
    attachment.detach()
    assert torch.equal(host.call(), host.plain)
    assert _hooks(host.model) == hooks


def test_an_image_changes_its_own_row_alone(host: Attachable) -> None:
    for own in range(host.rows):
        weights = [float(row == own) for row in range(host.rows)]
        with attach(host.model, host.adapter) as attachment:
            attachment.set(Conditioning(branches=(host.branch(weight=weights),), rows=host.rows))
            changed = host.call()
        for row in range(host.rows):
            assert torch.equal(changed[row], host.plain[row]) == (row != own)
        assert (changed[own] - host.plain[own]).abs().max() > 0.05


def test_a_row_in_company_is_as_it_is_alone(host: Attachable) -> None:
    branch = host.branch()
    dtype = torch.float64 if host.entry.name in TURBULENT else torch.float32
    model = copy.deepcopy(host.model).to(dtype) if host.entry.name in TURBULENT else host.model
    with attach(model, host.adapter) as attachment:
        attachment.set(Conditioning(branches=(branch,), rows=host.rows))
        together = host.entry.call(model, _cast(host.inputs(), dtype))
        for row in range(host.rows):
            attachment.set(Conditioning(branches=(_row_of(branch, row),), rows=1))
            alone = host.entry.call(model, _cast(host.inputs(1, seed=3 + row), dtype))[0]
            share = ROUNDS_AS_WELL.get(host.entry.name, 1e-5)
            torch.testing.assert_close(alone, together[row], rtol=0, atol=share * float(together[row].abs().max()))


def test_the_branch_is_attention_of_the_pictures_tokens(host: Attachable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restated from what a host makes: at the first site of every place, with the branch there and nowhere else."""
    for seed in (3, 4) if "Fibo2" in host.entry.name else (3,):
        for site in first_of_every_place(host.sites):
            own = _own_tokens(host, site, seed, monkeypatch)
            plain, with_image, branch = with_and_without(host, site, seed)
            query = merged(plain["query"], site)
            attended = _attention(host, site, query[own].unflatten(0, (len(query), -1)), branch.tokens)

            sink = rows_of(plain["sink"])
            difference = rows_of(with_image["sink"]) - sink
            expected = torch.zeros_like(sink)
            width = attended.shape[-1]
            places = own if own.shape[1] == sink.shape[1] else own.new_ones(sink.shape[:2])
            expected[..., :width][places] = attended.flatten(0, 1)
            assert expected.abs().max() > 0.01
            scale = float(sink.abs().max())
            torch.testing.assert_close(difference, expected, rtol=1e-5, atol=2e-6 * scale, msg=site.name)
            assert not difference[expected == 0].any(), site.name


def test_a_mask_leaves_the_rest_of_the_picture_alone(host: Attachable) -> None:
    left = torch.tensor([[[1.0, 0.0]]]).expand(host.rows, 1, 2)
    site = host.sites[0]
    if host.entry.name in WITHOUT_GRID:
        with attach(host.model, host.adapter) as attachment, pytest.raises(ConditioningError, match="cannot be placed"):
            attachment.set(Conditioning(branches=(host.branch(region=left),), rows=host.rows))
            host.call()
        return
    plain, everywhere, _ = with_and_without(host, site, 3)
    _, masked, _ = with_and_without(host, site, 3, region=left)
    columns = COLUMNS.get(host.entry.name, 3)
    whole, half = (rows_of(each["sink"]) - rows_of(plain["sink"]) for each in (everywhere, masked))
    acts = whole.abs().amax(dim=-1) > 0
    whole, half = (each[acts].unflatten(0, (len(acts), -1, columns)) for each in (whole, half))
    assert torch.equal(half[:, :, 0], whole[:, :, 0])
    assert whole[:, :, -1].abs().amax(dim=-1).gt(0).all()
    assert not half[:, :, -1].any()


def test_gradients_reach_every_weight_of_the_adapter(host: Attachable) -> None:
    if host.entry.name in NO_GRADIENTS:
        pytest.skip(NO_GRADIENTS[host.entry.name])
    adapter = copy.deepcopy(host.adapter).requires_grad_(True)
    with attach(host.model, adapter) as attachment, host.entry.quiet():
        attachment.set(Conditioning(branches=(tiny.branch(adapter, host.rows),), rows=host.rows))
        host.entry.output(host.model(**host.inputs())).square().mean().backward()
    without = [name for name, each in adapter.named_parameters() if each.grad is None or not each.grad.any()]
    assert without == []


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # a norm of FLUX.3 computes in float32
def test_half_precision(host: Attachable) -> None:
    model = copy.deepcopy(host.model).to(torch.bfloat16)
    for name, module in model.named_modules():  # as `from_pretrained` does
        if name.rpartition(".")[2] in (model._keep_in_fp32_modules or ()):
            module.float()

    def call() -> Tensor:
        return host.entry.call(model, _cast(host.inputs(), torch.bfloat16))

    plain = call()
    with attach(model, host.adapter) as attachment:
        attachment.set(Conditioning(branches=(host.branch(),), rows=host.rows))
        changed = call()
    assert changed.dtype == plain.dtype
    assert torch.isfinite(changed).all()
    assert (changed - plain).abs().max() > 0.05


def _hooks(model: torch.nn.Module) -> list[tuple[Any, ...]]:
    return [
        (*module._forward_hooks, *module._forward_pre_hooks, *module.__dict__.get("forward", ()))
        for module in model.modules()
    ]


def _row_of(branch: Any, row: int) -> Any:
    return dataclasses.replace(
        branch,
        tokens=branch.tokens[row : row + 1],
        null_tokens=branch.null_tokens[row : row + 1],
        scale=branch.scale[..., row : row + 1],
    )


def _own_tokens(host: Attachable, site: Site, seed: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Which places of a query are the picture's [batch, length]: those that change with it where none sees another."""

    def none(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return value.new_zeros(*query.shape[:-1], value.shape[-1])

    inputs, others = host.inputs(seed=seed), host.inputs(seed=seed)
    latents = others[host.family.latents]
    for part in latents if isinstance(latents, list) else [latents]:
        own = OWN_LATENTS.get(host.entry.name, lambda whole: whole)(part)
        own.copy_((own + 1) % 10 if not own.is_floating_point() else own.roll(1, -1) + 1)
    with monkeypatch.context() as patch:
        patch.setattr(functional, "scaled_dot_product_attention", none)
        first, second = (record(host, site, each) for each in (inputs, others))
    own = (merged(first["query"], site) != merged(second["query"], site)).any(dim=-1)
    counts = own.sum(dim=1)
    assert (counts == counts[0]).all()
    sink = rows_of(first["sink"])
    places = own if own.shape[1] == sink.shape[1] else own.new_ones(sink.shape[:2])
    assert host.entry.name in MIXED or not sink[places][:, : site.query_width].any()
    return own


def _attention(host: Attachable, site: Site, query: Tensor, tokens: Tensor) -> Tensor:
    """Softmax attention to the image's tokens, written out."""
    part: Any = host.adapter.ip_adapter[str(site.index)]
    frames = len(query) // len(tokens)
    keys, values = (layer(tokens).repeat_interleave(frames, dim=0) for layer in (part.to_k_ip, part.to_v_ip))
    query, keys, values = (each.unflatten(-1, (site.num_heads, -1)) for each in (query, keys, values))
    scores = torch.einsum("bqhd,bkhd->bhqk", query, keys) * query.shape[-1] ** -0.5
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(dim=-1), values).flatten(2)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Numbers of another format, timesteps and places too, as pipelines hand them over."""
    if isinstance(value, dict):
        return {key: _cast(each, dtype) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_cast(each, dtype) for each in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.dtype == torch.float32 else value
