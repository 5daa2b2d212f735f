"""CLIP vision towers: OpenAI's, OpenCLIP's, and every other in the layout of transformers."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from imprompt.core.errors import CheckpointError, EncoderMismatch, ImageError
from imprompt.core.images import Fit, image_hash
from imprompt.core.weights import resolve_folder
from imprompt.encoders.base import EncoderSpec, Layer
from imprompt.encoders.known import encoder_name
from imprompt.encoders.preprocess import Preprocessing, lost_by_crop, prepare_pixels

logger = logging.getLogger(__name__)

_MAX_BATCH = 32
_WORTH_REPORTING = 0.01
_NUM_SAMPLES = 256


class CLIPEncoder:
    """A frozen CLIP vision tower with the preprocessing it was trained with.

    Its dtype and place are the model's; a model that moves by itself (CPU offload) may be given as it is.
    """

    def __init__(self, model: CLIPVisionModelWithProjection, processor: Any = None) -> None:
        """Take a model as it stands.

        Args:
            model: The tower; it is put into evaluation mode.
            processor: A `Preprocessing`, or an image processor of transformers to read one from; None for OpenAI's. Its
                size gives way to the model's where they differ, since the model accepts no other.
        """
        self.model = model.eval()
        self.preprocessing = _preprocessing(processor, _config(model).image_size)
        self._spec: EncoderSpec | None = None
        self._reported: set[str] = set()

    @classmethod
    def from_folder(
        cls,
        repo_or_path: str | Path,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> "CLIPEncoder":
        """Load an encoder from a folder or the hub, with its `preprocessor_config.json` if there is one.

        Raises:
            DownloadError: It is neither here nor reachable.
            CheckpointError: It is here and holds no whole CLIP vision tower in safetensors.
        """
        folder = resolve_folder(
            repo_or_path, subfolder=subfolder, revision=revision, patterns=("*.json", "*.safetensors")
        )
        model = _load_model(folder, dtype).to(device)  # pyright: ignore[reportArgumentType]
        return cls(model, Preprocessing.from_folder(folder, image_size=_config(model).image_size))

    @property
    def spec(self) -> EncoderSpec:
        """What it is; the fingerprint is taken at the first call."""
        if self._spec is None:
            self._spec = _describe(self.model, self.preprocessing)
        return self._spec

    @property
    def device(self) -> torch.device:
        """Where its weights are, and its features will be."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image], *, layer: Layer, index: int = -2, fit: Fit = "crop") -> Tensor:
        """Turn RGB pictures into features; see `ImageEncoder.encode`.

        A picture that loses more than a hundredth to the crop is reported in the log, once.

        Raises:
            ImageError: There is no picture.
            EncoderMismatch: There is no such layer.
        """
        if not images:
            raise ImageError("There is no picture to encode; give at least one.")
        if fit == "crop" and self.preprocessing.shortest_edge:
            for image in images:
                self._report_crop(image)
        pixels = torch.stack([prepare_pixels(image, self.preprocessing, fit) for image in images])
        return torch.cat([self._features(part, layer, index) for part in pixels.split(_MAX_BATCH)])

    @torch.no_grad()
    def encode_null(self, *, layer: Layer, index: int = -2) -> Tensor:
        """Turn pixels that are zero after normalisation (CLIP's mean grey, not black) into features.

        Raises:
            EncoderMismatch: There is no such layer.
        """
        side = self.preprocessing.crop_size
        return self._features(torch.zeros(1, 3, side, side), layer, index)

    def __repr__(self) -> str:
        spec = self.spec
        return (
            f"CLIPEncoder({spec.name}: {spec.image_size} px, hidden {spec.width}, pooled {spec.projection_dim}, "
            f"{spec.num_layers} layers, {spec.num_tokens} tokens)"
        )

    def _features(self, pixels: Tensor, layer: Layer, index: int) -> Tensor:
        pixels = pixels.to(self.device, self.model.dtype)
        if layer == "image_embeds":
            return self.model(pixel_values=pixels).image_embeds
        if layer != "hidden_states":
            raise EncoderMismatch(f"layer must be 'image_embeds' or 'hidden_states'; got {layer!r}.")
        num_states = _config(self.model).num_hidden_layers + 1
        if not -num_states <= index < num_states:
            raise EncoderMismatch(
                f"{self.spec.name} has {num_states} hidden states (0 to {num_states - 1}, or -1 to -{num_states}); "
                f"got index {index}. The adapter was trained on a deeper encoder."
            )
        return self.model(pixel_values=pixels, output_hidden_states=True).hidden_states[index]

    def _report_crop(self, image: Image.Image) -> None:
        lost = lost_by_crop(image.size)
        if lost < _WORTH_REPORTING:
            return
        name = image_hash(image)
        if name in self._reported:
            return
        self._reported.add(name)
        where = "left and right" if image.width > image.height else "top and bottom"
        logger.warning(
            "a reference of %d x %d pixels is not square: %.0f %% of it, %s, is cut away; "
            "fit='pad' or fit='stretch' keeps it",
            image.width,
            image.height,
            100 * lost,
            where,
        )


