"""The job over captions, for text encoders that cannot stay beside the model; online costs less than it saves."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from imprompt.core.files import sha256_file
from imprompt.generation.pipelines import load_pipeline
from imprompt.training.bases.text import encode_prompt
from imprompt.training.data.manifest import Manifest
from imprompt.training.features.fingerprint import fingerprint_of_folder
from imprompt.training.features.shards import Columns, Storage

INDEX = "model_index.json"
# Parts of pipelines that texts do not need.
_NOT_FOR_TEXT = ("unet", "transformer", "transformer_2", "vae", "image_encoder", "feature_extractor", "safety_checker")


@dataclass(frozen=True)
class TextJob:
    """Text states as a base's own pipeline makes them.

    Attributes:
        folder: Of the base, in diffusers' layout.
        template: What becomes of a caption.
        num_captions: How many of each sample are kept, one a view; those that it lacks repeat.
        variant: Of the weights' files, such as "fp16".
        dtype: Number format that the encoders compute in.
        storage: Number format in files.
    """

    folder: Path
    template: str = "{caption}"
    num_captions: int = 1
    variant: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    storage: Storage = "float16"
    kind: Literal["text"] = "text"

    @property
    def num_views(self) -> int:
        """A view a caption."""
        return self.num_captions

    def ingredients(self, manifest: Manifest) -> dict[str, str]:
        """Weights of the text encoders, tokenizers, template and number formats."""
        return {
            "kind": self.kind,
            "encoder": self._encoders(),
            "tokenizers": self._tokenizers(),
            "template": self.template,
            "dtype": self.dtype,
            "storage": self.storage,
            "views": str(self.num_captions),
        }

    def rows(self, manifest: Manifest, start: int, stop: int) -> list[str]:
        """Name and captions of each sample; its picture does not matter."""
        names, captions = (
            manifest.table[name].slice(start, stop - start).to_pylist() for name in ("sample_id", "captions")
        )
        return [repr(row) for row in zip(names, captions, strict=True)]

    def load(self, manifest: Manifest, device: torch.device) -> "TextEncoders":
        """Load the text half of the base."""
        present = json.loads((self.folder / INDEX).read_text())
        absent: dict[str, Any] = {name: None for name in _NOT_FOR_TEXT if name in present}
        options = absent | ({"variant": self.variant} if self.variant else {})
        pipe = load_pipeline(self.folder, dtype=getattr(torch, self.dtype), device=device, **options)
        return TextEncoders(self, manifest, pipe, device)

    def _encoders(self) -> str:
        folders = sorted(self.folder.glob("text_encoder*"))
        return ":".join(fingerprint_of_folder(folder, self.variant) for folder in folders)

    def _tokenizers(self) -> str:
        digest = hashlib.sha256()
        for path in sorted(self.folder.glob("tokenizer*/*")):
            digest.update(f"{path.relative_to(self.folder)}:{sha256_file(path)}".encode())
        return digest.hexdigest()


class TextEncoders:
    """The loaded text half of a base."""

    def __init__(self, job: TextJob, manifest: Manifest, pipe: Any, device: torch.device) -> None:
        self.job = job
        self.manifest = manifest
        self.pipe = pipe
        self.device = device

    def shape_of(self, number: int) -> int:
        """All texts are padded alike."""
        return 0

    def prepare(self, number: int) -> list[str]:
        """The captions of a sample, in its views' order; an empty text where it has none."""
        captions = self.manifest.captions(number)
        return [
            self.job.template.replace("{caption}", captions[view % len(captions)]) if captions else ""
            for view in range(self.job.num_captions)
        ]

    @torch.no_grad()
    def encode(self, prepared: Sequence[Any]) -> Columns:
        """What the pipeline makes of captions, each `[samples, captions, ...]`."""
        texts = [caption for captions in prepared for caption in captions]
        states = encode_prompt(self.pipe, texts, self.device)
        # What has no rows, as FLUX's text_ids, is the same for all texts: it is kept with the empty one.
        rows = {name: value for name, value in states.items() if len(value) == len(texts) and value.ndim > 1}
        return {name: value.unflatten(0, (len(prepared), self.job.num_captions)) for name, value in rows.items()}

    @torch.no_grad()
    def null(self) -> Columns:
        """All states of the empty text, which stands where texts are dropped."""
        return encode_prompt(self.pipe, [""], self.device)
