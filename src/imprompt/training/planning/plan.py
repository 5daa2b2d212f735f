"""What a run will need, told before anything is rented: parameters, memory by part, arithmetic, speed and hours.

Nothing is estimated from tables of models: base, adapter and one step of the run are built and taken on the device that
has shapes and no memory. What is assumed is said: how well an accelerator is used, and what its libraries take.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from imprompt.adapter.adapter import Adapter
from imprompt.encoders.vision import VisionEncoder
from imprompt.training.adapters.initial import initial_adapter
from imprompt.training.adapters.inputs import CROP, FEATURES, AdapterBatch, References, Targets
from imprompt.training.adapters.stores import encoder_folder
from imprompt.training.adapters.task import AdapterTask, layer_of
from imprompt.training.bases import FrozenBase, base_of
from imprompt.training.config import TrainConfig
from imprompt.training.feedback.visitors import idle_parts
from imprompt.training.loop.order import BatchOrder
from imprompt.training.loop.task import Draw
from imprompt.training.objective.noise import DiscreteNoise, FlowNoise, noise_process
from imprompt.training.planning.skeleton import META, fused_attention, skeleton_encoder, skeleton_pipeline

GIB = 2**30
LIBRARIES = 0.6 * GIB
"""What CUDA's context and the libraries' workspaces take, roughly; nothing of it was measured here."""
FRAGMENTS = 0.1
"""Share of activations that an allocator loses between them, roughly."""


@dataclass(frozen=True)
class Accelerator:
    """An accelerator by its data sheet.

    Attributes:
        name: As people call it.
        teraflops: Dense half-precision arithmetic, in 1e12 operations a second.
        gibibytes: Memory.
    """

    name: str
    teraflops: int
    gibibytes: int


ACCELERATORS = (
    Accelerator("V100 32 GB", 125, 32),
    Accelerator("RTX 4090", 165, 24),
    Accelerator("A100 40 GB", 312, 40),
    Accelerator("A100 80 GB", 312, 80),
    Accelerator("H100 80 GB", 989, 80),
)
UTILISATION = (0.30, 0.45)
"""Between what trainers of diffusion models reach and what good ones do; see docs/guide/train.md."""


@dataclass(frozen=True)
class Part:
    """Something that takes memory.

    Attributes:
        name: In words.
        num_bytes: How much.
        is_estimate: Whether it was assumed and not counted.
    """

    name: str
    num_bytes: float
    is_estimate: bool = False


@dataclass(frozen=True)
class Measured:
    """One micro batch, forward and backward.

    Attributes:
        forward: Operations a sample.
        backward: Likewise.
        num_bytes: What is kept between the two.
        recomputed_bytes: The most that one layer keeps when it is recomputed; 0 where none is.
    """

    forward: float
    backward: float
    num_bytes: float
    recomputed_bytes: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will need.

    Attributes:
        recipe: Its name.
        parameters: Numbers of parameters by part.
        memory: What takes memory on each device.
        flops: Operations a sample, by part: of the denoiser forward and backward, and of what is not computed once.
        batch_size: Samples a step over all devices.
        micro_batch_size: Samples that a device takes at a time.
        num_steps: Steps of the run.
        num_devices: Devices it is planned for.
    """

    recipe: str
    parameters: dict[str, int]
    memory: tuple[Part, ...]
    flops: dict[str, float]
    batch_size: int
    micro_batch_size: int
    num_steps: int
    num_devices: int

    @property
    def num_bytes(self) -> float:
        """Peak memory of each device."""
        return float(sum(part.num_bytes for part in self.memory))

    @property
    def flops_per_step(self) -> float:
        """Operations of a step over all devices."""
        return self.batch_size * sum(self.flops.values())

    def images_per_second(self, accelerator: Accelerator, utilisation: float) -> float:
        """Samples a second of all devices, where each is used to that share of its data sheet."""
        return self.num_devices * accelerator.teraflops * 1e12 * utilisation / sum(self.flops.values())

    def hours(self, accelerator: Accelerator, utilisation: float) -> float:
        """Length of the run."""
        return self.num_steps * self.batch_size / self.images_per_second(accelerator, utilisation) / 3600

    def fits(self, accelerator: Accelerator) -> bool:
        """Whether the peak is below the memory."""
        return self.num_bytes <= accelerator.gibibytes * GIB


