"""What does an image prompt cost a step? Stock diffusers, its own IP-Adapter and imprompt, side by side in one run.

Prints three tables for Stable Diffusion 1.5's true shapes (random weights, batch 2 as under guidance, 77 text tokens):

1. floating point operations and kernels of one step, which are exact and the same on every machine;
2. thread time of the 16 cross-attention layers;
3. wall time of the whole UNet.

Times are interleaved, one thread, and mean something only as ratios of one run.

    python benchmarks/free_adapter.py                 # all three
    python benchmarks/free_adapter.py --only counts   # seconds
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from imprompt.adapter.adapter import Adapter, new_adapter
from imprompt.adapter.attach import attach
from imprompt.adapter.conditioning import Branch, Conditioning
from imprompt.adapter.spec import FeatureSpec, LinearSpec, ResamplerSpec

SD15: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
TEXT_TOKENS, BATCH = 77, 2
VIEWS = {"aten.view", "aten._unsafe_view", "aten.transpose", "aten.permute", "aten.t", "aten.expand", "aten.detach"}
VIEWS |= {"aten.unsqueeze", "aten.squeeze", "aten.slice", "aten.select", "aten.split", "aten.chunk", "aten.alias"}
VIEWS |= {"aten.unbind", "aten.split_with_sizes", "aten.as_strided", "aten.reshape", "aten._reshape_alias"}


@dataclass(frozen=True)
class Variant:
    """One way of taking a step: `start` attaches what it needs and returns the step and how to take it off again."""

    name: str
    start: Callable[[UNet2DConditionModel, Tensor], tuple[Callable[[Tensor], Tensor], Callable[[], None]]]


class KernelCounter(TorchDispatchMode):
    """Counts operator calls that are no views: on an accelerator, kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += str(func).rsplit(".", 1)[0] not in VIEWS
        return func(*args, **(kwargs or {}))


def make_adapter(unet: UNet2DConditionModel, kind: str) -> Adapter:
    """A random adapter of the published shape, on the UNet's device."""
    pooled = kind == "global"
    projector = (
        LinearSpec(feature_width=1024, num_tokens=4, width=768)
        if pooled
        else ResamplerSpec(
            feature_width=1280, inner_width=768, depth=4, num_heads=12, head_width=64, num_tokens=16, width=768
        )
    )
    features = FeatureSpec(
        layer="image_embeds" if pooled else "hidden_states",
        index=None if pooled else -2,
        width=projector.feature_width,
        encoder="OpenCLIP ViT-H/14",
    )
    null_image = "zero_features" if pooled else "zero_pixels"
    with torch.device(unet.device):
        adapter = new_adapter(unet, projector, features, null_image=null_image, name=kind)
    return adapter.eval().requires_grad_(False)


def features_of(adapter: Adapter) -> Tensor:
    """Random features of one image."""
    width, device = adapter.spec.features.width, adapter.device
    shape = (1, width) if adapter.spec.features.layer == "image_embeds" else (1, 257, width)
    return torch.linspace(-2, 2, shape[-1], device=device).expand(shape)


def stock(unet: UNet2DConditionModel, text: Tensor) -> Any:
    """No adapter."""
    return lambda latent: unet(latent, 10, encoder_hidden_states=text).sample, lambda: None


def diffusers_adapter(adapter: Adapter) -> Callable[..., Any]:
    """Diffusers' own IP-Adapter with the same weights."""

    def start(unet: UNet2DConditionModel, text: Tensor) -> Any:
        processors = dict(unet.attn_processors)
        halves: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
        for key, value in adapter.state_dict().items():
            section, name = key.split(".", 1)
            halves[section][name] = value
        with torch.device(unet.device):
            unet._load_ip_adapter_weights([halves], low_cpu_mem_usage=False)
        features = features_of(adapter)
        embeds = [torch.cat([torch.zeros_like(features), features])[:, None]]

        def step(latent: Tensor) -> Tensor:
            return unet(latent, 10, encoder_hidden_states=text, added_cond_kwargs={"image_embeds": embeds}).sample

        def stop() -> None:
            unet.encoder_hid_proj = None
            unet.register_to_config(encoder_hid_dim_type=None)
            unet.set_attn_processor(processors)

        return step, stop

    return start


def imprompt_adapter(adapter: Adapter | None) -> Callable[..., Any]:
    """This library, attached to what stands for a pipeline in the middle of a run."""

    def start(unet: UNet2DConditionModel, text: Tensor) -> Any:
        scheduler = SimpleNamespace(timesteps=torch.arange(990, 0, -20))
        pipe = SimpleNamespace(unet=unet, scheduler=scheduler, do_classifier_free_guidance=True)
        attachment = attach(pipe, *([] if adapter is None else [adapter]))
        if adapter is not None:
            features = features_of(adapter)
            branch = Branch(
                tokens=adapter.project(features),
                null_tokens=adapter.project(torch.zeros_like(features)),
                scale=torch.ones(1, len(attachment.sites), 1),
            )
            attachment.set(Conditioning(branches=(branch,), rows=1))
        return lambda latent: unet(latent, 10, encoder_hidden_states=text).sample, attachment.detach

    return start


def variants(unet: UNet2DConditionModel) -> list[Variant]:
    """Everything that is compared, the baseline first."""
    rows = [Variant("stock diffusers, no adapter", stock)]
    for kind in ("global", "plus"):
        adapter = make_adapter(unet, kind)
        rows.append(Variant(f"diffusers IP-Adapter, {kind}", diffusers_adapter(adapter)))
        rows.append(Variant(f"imprompt, {kind}", imprompt_adapter(adapter)))
    return rows


