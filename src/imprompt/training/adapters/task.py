"""Training an image prompt adapter on a frozen base: the paper's objective, for every family and kind of adapter."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from PIL import Image
from torch import Tensor

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.attach import attach
from imprompt.adapter.checkpoint import load_adapter, save_adapter
from imprompt.adapter.conditioning import Branch, Conditioning
from imprompt.adapter.spec import AdapterSpec, NullImage
from imprompt.core.errors import CheckpointError, EncoderMismatch
from imprompt.encoders.base import Layer
from imprompt.encoders.vision import VisionEncoder
from imprompt.training.adapters.inputs import CROP, FEATURES, AdapterBatch
from imprompt.training.bases import FrozenBase, Texts
from imprompt.training.features.store import FeatureStore
from imprompt.training.feedback.feedback import Feedback
from imprompt.training.loop.order import BatchOrder
from imprompt.training.loop.task import Draw
from imprompt.training.objective.noise import NoiseProcess
from imprompt.training.objective.objective import row_errors

Nulls = Mapping[str, Float[Tensor, "1 *length width"]]


@runtime_checkable
class Inputs(Protocol):
    """What makes batches; see `AdapterInputs`."""

    @property
    def noise(self) -> NoiseProcess:
        """Noise of the base."""
        ...

    @property
    def texts(self) -> FeatureStore | None:
        """What the base reads of captions, where that was computed once."""
        ...

    def batch(self, draw: Draw) -> AdapterBatch:
        """Rows of one step."""
        ...


class AdapterTask:
    """Noisy latents, captions and references; see `imprompt.training.loop.task.Task`.

    Attributes:
        model: The adapter, in single precision.
        base: What it is attached to, frozen.
        inputs: What makes batches, in whichever process.
        num_examples: Samples of an epoch.
        order: Which samples each step takes.
        attachment: The bond between the two.
        feedback: What is measured and drawn between steps; None for nothing.
    """

    feedback: Feedback | None = None

    def __init__(
        self,
        adapter: Adapter,
        base: FrozenBase,
        inputs: Inputs,
        order: BatchOrder,
        *,
        num_examples: int,
        nulls: Nulls,
        encoder: VisionEncoder | None = None,
    ) -> None:
        """Attach the adapter to the base.

        Args:
            adapter: What is trained.
            base: What it is trained on.
            inputs: What makes batches.
            order: Which samples each step takes.
            num_examples: Samples of an epoch.
            nulls: What stands for no image, as `null_features` makes it.
            encoder: What makes features of references that come as pixels.

        Raises:
            HostMismatch: The adapter is for another base.
        """
        self.model = adapter
        self.base = base
        self.inputs = inputs
        self.batch = inputs.batch  # of the inputs alone, so that a process that reads ahead gets no model
        self.order = order
        self.num_examples = num_examples
        self.encoder = encoder
        self.attachment = attach(base.denoiser, adapter)
        self._nulls = dict(nulls)

    @property
    def noise(self) -> NoiseProcess:
        """Noise of the base."""
        return self.inputs.noise

    def loss(self, batch: AdapterBatch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Weighted squared error of what the denoiser predicts; the plain one for the log."""
        errors = self.row_losses(batch)
        weights = self.noise.weights(batch.timesteps).to(errors.device)
        return (errors * weights).mean(), {"error": errors.detach().mean()}

    def row_losses(self, batch: AdapterBatch) -> Float[Tensor, " rows"]:
        """Mean squared error of each row, not weighted by timestep."""
        clean = self._clean(batch)
        text = self._texts(batch)
        self.attachment.set(self._conditioning(batch))
        noisy = self.noise.add(clean, batch.noise, batch.timesteps)
        target = self.noise.target(clean, batch.noise, batch.timesteps)
        with self._base_precision(noisy.device):
            predicted = self.base.predict(noisy, batch.timesteps, text, batch.targets.sizes)
        return row_errors(predicted, target)

    def without_dropout(self, batch: AdapterBatch) -> AdapterBatch:
        """Every image and every text as they are."""
        return batch.without_dropout()

    def with_timesteps(self, batch: AdapterBatch, timesteps: Shaped[Tensor, " rows"]) -> AdapterBatch:
        """The batch at other timesteps, with the same noise."""
        return replace(batch, timesteps=timesteps)

    def with_references(self, batch: AdapterBatch, permutation: Int[Tensor, " rows"]) -> AdapterBatch:
        """Row i with the references of row `permutation[i]`."""
        return batch.with_references(permutation)

    def preview(self, step: int) -> Mapping[str, float] | None:
        """Whatever feedback is due; see `imprompt.training.feedback.feedback`."""
        return None if self.feedback is None else self.feedback.after(step)

    def export(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write the adapter in the official layout, and read it back; see `imprompt.training.loop.task.Exports`.

        Raises:
            CheckpointError: What was read is not what was written.
        """
        spec = self.model.spec
        with torch.device("meta"):
            adapter = Adapter(spec)
        adapter.load_state_dict({name: value.detach().cpu() for name, value in weights.items()}, assign=True)
        path = save_adapter(adapter, folder / f"{file_name(spec)}.safetensors")
        found = load_adapter(path)
        read = found.state_dict()
        wrong = [name for name, value in adapter.state_dict().items() if not torch.equal(value, read[name])]
        if found.spec != spec or wrong:
            raise CheckpointError(
                f"'{path}' does not hold what was written ({wrong[0] if wrong else 'its spec'} differs); check the disk"
            )

    def _clean(self, batch: AdapterBatch) -> Float[Tensor, "rows channels height width"]:
        targets = batch.targets
        if targets.latents is not None:
            return targets.latents
        assert targets.pixels is not None
        return self.base.encode_latents(targets.pixels.float() / 127.5 - 1.0)

    def _texts(self, batch: AdapterBatch) -> Texts:
        if batch.texts is not None:
            return self._kept_texts(batch.texts, batch.no_text)
        pairs = zip(batch.captions, batch.no_text, strict=True)
        with self._base_precision(batch.noise.device):
            return self.base.encode_text(["" if is_dropped else text for text, is_dropped in pairs])

    def _kept_texts(self, texts: Mapping[str, Tensor], no_text: Sequence[bool]) -> Texts:
        """Text states that were computed once, those of the empty text where the caption is dropped."""
        assert self.inputs.texts is not None
        device = next(iter(texts.values())).device
        dropped = torch.tensor(no_text, device=device)
        null = {name: value.to(device) for name, value in self.inputs.texts.null_columns.items()}
        rows = {
            name: torch.where(dropped.view(-1, *(1,) * (value.ndim - 1)), null[name], value)
            for name, value in texts.items()
        }
        return null | rows

    def _conditioning(self, batch: AdapterBatch) -> Conditioning:
        """Image tokens of all references of each row, one after the other, in one softmax."""
        present = batch.references.present
        rows, count = present.shape
        features = {name: self._features(name, batch) for name in self._nulls}
        tokens = self.model.project(features[FEATURES], crop=features.get(CROP))
        tokens = tokens.unflatten(0, (rows, count)).flatten(1, 2)
        mask = None if count == 1 else present.repeat_interleave(tokens.shape[1] // count, dim=1)
        scale = torch.ones(1, len(self.attachment.sites), rows)  # on the CPU, where looking at it makes nobody wait
        branch = Branch(tokens=tokens, null_tokens=None, scale=scale, token_mask=mask)
        return Conditioning(branches=(branch,), rows=rows)

    def _features(self, name: str, batch: AdapterBatch) -> Float[Tensor, "row_references *length width"]:
        """Features of all references, those of no image where it is dropped."""
        kept = batch.references.features.get(name)
        values = (self._encoded(name, batch) if kept is None else kept).float()
        null = self._nulls[name].to(values)
        dropped = batch.no_image.view(-1, *(1,) * (values.ndim - 1))
        return torch.where(dropped, null[:, None], values).flatten(0, 1)

    @torch.no_grad()
    def _encoded(self, name: str, batch: AdapterBatch) -> Float[Tensor, "rows references *length width"]:
        assert self.encoder is not None
        pixels = batch.references.pixels[name]
        with self._base_precision(pixels.device):
            features = self.encoder.encode_pixels(pixels.flatten(0, 1), *layer_of(self.model.spec, name))
        return features.unflatten(0, pixels.shape[:2])

    def _base_precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """Frozen half precision computes as it is: autocast would only keep copies of what is in its format already."""
        if self.base.dtype == torch.float32 or not torch.amp.is_autocast_available(device.type):
            return nullcontext()
        return torch.autocast(device.type, enabled=False)


def layer_of(spec: AdapterSpec, name: str) -> tuple[Layer, int]:
    """Layer, and which hidden state, of what an adapter reads under a name."""
    need = spec.face_crop if name == CROP else spec.features
    assert need is not None
    layer: Any = need.layer
    return layer, -2 if need.index is None else need.index


def null_features(spec: AdapterSpec, encoder: VisionEncoder | None) -> Nulls:
    """What stands for no image, by what the adapter reads.

    Args:
        spec: The adapter; its null image is part of it.
        encoder: What makes features of zero pixels; not needed where zero features stand for no image.

    Raises:
        EncoderMismatch: It is needed, and there is none.
    """
    rules: dict[str, NullImage] = {FEATURES: spec.null_image}
    if spec.face_crop is not None:
        rules[CROP] = spec.null_crop
    return {name: _null(spec, name, rule, encoder) for name, rule in rules.items()}


def _null(spec: AdapterSpec, name: str, rule: NullImage, encoder: VisionEncoder | None) -> Tensor:
    if name == FEATURES and not spec.features.is_sequence and rule != "zero_pixels":
        return torch.zeros(1, spec.features.width)
    if encoder is None:
        raise EncoderMismatch(
            f"'{spec.name}' wants {spec.features.encoder} for its null image, and there is no encoder"
        )
    layer, index = layer_of(spec, name)
    null = encoder.encode_null(layer=layer, index=index)
    if rule == "black_pixels":
        null = encoder.encode([Image.new("RGB", (64, 64))], layer=layer, index=index)
    return (torch.zeros_like(null) if rule in ("zero_features", "none") else null).float().cpu()


def file_name(spec: AdapterSpec) -> str:
    """Name of an adapter's file."""
    return spec.name.replace("/", "-")
