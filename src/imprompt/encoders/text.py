"""Text towers of CLIP with their projection: texts in the space in which the same CLIP's pictures are."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn

from imprompt.core.errors import CheckpointError, EncoderMismatch, first_line
from imprompt.core.weights import resolve_folder
from imprompt.encoders.base import EncoderSpec
from imprompt.encoders.fingerprint import hash_weights
from imprompt.encoders.vision import load_half

FILES = (
    "config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
)

# Width and depth of the text towers that belong to published vision towers.
_TEXT_HALVES: dict[str, tuple[int, int]] = {
    "OpenCLIP ViT-H/14": (1024, 24),
    "OpenCLIP ViT-bigG/14": (1280, 32),
    "CLIP ViT-L/14": (768, 12),
    "CLIP ViT-L/14-336": (768, 12),
}


@dataclass(frozen=True)
class TextSpec:
    """What a text tower is.

    Attributes:
        name: what people call it.
        width: width of its hidden layers.
        num_layers: how many transformer blocks it has.
        projection_dim: width of the space that it shares with pictures.
        fingerprint: hash of its weights.
    """

    name: str
    width: int
    num_layers: int
    projection_dim: int
    fingerprint: str


class TextEncoder:
    """A frozen text tower with its projection. Its dtype and place are the model's."""

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, name: str | None = None, vision_fingerprint: str | None = None
    ) -> None:
        """Take a model as it stands.

        Args:
            model: a `CLIPTextModelWithProjection`; it is put into evaluation mode.
            tokenizer: what belongs to it.
            name: what people call it; by default its class and widths.
            vision_fingerprint: the fingerprint of the vision tower that it was trained with, where that is known:
                others are refused then, whatever their widths.

        Raises:
            EncoderMismatch: the model has no projection.
        """
        if not has_projection(model):
            raise EncoderMismatch(
                f"{type(model).__name__} has no projection to the space of pictures; take a CLIPTextModelWithProjection"
            )
        self.model: Any = model.eval()
        self.tokenizer = tokenizer
        self.vision_fingerprint = vision_fingerprint
        self._name = name
        self._spec: TextSpec | None = None

    @classmethod
    def from_folder(
        cls, repo_or_path: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> "TextEncoder":
        """Load one from a folder or the hub: that of a whole CLIP, or a text tower's beside its tokenizer.

        Raises:
            DownloadError: it is neither here nor reachable.
            CheckpointError: it is here and holds no text tower with a projection, or no tokenizer.
        """
        folder = resolve_folder(repo_or_path, patterns=FILES)
        try:
            model, missing = load_half(folder, transformers.CLIPTextModelWithProjection, dtype)
            tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers raises whatever its parsers do
            raise CheckpointError(
                f"'{folder}' holds no CLIP text tower that can be read ({first_line(error)}); it needs config.json, "
                "model.safetensors and the tokenizer's files."
            ) from error
        if missing:
            raise CheckpointError(
                f"the text tower in '{folder}' lacks {len(missing)} tensors, as '{missing[0]}'; take a whole CLIP, or "
                "a CLIPTextModelWithProjection."
            )
        return cls(model.to(device), tokenizer, name=Path(repo_or_path).name)

    @property
    def spec(self) -> TextSpec:
        """What it is; the fingerprint is taken at the first call."""
        if self._spec is None:
            config = self.model.config
            self._spec = TextSpec(
                name=self._name or f"CLIP text {config.hidden_size}/{config.projection_dim}",
                width=config.hidden_size,
                num_layers=config.num_hidden_layers,
                projection_dim=config.projection_dim,
                fingerprint=_fingerprint(self.model),
            )
        return self._spec

    @torch.no_grad()
    def encode(self, texts: Sequence[str], device: torch.device | None = None) -> Float[Tensor, "texts projection"]:
        """The pooled and projected features of texts, as the pictures' are.

        Args:
            texts: one or more; longer ones than the tokenizer allows are cut.
            device: where the model computes, where its weights do not tell (a model that moves by itself).
        """
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return self.model(tokens.input_ids.to(device or next(self.model.parameters()).device)).text_embeds


def has_projection(model: Any) -> bool:
    """Whether a model projects its texts to the space of pictures."""
    return isinstance(model, nn.Module) and isinstance(getattr(model, "text_projection", None), nn.Linear)


def check_halves(text: TextEncoder, vision: EncoderSpec) -> None:
    """Refuse a text tower that is no half of the CLIP whose pictures it is to meet.

    Raises:
        EncoderMismatch: the spaces differ in width, the vision tower's known other half has another shape, or the text
            tower is known to belong to another.
    """
    spec, half = text.spec, _TEXT_HALVES.get(vision.name)
    if spec.projection_dim != vision.projection_dim:
        raise EncoderMismatch(
            f"the text encoder {spec.name} makes features of width {spec.projection_dim}, {vision.name} of width "
            f"{vision.projection_dim}; pass text_encoder= with the text tower of the same CLIP"
        )
    if half is not None and half != (spec.width, spec.num_layers):
        raise EncoderMismatch(
            f"the text tower of {vision.name} has {half[1]} layers of width {half[0]}, {spec.name} has "
            f"{spec.num_layers} of width {spec.width}; pass text_encoder= with that of the same CLIP"
        )
    known = text.vision_fingerprint
    if known is not None and known != vision.fingerprint:
        raise EncoderMismatch(
            f"the text encoder {spec.name} was trained with the vision tower {known[:12]}, and pictures are read by "
            f"{vision.name} ({vision.fingerprint[:12]}); pass text_encoder= with the text tower of the same CLIP"
        )


def _fingerprint(model: nn.Module) -> str:
    """Hash, of every tensor, name, shape, dtype and some values spread over it, as of a vision tower."""
    digest = hashlib.sha256()
    hash_weights(digest.update, sorted(model.state_dict().items()))
    return digest.hexdigest()