def plan(config: TrainConfig, num_devices: int = 1) -> Plan:
    """Plan a run; only configurations are read.

    Args:
        config: The run, as a recipe returns it; it needs no data yet.
        num_devices: Devices that share its batches.

    Raises:
        DownloadError: Base or encoder is neither here nor reachable.
        ImpromptError: The configuration fits no base.
    """
    share = math.ceil(config.loop.batch_size / num_devices)
    micro = min(config.loop.micro_batch_size or share, share)
    parts = _Parts(config)
    online = parts.online(micro)
    measured = parts.measure(micro)
    return Plan(
        recipe=config.recipe,
        parameters=parts.parameters(),
        memory=(*parts.weights(), *_activations(measured)),
        flops={"forward": measured.forward - sum(online.values()), "backward": measured.backward, **online},
        batch_size=config.loop.batch_size,
        micro_batch_size=micro,
        num_steps=config.loop.num_steps,
        num_devices=num_devices,
    )


def describe(plan: Plan) -> list[str]:
    """The plan in lines for a terminal."""
    lines = [f"{plan.recipe}: {plan.batch_size} samples a step, {plan.micro_batch_size} at a time on each device", ""]
    lines += [f"  {name:34s} {number / 1e6:10.1f} M parameters" for name, number in plan.parameters.items()]
    lines += ["", "memory of each device"]
    for part in plan.memory:
        lines.append(f"  {part.name:34s} {part.num_bytes / GIB:10.3f} GiB{' (assumed)' if part.is_estimate else ''}")
    lines += [f"  {'all':34s} {plan.num_bytes / GIB:10.3f} GiB", "", "arithmetic of a sample"]
    lines += [f"  {name:34s} {value / 1e9:10.1f} GFLOP" for name, value in plan.flops.items() if value]
    lines += [f"  {'a step':34s} {plan.flops_per_step / 1e12:10.2f} TFLOP", ""]
    low, high = UTILISATION
    lines.append(
        f"{plan.num_devices} device(s), used to {low:.0%} and {high:.0%} of the data sheet; {plan.num_steps:,} steps"
    )
    for accelerator in ACCELERATORS:
        rates = [plan.images_per_second(accelerator, share) for share in UTILISATION]
        hours = [plan.hours(accelerator, share) for share in UTILISATION]
        fits = "fits" if plan.fits(accelerator) else "does not fit"
        lines.append(
            f"  {accelerator.name:12s} {rates[0]:8.1f} to {rates[1]:8.1f} images/s, "
            f"{hours[0]:9.2f} to {hours[1]:9.2f} h, {fits}"
        )
    return lines


@dataclass(frozen=True)
class _PlannedInputs:
    """The same batch of shapes, whatever is drawn."""

    noise: DiscreteNoise | FlowNoise
    shapes: AdapterBatch
    texts: None = None

    def batch(self, draw: Draw) -> AdapterBatch:
        return self.shapes