@torch.no_grad()
def measure_counts(size: int) -> None:
    """Table 1: exact counts of one step, after the first (which fills caches)."""
    flops, kernels = {}, {}
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15).eval()
    for variant, latent, text in _with_inputs(unet, size, "meta"):
        step, stop = variant.start(unet, text)
        step(latent)
        with FlopCounterMode(display=False) as counter:
            step(latent)
        flops[variant.name] = counter.get_total_flops()
        stop()
    narrow = UNet2DConditionModel(**{**SD15, "block_out_channels": (32, 64, 64, 64)}).eval()
    for variant, latent, text in _with_inputs(narrow, 64, "cpu"):
        step, stop = variant.start(narrow, text)
        step(latent)
        with KernelCounter() as counter:
            step(latent)
        kernels[variant.name] = counter.count
        stop()
    print(f"\n### One step, exact (SD1.5 at {size} pixels)\n")
    print("| | GFLOP | ratio | kernels | ratio |\n|---|---|---|---|---|")
    first_flops, first_kernels = next(iter(flops.values())), next(iter(kernels.values()))
    for name in flops:
        print(
            f"| {name} | {flops[name] / 1e9:.1f} | {flops[name] / first_flops:.4f} "
            f"| {kernels[name]} | {kernels[name] / first_kernels:.3f} |"
        )


@torch.no_grad()
def measure_layers(size: int, repeats: int) -> None:
    """Table 2: CPU time of this thread in the 16 cross-attentions, hooks and processors included."""
    unet = UNet2DConditionModel(**SD15).eval()
    seconds: dict[str, list[float]] = {}
    compared = _with_inputs(unet, size, "cpu")
    for _ in range(repeats):
        for variant, latent, text in compared:
            step, stop = variant.start(unet, text)
            step(latent)
            seconds.setdefault(variant.name, []).append(_time_layers(unet, step, latent))
            stop()
    _print_times(f"Thread time of the 16 cross-attentions (SD1.5 at {size} pixels)", seconds)


def _time_layers(unet: UNet2DConditionModel, step: Callable[[Tensor], Tensor], latent: Tensor) -> float:
    total, began = 0.0, 0.0

    def before(*_: Any) -> None:
        nonlocal began
        began = time.thread_time()

    def after(*_: Any) -> None:
        nonlocal total
        total += time.thread_time() - began

    modules = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    modules += [module for name, module in unet.named_modules() if name == "encoder_hid_proj"]
    hooks = [hook for m in modules for hook in (m.register_forward_pre_hook(before), m.register_forward_hook(after))]
    step(latent)
    for hook in hooks:
        hook.remove()
    return total


@torch.no_grad()
def measure_unet(size: int, repeats: int) -> None:
    """Table 3: wall time of the whole UNet, and whether the output is the same to the last bit where it must be."""
    unet = UNet2DConditionModel(**SD15).eval()
    seconds: dict[str, list[float]] = {}
    compared = _with_inputs(unet, size, "cpu")
    for _ in range(repeats):
        for variant, latent, text in compared:
            step, stop = variant.start(unet, text)
            step(latent)
            began = time.perf_counter()
            step(latent)
            seconds.setdefault(variant.name, []).append(time.perf_counter() - began)
            stop()
    _print_times(f"Whole UNet (SD1.5 at {size} pixels)", seconds)
    latent, text = _inputs(size, "cpu")
    plain = stock(unet, text)[0](latent)
    step, stop = imprompt_adapter(None)(unet, text)
    same = torch.equal(plain, step(latent)) and torch.equal(plain, step(latent))
    stop()
    print(f"\nAttached without a prompt, the output equals stock diffusers' bit for bit: {same}")


def _inputs(size: int, device: str) -> tuple[Tensor, Tensor]:
    with torch.device(device):
        torch.manual_seed(0)
        return torch.randn(BATCH, 4, size // 8, size // 8), torch.randn(BATCH, TEXT_TOKENS, 768)


def _with_inputs(unet: UNet2DConditionModel, size: int, device: str) -> Any:
    latent, text = _inputs(size, device)
    return [(variant, latent, text) for variant in variants(unet)]


def _print_times(title: str, seconds: dict[str, list[float]]) -> None:
    baseline = next(iter(seconds.values()))
    print(f"\n### {title}\n\n| | median ratio to stock | lowest | highest | median ms |\n|---|---|---|---|---|")
    for name, values in seconds.items():
        ratios = [value / base for value, base in zip(values, baseline, strict=True)]
        print(
            f"| {name} | {statistics.median(ratios):.3f} | {min(ratios):.3f} | {max(ratios):.3f} "
            f"| {statistics.median(values) * 1e3:.0f} |"
        )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("counts", "layers", "unet"), help="one table alone")
    parser.add_argument("--size", type=int, default=256, help="picture size for the timed tables, in pixels")
    parser.add_argument("--repeats", type=int, default=9, help="interleaved rounds for the timed tables")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.only in (None, "counts"):
        measure_counts(512)
    if arguments.only in (None, "layers"):
        measure_layers(arguments.size, arguments.repeats)
    if arguments.only in (None, "unet"):
        measure_unet(arguments.size, arguments.repeats)


if __name__ == "__main__":
    main()
