"""Vision towers: CLIP's, SigLIP's, DINO's, and every other that a row of `encoders.kinds` describes."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from imprompt.core.errors import CheckpointError, EncoderMismatch, ImageError, first_line
from imprompt.core.images import Fit, image_hash
from imprompt.core.weights import resolve_folder
from imprompt.encoders.base import EncoderSpec, Layer
from imprompt.encoders.fingerprint import hash_weights
from imprompt.encoders.kinds import KINDS, TowerKind, kind_of_model, kind_of_type
from imprompt.encoders.known import encoder_at, encoder_name
from imprompt.encoders.preprocess import Preprocessing, lost_by_crop, prepare_pixels

logger = logging.getLogger(__name__)

# What an encoder is made of; repositories hold the same weights in other formats, and other models beside them.
FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
)

_MAX_BATCH = 32
_WORTH_REPORTING = 0.01


class VisionEncoder:
    """A frozen vision tower, of any kind in `encoders.kinds`, with the preprocessing it was trained with.

    Its dtype and place are the model's; a model that moves by itself (CPU offload) may be given as it is.
    """

    def __init__(self, model: nn.Module, processor: Any = None, *, name: str | None = None) -> None:
        """Take a model as it stands.

        Args:
            model: The tower; it is put into evaluation mode.
            processor: A `Preprocessing`, or an image processor of transformers to read one from; None for that of its
                kind. Its size gives way to the model's where they differ and the model accepts no other.
            name: What people call it; by default the published encoder of its sizes.

        Raises:
            EncoderMismatch: The model is of no kind that imprompt knows.
        """
        self.kind = _kind(model)
        self.model: Any = model.eval()  # its configuration and outputs are typed more widely than a kind has them
        self.preprocessing = _preprocessing(processor, self.kind, self.model.config)
        self._name = name
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
    ) -> "VisionEncoder":
        """Load an encoder from a folder or the hub: its `config.json` says of which kind it is.

        A folder of a whole model (CLIP, SigLIP) will do; its vision half is taken.

        Raises:
            DownloadError: It is neither here nor reachable.
            CheckpointError: It is here and holds no whole vision tower in safetensors.
        """
        folder = resolve_folder(repo_or_path, subfolder=subfolder, revision=revision, patterns=FILES)
        kind = _kind_of_folder(folder)
        model = _load_model(folder, kind, dtype).to(device)
        known = encoder_at("/".join(str(part) for part in (repo_or_path, subfolder) if part))
        preprocessing = Preprocessing.from_folder(folder, default=kind.preprocessing_of(model.config))
        return cls(model, preprocessing, name=None if known is None else known.name)

    @property
    def spec(self) -> EncoderSpec:
        """What it is; the fingerprint is taken at the first call."""
        if self._spec is None:
            self._spec = _describe(self.model, self.kind, self.preprocessing, self._name)
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
        return torch.cat([self.encode_pixels(part, layer, index) for part in pixels.split(_MAX_BATCH)])

    @torch.no_grad()
    def encode_null(self, *, layer: Layer, index: int = -2) -> Tensor:
        """Turn pixels that are zero after normalisation (the mean colour, not black) into features.

        Raises:
            EncoderMismatch: There is no such layer.
        """
        side = self.preprocessing.crop_size
        return self.encode_pixels(torch.zeros(1, 3, side, side), layer, index)

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor, layer: Layer, index: int = -2) -> Tensor:
        """Turn pixels `[batch, 3, height, width]`, as `prepare_pixels` makes them, into features.

        Raises:
            EncoderMismatch: There is no such layer.
        """
        pixels = pixels.to(self.device, self.model.dtype)
        if layer == "image_embeds":
            pooled = getattr(self.model(pixel_values=pixels), self.kind.pooled)
            if pooled is None:
                raise EncoderMismatch(f"{self.spec.name} was saved without its pooling head; take one that has it.")
            return pooled
        if layer != "hidden_states":
            raise EncoderMismatch(f"layer must be 'image_embeds' or 'hidden_states'; got {layer!r}.")
        num_states = self.model.config.num_hidden_layers + 1
        if not -num_states <= index < num_states:
            raise EncoderMismatch(
                f"{self.spec.name} has {num_states} hidden states (0 to {num_states - 1}, or -1 to -{num_states}); "
                f"got index {index}. The adapter was trained on a deeper encoder."
            )
        return self.model(pixel_values=pixels, output_hidden_states=True).hidden_states[index]

    def __repr__(self) -> str:
        spec = self.spec
        return (
            f"VisionEncoder({spec.name}: {spec.image_size} px, hidden {spec.width}, pooled {spec.projection_dim}, "
            f"{spec.num_layers} layers, {spec.num_tokens} tokens)"
        )

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


def _kind(model: nn.Module) -> TowerKind:
    kind = kind_of_model(model)
    if kind is None:
        raise EncoderMismatch(
            f"{type(model).__name__} is no vision tower that imprompt knows; take one of "
            f"{', '.join(kind.model_class for kind in KINDS)}."
        )
    return kind


def _preprocessing(processor: Any, kind: TowerKind, config: Any) -> Preprocessing:
    """Read how pictures are prepared, and at a size that the model accepts."""
    default = kind.preprocessing_of(config)
    if processor is None:
        return default
    if not isinstance(processor, Preprocessing):
        processor = Preprocessing.from_config(processor.to_dict(), default=default)
    if not kind.has_own_size or processor.crop_size == default.crop_size:
        return processor
    logger.info("the image processor makes %d pixels, the encoder reads %d", processor.crop_size, default.crop_size)
    return processor.at(default.crop_size)


def _kind_of_folder(folder: Path) -> TowerKind:
    """Tell what a folder holds by its `config.json`, before anything is loaded."""
    path = folder / "config.json"
    known = ", ".join(kind.model_types[0] for kind in KINDS)
    try:
        model_type = str(json.loads(path.read_text())["model_type"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"'{folder}' holds no vision encoder that can be read: it needs a config.json that says its model_type "
            f"(one of {known}), and model.safetensors."
        ) from error
    kind = kind_of_type(model_type)
    if kind is None:
        raise CheckpointError(f"'{folder}' holds a {model_type!r}; a vision encoder is one of {known}.")
    return kind


def _load_model(folder: Path, kind: TowerKind, dtype: torch.dtype) -> Any:
    """Load a tower by its own class: no code comes with a folder, and no pickle is opened."""
    model_class = getattr(transformers, kind.model_class)
    try:
        model, missing = load_half(folder, model_class, dtype)
    except Exception as error:  # transformers raises whatever its parsers do: OSError, ValueError, SafetensorError, ...
        raise CheckpointError(
            f"'{folder}' holds no {kind.title} vision encoder that can be read ({first_line(error)}); it needs "
            "config.json and model.safetensors."
        ) from error
    if missing:
        raise CheckpointError(
            f"The image encoder in '{folder}' lacks {len(missing)} tensors, as '{missing[0]}'; take a whole "
            f"{kind.model_class}."
        )
    return model


def load_half(folder: Path, model_class: Any, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """One half of a model from a folder of it or of the whole, and the names of tensors that the folder lacks."""
    config = half_config(folder, model_class.config_class)
    model, report = model_class.from_pretrained(
        folder, config=config, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    return model, sorted(report["missing_keys"])


def half_config(folder: Path, config_class: Any) -> Any:
    """Configuration of one half of a model. Where the folder holds the whole, the whole's projection width counts:
    what its halves say of it is a default that nobody read.
    """
    config = config_class.from_pretrained(folder, local_files_only=True)
    width = json.loads((folder / "config.json").read_text()).get("projection_dim")
    if width is not None and hasattr(config, "projection_dim"):
        config.projection_dim = width
    return config


def _describe(model: Any, kind: TowerKind, preprocessing: Preprocessing, name: str | None) -> EncoderSpec:
    config, side = model.config, preprocessing.crop_size
    sizes = {"width": config.hidden_size, "projection_dim": kind.pooled_width(config)}
    return EncoderSpec(
        name=name
        or encoder_name(kind.name, **sizes, image_size=side if kind.has_own_size else None)
        or f"{kind.title} vision {sizes['width']}/{sizes['projection_dim']}",
        kind=kind.name,
        image_size=side,
        num_layers=config.num_hidden_layers,
        num_tokens=kind.num_tokens(config, side),
        fingerprint=_fingerprint(model, kind, preprocessing),
        **sizes,
    )


def _fingerprint(model: Any, kind: TowerKind, preprocessing: Preprocessing) -> str:
    """Hash kind, preprocessing, activation and, of every tensor, name, shape, dtype and some values spread over it.

    A tower has up to 3.7 GB; samples tell trainings apart as well as all values would, in milliseconds.
    """
    tensors = model.state_dict()
    if any(tensor.is_meta for tensor in tensors.values()):
        return f"unknown-{uuid4().hex}"  # weights that live elsewhere: shared with nobody, so never mistaken
    activation, heads = model.config.hidden_act, model.config.num_attention_heads
    digest = hashlib.sha256(f"{kind.name}:{preprocessing.to_json()}:{activation}:{heads}".encode())
    hash_weights(digest.update, sorted(tensors.items()))
    return digest.hexdigest()