class _Parts:
    """Everything of a run as shapes."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        plain = config.base.model_copy(update={"compile": False})
        self.base: FrozenBase = base_of(skeleton_pipeline(plain), plain, guidance=config.objective.guidance)
        self.encoder: VisionEncoder | None = None
        if config.adapter.kind != "faceid":
            self.encoder = skeleton_encoder(encoder_folder(config), getattr(torch, config.base.dtype))
        spec = None if self.encoder is None else self.encoder.spec
        with META:
            recipe = config.recipe.partition("-")[0]
            self.adapter: Adapter = initial_adapter(config.adapter, self.base.denoiser, spec, recipe).to(META)

    def parameters(self) -> dict[str, int]:
        """Numbers of parameters by part; the adapter's are trained."""
        frozen = {name: _count(part) for name, part in self._networks().items()}
        projector, sites = _count(self.adapter.image_proj), _count(self.adapter.ip_adapter)
        return {**frozen, "projector (trained)": projector, "keys and values (trained)": sites}

    def weights(self) -> Iterator[Part]:
        """Memory that does not depend on the batch."""
        for name, part in self._networks().items():
            yield Part(name, float(sum(weight.numel() * weight.element_size() for weight in part.parameters())))
        number = float(_count(self.adapter))
        yield Part("adapter", 4 * number)
        yield Part("its gradients", 4 * number)
        yield Part("Adam's moments", (2 if self.config.optimizer.name == "adamw8bit" else 8) * number)
        if self.config.optimizer.ema_decay:
            yield Part("averaged weights", 4 * number)
        if self.config.loop.autocast in ("auto", "bfloat16", "float16"):
            yield Part("the adapter in half precision", 2 * number)

    def measure(self, micro: int) -> Measured:
        """One step of a micro batch."""
        task, batch = self._task(micro), self._batch(micro)
        frozen = _storages(self.base.denoiser) | _storages(self.adapter)
        largest = 0.0
        with fused_attention(), task.attachment:
            if self.config.base.gradient_checkpointing:
                self.base.denoiser.disable_gradient_checkpointing()
                with _kept(frozen) as kept, _largest_of(_recomputed(self.base.denoiser), kept) as units:
                    task.row_losses(batch)
                largest = max(units, default=0.0)
                self.base.denoiser.enable_gradient_checkpointing()
            with FlopCounterMode(display=False) as forward, _kept(frozen) as kept:
                loss = task.row_losses(batch).mean()
            with FlopCounterMode(display=False) as backward:
                loss.backward()
        flops = forward.get_total_flops() / micro, backward.get_total_flops() / micro
        return Measured(*flops, num_bytes=float(sum(kept.values())), recomputed_bytes=float(largest))

    def online(self, micro: int) -> dict[str, float]:
        """Operations a sample of what is not computed once."""
        batch = self._batch(micro)
        parts: dict[str, Callable[[], Any]] = {}
        if batch.texts is None:
            parts["texts"] = lambda: self.base.encode_text(batch.captions)
        if (pixels := batch.targets.pixels) is not None:
            parts["latents"] = lambda: self.base.encode_latents(pixels.float())
        if self.encoder is not None:
            for name, shown in batch.references.pixels.items():
                parts[f"reference {name}"] = self._look(shown.flatten(0, 1), name)
        found = {}
        with fused_attention():
            for name, compute in parts.items():
                with FlopCounterMode(display=False) as counter:
                    compute()
                found[name] = counter.get_total_flops() / micro
        return found

    def _look(self, pixels: Tensor, name: str) -> Callable[[], Any]:
        encoder = self.encoder
        assert encoder is not None
        return lambda: encoder.encode_pixels(pixels, *layer_of(self.adapter.spec, name))

    def _networks(self) -> dict[str, nn.Module]:
        """What a step computes with, frozen; the rest waits elsewhere."""
        components, features = self.base.pipeline().components, self.config.features
        online = {"texts": features.text == "online", "latents": features.latents == "online"}
        idle = idle_parts(components, **online)
        models = {name: part for name, part in components.items() if isinstance(part, nn.Module)}
        found = {name.replace("_", " "): part for name, part in models.items() if name not in idle}
        if self.encoder is not None and self._references(1, 1).pixels:
            found["image encoder of references"] = self.encoder.model
        return found

    def _task(self, micro: int) -> AdapterTask:
        """The run's own task."""
        noise = noise_process(self.base.scheduler, self.config.objective)
        nulls = {name: torch.zeros(1, *shape, device=META) for name, shape in self._feature_shapes().items()}
        inputs = _PlannedInputs(noise, self._batch(micro))
        order = BatchOrder(1, 1, 0)
        return AdapterTask(self.adapter, self.base, inputs, order, num_examples=1, nulls=nulls, encoder=self.encoder)

    def _feature_shapes(self) -> dict[str, tuple[int, ...]]:
        spec = self.adapter.spec
        needs = {FEATURES: spec.features} | ({} if spec.face_crop is None else {CROP: spec.face_crop})
        length = 0 if self.encoder is None else self.encoder.spec.num_tokens
        return {name: (length, need.width) if need.is_sequence else (need.width,) for name, need in needs.items()}

    def _batch(self, micro: int) -> AdapterBatch:
        """A batch of the run's shapes."""
        data, features = self.config.data, self.config.features
        side = data.resolution // self.base.pixels_per_latent
        latents = torch.zeros(micro, self.base.latent_channels, side, side, device=META)
        is_cached = features.latents == "cached"
        pixels = None if is_cached else torch.zeros(micro, 3, data.resolution, data.resolution, device=META)
        places = torch.zeros(micro, dtype=torch.long, device=META)
        noise = noise_process(self.base.scheduler, self.config.objective)
        return AdapterBatch(
            targets=Targets(latents if is_cached else None, pixels, torch.zeros(micro, 6, device=META)),
            references=self._references(micro, data.num_references),
            captions=("a picture",) * micro,
            noise=latents,
            timesteps=places if not isinstance(noise, FlowNoise) else places.float(),
            no_image=torch.zeros(micro, dtype=torch.bool, device=META),
            no_text=(False,) * micro,
        )

    def _references(self, micro: int, count: int) -> References:
        present = torch.ones(micro, count, dtype=torch.bool, device=META)
        shapes = self._feature_shapes()
        online = set(shapes) if self.config.features.references == "online" else set()
        if self.adapter.spec.features.layer == "face_embeds":  # what finds faces does not train along
            online = set()
        kept = {name: torch.zeros(micro, count, *shapes[name], device=META) for name in shapes.keys() - online}
        side = 0 if self.encoder is None else self.encoder.preprocessing.crop_size
        shown = {name: torch.zeros(micro, count, 3, side, side, device=META) for name in online}
        return References(kept, shown, present)


