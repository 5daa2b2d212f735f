"""Pipelines make their calls; every row of every call has the tokens that belong to its text.

Positive texts are positive numbers here and negative ones negative, so the arguments of a call tell which row is which.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.attach import Attachment, attach
from imprompt.adapter.guidance import CallCounter, layout_of
from imprompt.core.errors import ConditioningError
from tests import tiny
from tests.denoisers import DENOISERS
from tests.denoisers.attached import random_adapter
from tests.denoisers.table import draw_weights

Recorded = tuple[str, tuple[int, ...]]


def text(sign: float, rows: int = 1) -> Tensor:
    return sign * (1 + torch.rand(rows, 5, 12, generator=torch.Generator().manual_seed(0)))


def texts(rows: int) -> dict[str, Tensor]:
    return {"prompt_embeds": text(1, rows), "negative_prompt_embeds": text(-1, rows)}


def masked(
    rows: int, positive: str = "prompt_attention_mask", *, dtype: torch.dtype = torch.int64
) -> dict[str, Tensor]:
    mask = torch.ones(rows, 5, dtype=dtype)
    return {**texts(rows), positive: mask, f"negative_{positive}": mask}


def listed(rows: int) -> dict[str, Any]:
    return {name: list(each) for name, each in texts(rows).items()}


def flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


def shifted() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


@dataclass(frozen=True)
class Case:
    """A pipeline, and what its calls are to be: `+` and `-` for the rows of one, two of each.

    Attributes:
        kind: of the pipeline.
        host: the denoiser's class.
        calls: what one run of three steps asks for, or of six where a part of it is not guided.
        inputs: the texts of so many rows.
        options: of the run; `pipe` of the pipeline; `config` changes the host's.
        guidance: what has to be told to `attach`.
        side: pixels of a token's side.
    """

    kind: str
    host: str
    calls: tuple[str, ...]
    inputs: Callable[[int], dict[str, Any]] = texts
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    scheduler: Callable[[], Any] = flow
    guidance: str | None = None
    side: int = 16
    argument: str = "encoder_hidden_states"


CFG, SEPARATE = ("--++",) * 3, ("++", "--") * 3
CASES = (
    Case(
        "PixArtSigmaPipeline",
        "PixArtTransformer2DModel",
        CFG,
        masked,
        {"use_resolution_binning": False, "negative_prompt": None},
        {"use_additional_conditions": False},
        scheduler=tiny.scheduler,
        guidance="cfg",
    ),
    Case(
        "SanaPipeline",
        "SanaTransformer2DModel",
        CFG,
        masked,
        {"use_resolution_binning": False, "negative_prompt": None},
        side=64,
    ),
    Case(
        "QwenImagePipeline",
        "QwenImageTransformer2DModel",
        SEPARATE,
        functools.partial(masked, positive="prompt_embeds_mask"),
        {"true_cfg_scale": 4.0},
        {"out_channels": 1},
        scheduler=shifted,
    ),
    Case(
        "QwenImagePipeline",
        "QwenImageTransformer2DModel",
        ("++",) * 3,
        functools.partial(masked, positive="prompt_embeds_mask"),
        {"true_cfg_scale": 1.0},
        {"out_channels": 1},
        scheduler=shifted,
    ),
    Case("ZImagePipeline", "ZImageTransformer2DModel", ("++--",) * 3, listed, argument="cap_feats"),
    Case(
        "ZImagePipeline",
        "ZImageTransformer2DModel",
        ("++--", "++--", "++"),
        listed,
        {"cfg_truncation": 0.5},
        argument="cap_feats",
    ),
    Case("AuraFlowPipeline", "AuraFlowTransformer2DModel", CFG, masked),
    Case(
        "Flux2KleinPipeline",
        "Flux2Transformer2DModel",
        SEPARATE,
        config={"in_channels": 8},
        scheduler=shifted,
    ),
    Case("Lumina2Pipeline", "Lumina2Transformer2DModel", SEPARATE, masked),
    Case(
        "Lumina2Pipeline",
        "Lumina2Transformer2DModel",
        ("++", "--", "++", "++"),
        masked,
        {"cfg_trunc_ratio": 0.4},
    ),
)


def built(case: Case, name: str = "transformer") -> Any:
    """A pipeline without text encoder and autoencoder, which texts and latents make unnecessary."""
    kind = getattr(diffusers, case.kind)
    parts = dict.fromkeys(("text_encoder", "tokenizer", "vae", "processor"))
    names = kind.__init__.__code__.co_varnames
    host = host_of(case.host, case.config)
    pipe = kind(**{key: None for key in parts if key in names}, **{name: host}, scheduler=case.scheduler())
    pipe.set_progress_bar_config(disable=True)
    if case.kind.startswith("Flux2"):  # scales its latents by these before it gives them back
        vae = SimpleNamespace(bn=nn.BatchNorm2d(8), config=SimpleNamespace(batch_norm_eps=1e-4))
        object.__setattr__(pipe, "vae", vae)
    return pipe


def host_of(name: str, config: dict[str, Any] | None = None, *, seed: int = 0) -> Any:
    entry = DENOISERS[name]
    model = entry.kind(**{**entry.config, **(config or {})}).eval().requires_grad_(False)
    draw_weights(model, torch.Generator().manual_seed(seed))
    return model


def adapter_for(host: nn.Module) -> Adapter:
    return tiny.seeded(functools.partial(random_adapter, host), 1)


@contextmanager
def recording(host: nn.Module, argument: str) -> Iterator[list[str]]:
    """For every call `+` or `-` for every row, by its text."""
    seen: list[str] = []
    parameters = tuple(inspect.signature(host.forward).parameters)

    def record(_host: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = {**dict(zip(parameters, args, strict=False)), **kwargs}[argument]
        seen.append("".join("+" if float(row.float().mean()) > 0 else "-" for row in given))

    hook = host.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def clocked(attachment: Attachment) -> Iterator[list[Tensor]]:
    """The timestep of every call, as its family reads it."""
    seen: list[Tensor] = []
    parameters = tuple(inspect.signature(attachment.host.forward).parameters)

    def record(host: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = attachment.family.read(host, {**dict(zip(parameters, args, strict=False)), **kwargs})
        seen.append(torch.as_tensor(call.timestep).float().reshape(-1)[0])

    hook = attachment.host.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def spied(attachment: Attachment) -> list[str]:
    """For every call the sign of what each row of it is conditioned on, beside the number of its prompt."""
    rows: list[str] = []
    ask = attachment.bank_rows

    def bank_rows(batch: int, part: str | None = None) -> tuple[int, ...]:
        told = ask(batch, part)
        count = attachment._banks[0].rows
        rows.append("".join("+-"[row // count] for row in told))
        assert [row % count for row in told] == sorted(range(count)) * (len(told) // count)
        return told

    attachment.bank_rows = bank_rows  # pyright: ignore
    return rows


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.calls[-1]}-{len(case.calls)}")
def test_every_row_has_the_tokens_of_its_text(case: Case) -> None:
    pipe = built(case)
    adapter = adapter_for(pipe.transformer)
    size = {"height": 2 * case.side, "width": 3 * case.side}
    run = functools.partial(pipe, **case.inputs(2), **size, num_inference_steps=3, output_type="latent", **case.options)
    with attach(pipe, adapter, guidance=case.guidance) as attachment:
        attachment.set(tiny.conditioning(tiny.branch(adapter, 2)))
        rows = spied(attachment)
        with recording(pipe.transformer, case.argument) as asked, clocked(attachment) as clock:
            run()
        # Every call is at one of the run's timesteps, as the scheduler counts them.
        distances = torch.stack(clock)[:, None] - pipe.scheduler.timesteps[None].float()
        assert distances.abs().amin(dim=1).max() < 0.5
        assert len(distances.abs().argmin(dim=1).unique()) == 3
        assert tuple(asked) == case.calls
        assert rows == asked
        run()  # counts start anew
        assert rows == asked * 2


def test_a_pipeline_that_keeps_silent_is_told_what_to_pass() -> None:
    pipe = built(CASES[0])
    adapter = adapter_for(pipe.transformer)
    with attach(pipe, adapter) as attachment:
        attachment.set(tiny.conditioning(tiny.branch(adapter)))
        with pytest.raises(
            ConditioningError, match=r"PixArtSigmaPipeline does not tell .* pass guidance='cfg' to attach"
        ):
            pipe(**masked(1), height=32, width=48, output_type="latent", **CASES[0].options)


def test_both_denoisers_of_a_pipeline_follow_the_image() -> None:
    """Wan 2.2 goes on with another denoiser at low noise."""
    hosts = [host_of("WanTransformer3DModel", seed=seed) for seed in (0, 1)]
    pipe = diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=flow(),
        transformer=hosts[0],
        transformer_2=hosts[1],
        boundary_ratio=0.5,
    )
    pipe.set_progress_bar_config(disable=True)
    adapter = adapter_for(hosts[0])
    with attach(pipe, adapter) as attachment:
        assert attachment.second is not None
        assert attachment.second.host is hosts[1]
        attachment.set(tiny.conditioning(tiny.branch(adapter)))
        high, low = spied(attachment), spied(attachment.second)
        with (
            recording(hosts[0], "encoder_hidden_states") as first,
            recording(hosts[1], "encoder_hidden_states") as second,
        ):
            pipe(**texts(1), height=32, width=48, num_frames=5, num_inference_steps=4, output_type="latent")
        assert first == high == ["+", "-"] * 2
        assert second == low == ["+", "-"] * 2
    assert not any(module._forward_pre_hooks for host in hosts for module in host.modules())


def test_a_denoiser_that_is_there_alone_as_the_second_is_found() -> None:
    host = host_of("WanTransformer3DModel")
    pipe = SimpleNamespace(transformer=None, transformer_2=host, scheduler=flow())
    with attach(pipe, adapter_for(host)) as attachment:
        assert attachment.host is host
        assert attachment.second is None


# Layouts that calls or pipelines tell, without the pipeline's other parts ---------------------------------------------


def part_of(name: str, **arguments: Any) -> tuple[str | None, str | None]:
    host = host_of(name)
    from imprompt.adapter.families import family_of

    call = family_of(host).read(host, {**DENOISERS[name].inputs(2), **arguments})
    return call.part, call.layout


def test_calls_that_tell_their_layout() -> None:
    cache = SimpleNamespace(caches=[SimpleNamespace(mode="write")])
    assert part_of("GlmImageTransformer2DModel", kv_caches=cache)[0] == "skip"
    cache.caches[0].mode = "read"
    assert part_of("GlmImageTransformer2DModel", kv_caches=cache)[0] is None
    assert part_of("SD3Transformer2DModel", skip_layers=[0])[0] == "none"
    assert part_of("LTX2VideoTransformer3DModel", isolate_modalities=True)[0] == "none"
    assert part_of("LTX2VideoTransformer3DModel", spatio_temporal_guidance_blocks=[1])[0] == "none"
    assert part_of("LTX2VideoTransformer3DModel")[0] is None
    assert part_of("WanAnimate2Transformer3DModel", is_uncondtion=True)[0] == "negative"
    assert part_of("OmniGenTransformer2DModel")[1] == "cfg-reversed"
    assert part_of("OmniGenTransformer2DModel", input_img_latents=[torch.zeros(1)])[1] == "pix2pix"
    assert part_of("SanaTransformer2DModel", guidance=torch.ones(2))[1] == "none"
    for count, layout in ((1, "none"), (2, "cfg"), (3, "edit")):
        sizes = {"time_ids": torch.zeros(count, 2)}
        assert part_of("DreamLiteUNetModel", added_cond_kwargs=sizes)[1] == layout


def test_a_layout_that_calls_tell_is_the_pipelines_and_not_a_bare_denoisers() -> None:
    entry, host = DENOISERS["OmniGenTransformer2DModel"], host_of("OmniGenTransformer2DModel")
    adapter = adapter_for(host)
    for target, expected in ((host, ["++"]), (SimpleNamespace(transformer=host), ["+-"])):
        with attach(target, adapter) as attachment:
            attachment.set(tiny.conditioning(tiny.branch(adapter)))
            rows = spied(attachment)
            entry.call(host, entry.inputs(2))
            assert rows == expected


class Scheduler:
    """Counts steps."""

    def __init__(self) -> None:
        self.timesteps = torch.arange(3)
        self.step_index: int | None = None


def test_a_guider_tells_which_call_this_is() -> None:
    """Skip-layer guidance without classifier-free guidance asks for two positive halves."""
    guider = SimpleNamespace(is_conditional=True)
    pipe = SimpleNamespace(scheduler=Scheduler(), guider=guider)
    calls = CallCounter()
    assert [calls.part(pipe) for _ in range(2)] == ["none", "none"]
    guider.is_conditional = False
    assert calls.part(pipe) == "negative"


def test_a_pipeline_that_says_that_it_is_not_guided_has_one_half() -> None:
    """Also where copies of the scheduler count in its place, as in diffusion forcing."""
    pipe = SimpleNamespace(scheduler=Scheduler(), do_classifier_free_guidance=False)
    calls = CallCounter()
    assert [calls.part(pipe) for _ in range(3)] == ["none"] * 3
    pipe.do_classifier_free_guidance = True
    assert [calls.part(pipe) for _ in range(4)] == ["none", "negative"] * 2


def test_a_negative_half_that_is_left_out() -> None:
    pipe = SimpleNamespace(scheduler=Scheduler())
    calls = CallCounter()
    found = []
    for step, count in ((None, 2), (1, 1), (2, 1)):
        pipe.scheduler.step_index = step
        found += [calls.part(pipe) for _ in range(count)]
    assert found == ["none", "negative", "none", "none"]


def test_a_scheduler_that_does_not_count_is_refused() -> None:
    pipe = SimpleNamespace(scheduler=SimpleNamespace(timesteps=torch.arange(3)))
    with pytest.raises(ConditioningError, match=r"pass guidance='none' or 'negative' to attach"):
        CallCounter().part(pipe)


def test_perturbed_attention_on_transformers() -> None:
    pipe = SimpleNamespace(do_classifier_free_guidance=True, do_perturbed_attention_guidance=True)
    assert layout_of(pipe, usual="cfg") == "cfg+pag"