def _preprocessing(processor: Any, image_size: int) -> Preprocessing:
    """Read how pictures are prepared, and at the size the model accepts."""
    if processor is None:
        return Preprocessing.openai(image_size)
    if not isinstance(processor, Preprocessing):
        processor = Preprocessing.from_config(processor.to_dict(), image_size=image_size)
    if processor.crop_size == image_size:
        return processor
    logger.info("the image processor makes %d pixels, the encoder reads %d", processor.crop_size, image_size)
    return replace(processor, crop_size=image_size, shortest_edge=image_size if processor.shortest_edge else 0)


def _load_model(folder: Path, dtype: torch.dtype) -> CLIPVisionModelWithProjection:
    try:
        loaded: Any = CLIPVisionModelWithProjection.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # transformers raises whatever its parsers do: OSError, ValueError, SafetensorError, ...
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"'{folder}' holds no CLIP vision encoder that can be read ({reason}); it needs config.json and "
            "model.safetensors."
        ) from error
    model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise CheckpointError(
            f"The image encoder in '{folder}' lacks {len(missing)} tensors, as '{missing[0]}'; take a "
            "CLIPVisionModelWithProjection."
        )
    return model


def _config(model: CLIPVisionModelWithProjection) -> Any:
    """The model's configuration, whose sizes transformers declares more widely than CLIP has them."""
    return model.config


def _describe(model: CLIPVisionModelWithProjection, preprocessing: Preprocessing) -> EncoderSpec:
    config = _config(model)
    sizes = {"width": config.hidden_size, "projection_dim": config.projection_dim}
    name = encoder_name(**sizes, image_size=config.image_size)
    return EncoderSpec(
        name=name or f"CLIP vision {config.hidden_size}/{config.projection_dim}",
        kind="clip",
        image_size=config.image_size,
        num_layers=config.num_hidden_layers,
        num_tokens=(config.image_size // config.patch_size) ** 2 + 1,
        fingerprint=_fingerprint(model, preprocessing),
        **sizes,
    )


def _fingerprint(model: CLIPVisionModelWithProjection, preprocessing: Preprocessing) -> str:
    """Hash preprocessing, activation and, of every tensor, name, shape, dtype and some values spread over it.

    A tower has up to 3.7 GB; samples tell trainings apart as well as all values would, in milliseconds.
    """
    tensors = model.state_dict()
    if any(tensor.is_meta for tensor in tensors.values()):
        return f"unknown-{uuid4().hex}"  # weights that live elsewhere: shared with nobody, so never mistaken
    config = _config(model)
    digest = hashlib.sha256(f"{preprocessing.to_json()}:{config.hidden_act}:{config.num_attention_heads}".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}:".encode())
        values = tensor.detach().flatten()
        digest.update(values[:: max(1, values.numel() // _NUM_SAMPLES)].float().cpu().numpy().tobytes())
    return digest.hexdigest()