def _activations(measured: Measured) -> Iterator[Part]:
    yield Part("what a micro batch keeps", measured.num_bytes)
    if measured.recomputed_bytes:
        yield Part("the largest recomputed layer", measured.recomputed_bytes)
    yield Part("lost between them", FRAGMENTS * (measured.num_bytes + measured.recomputed_bytes), is_estimate=True)
    yield Part("CUDA and its libraries", LIBRARIES, is_estimate=True)


@contextmanager
def _kept(frozen: set[int]) -> Iterator[dict[int, int]]:
    """Bytes of every storage that the backward pass waits for, parameters apart."""
    found: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no storage's number is given twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in frozen:
            found[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


@contextmanager
def _largest_of(units: list[nn.Module], kept: dict[int, int]) -> Iterator[list[float]]:
    """Bytes that each call of a layer adds to what is kept."""
    found: list[float] = []
    before: list[float] = []

    def enter(*_: Any) -> None:
        before.append(sum(kept.values()))

    def leave(*_: Any) -> None:
        found.append(sum(kept.values()) - before.pop())

    handles = [unit.register_forward_pre_hook(enter) for unit in units]
    handles += [unit.register_forward_hook(leave) for unit in units]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _recomputed(denoiser: nn.Module) -> list[nn.Module]:
    """Layers that gradient checkpointing recomputes: those in the lists of modules that know it."""
    owners = [module for module in denoiser.modules() if hasattr(module, "gradient_checkpointing")]
    lists = [part for owner in owners for part in owner.children() if isinstance(part, nn.ModuleList)]
    return [layer for part in lists for layer in part if not hasattr(layer, "gradient_checkpointing")]


def _storages(module: nn.Module) -> set[int]:
    return {parameter.untyped_storage()._cdata for parameter in module.parameters()}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
