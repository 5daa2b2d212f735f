"""Texts taken from pictures' features, as InstantStyle does: the text tower must be the other half of the same CLIP."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from imprompt.adapter.adapter import describe_features
from imprompt.adapter.spec import AdapterSpec
from imprompt.core.errors import EncoderMismatch, PromptError
from imprompt.encoders.base import EncoderSpec
from imprompt.encoders.text import TextEncoder, check_halves, has_projection
from imprompt.prompts.embeds import subtract
from imprompt.prompts.image_prompt import ImagePrompt

# A text tower, or its folder or hub folder.
TextSource: TypeAlias = TextEncoder | str | Path

ENDS = ("", "_2", "_3")  # of the names under which pipelines keep several text encoders

Column = Sequence[ImagePrompt | None]
Features = Sequence[Tensor | None]


class TextFeatures:
    """The text towers at hand: the one given, else those of the pipeline that project."""

    def __init__(self, given: TextSource | None, pipe: Any, device: Callable[[], torch.device]) -> None:
        """Remember where to look; nothing is loaded before a text is to be read.

        Args:
            given: a text tower; None for the pipeline's.
            pipe: the pipeline; None for a bare denoiser.
            device: where the pipeline computes.
        """
        self._given = given
        self._pipe = pipe
        self._device = device
        self.used: dict[str, TextEncoder] = {}

    def features(
        self, texts: Sequence[str], adapter: AdapterSpec, vision: EncoderSpec | None
    ) -> Float[Tensor, "texts width"]:
        """Features of texts in the space of an adapter's pictures.

        Args:
            texts: what to encode.
            adapter: who reads them.
            vision: what makes its pictures' features, where that is known.

        Raises:
            PromptError: the adapter does not read pooled features.
            EncoderMismatch: no text tower belongs to the vision tower.
        """
        if adapter.features.layer != "image_embeds":
            raise PromptError(
                f"subtract= takes a text from pooled features, and {adapter.name!r} reads "
                f"{describe_features(adapter.features)}; take an adapter of pooled features, as ip-adapter_sdxl"
            )
        encoder = self._encoder_for(adapter, vision)
        if vision is not None:
            check_halves(encoder, vision)
        self.used[adapter.name] = encoder
        return encoder.encode(texts, self._device() if self._given is None else None)

    def _encoder_for(self, adapter: AdapterSpec, vision: EncoderSpec | None) -> TextEncoder:
        if isinstance(self._given, str | Path):
            self._given = TextEncoder.from_folder(self._given, device=self._device())
        if self._given is not None:
            return self._given
        wanted, projecting = adapter.features, list(_projecting(self._pipe))
        for encoder in projecting:
            if encoder.spec.projection_dim == wanted.width:
                return encoder
        has = " and ".join(f"one of width {encoder.spec.projection_dim}" for encoder in projecting) or "none that does"
        raise EncoderMismatch(
            f"subtract= needs a text encoder that projects to {describe_features(wanted)}, and "
            f"{'a bare denoiser' if self._pipe is None else type(self._pipe).__name__} has {has}; pass text_encoder= "
            f"to attach, with the text tower of {wanted.encoder if vision is None else vision.name}"
        )


def _projecting(pipe: Any) -> Sequence[TextEncoder]:
    """The text towers of a pipeline that project, with their tokenizers."""
    pairs: list[Any] = [[getattr(pipe, name + end, None) for name in ("text_encoder", "tokenizer")] for end in ENDS]
    return [TextEncoder(model, tokenizer) for model, tokenizer in pairs if has_projection(model) and tokenizer]


def without_texts(
    column: Column, features: Features, adapter: AdapterSpec, vision: EncoderSpec | None, texts: TextFeatures | None
) -> list[Tensor | None]:
    """The features of every row's pictures, less those of the text that its prompt subtracts."""
    made: list[Tensor | None] = list(features)
    for row, prompt in enumerate(column):
        mine = features[row]
        if prompt is None or prompt.subtract is None or mine is None:
            continue
        if texts is None:
            raise PromptError("subtract= needs the attachment of a pipeline; resolve the prompt with one")
        made[row] = subtract(mine, texts.features([prompt.subtract], adapter, vision), prompt.subtract_weight)
    return made
