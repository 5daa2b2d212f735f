"""Attaching adapters to a pipeline: image prompts in, conditioned denoiser out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.attach import Attachment
from imprompt.adapter.conditioning import Conditioning
from imprompt.adapter.regional_text import text_layer_of
from imprompt.adapter.spec import AdapterSpec
from imprompt.core.errors import PromptError
from imprompt.encoders.base import ImageEncoder
from imprompt.encoders.cache import FeatureCache
from imprompt.encoders.face import FaceEncoder
from imprompt.generation.encoded import encode_prompt
from imprompt.generation.faces import FaceFeatures, check_face_encoders, face_encoder_of
from imprompt.generation.features import EncoderFeatures, EncoderSource, cached, find_encoders, load_encoder
from imprompt.generation.region_texts import Regions, encode_texts, resolve_texts
from imprompt.generation.resolve import resolve
from imprompt.generation.text_features import TextFeatures, TextSource
from imprompt.prompts.image_prompt import ImagePrompt
from imprompt.prompts.text_region import TextRegion


class PipelineAttachment(Attachment):
    """An attachment that takes image prompts; see `attach`."""

    def __init__(
        self,
        target: Any,
        *adapters: Adapter,
        image_encoder: EncoderSource | Sequence[EncoderSource | None] | None = None,
        face_encoder: FaceEncoder | Sequence[FaceEncoder | None] | None = None,
        text_encoder: TextSource | None = None,
        cache: FeatureCache | None = None,
        **options: Any,
    ) -> None:
        super().__init__(target, *adapters, **options)
        self._cache = FeatureCache() if cache is None else cache
        self._texts = TextFeatures(text_encoder, self.pipe, lambda: self.device)
        try:
            self._sources = self._find_sources(image_encoder, face_encoder)
        except BaseException:
            self.detach()
            raise

    def set(  # pyright: ignore[reportIncompatibleMethodOverride]  (a conditioning is still taken, by position)
        self,
        *prompts: ImagePrompt | Conditioning | None,
        rows: Sequence[Sequence[ImagePrompt]] | None = None,
        regions: Sequence[TextRegion] | Regions | None = None,
        size: tuple[int, int] | None = None,
        **encoding: Any,
    ) -> None:
        """Say which images the next pictures shall follow; it holds until the next `set`.

        Pictures are encoded, and keys and values computed, here and once.

        Args:
            *prompts: image prompts that act together on every picture; or None to take all away; or a conditioning
                that was resolved elsewhere.
            rows: instead, a list of image prompts for every text prompt of the batch, in the batch's order; a list may
                be empty.
            regions: texts that parts of the pictures follow in place of the prompt: a list for all pictures, or a list
                for every text prompt of the batch. They may be given without image prompts.
            size: height and width of the pictures, in pixels. If given, masks of another shape are refused, which are
                stretched otherwise.
            **encoding: how the pipeline is told to encode texts (`clip_skip`), for those of regions.

        Raises:
            PromptError: no prompts, or something that is none.
            EncoderMismatch: features that the adapter cannot read.
            ImageError: a picture or a mask cannot be used.
            ConditioningError: the attachment was detached.
            HostMismatch: regions, and the denoiser does not read its text apart from the picture.
        """
        only = prompts[0] if len(prompts) == 1 else ()
        if rows is None and regions is None and (only is None or isinstance(only, Conditioning)):
            super().set(only)
            return
        rows, texts = _as_rows(prompts, rows, regions)
        if any(texts):
            text_layer_of(self.family, self.host)  # refused before anything is encoded
        with torch.no_grad(), self._present({prompt.adapter for row in rows for prompt in row}):
            resolved = resolve(rows, self.adapters, self._sources, size=size, blocks=self._blocks(), texts=self._texts)
            encoded = encode_texts(self.pipe, texts, self.device, **encoding)
            self._set(replace(resolved, texts=resolve_texts(encoded, size=size)))

    def encode(self, prompt: ImagePrompt) -> ImagePrompt:
        """The same prompt with features in place of its pictures, for arithmetic with them or to save them.

        Several pictures stay several, however they are to be combined.

        Args:
            prompt: with pictures. Its framing is done here and so is gone from the result.

        Raises:
            PromptError: it has no pictures, or what becomes of them needs them apart.
            EncoderMismatch: there is no encoder.
        """
        if not 0 <= prompt.adapter < len(self.adapters):
            raise PromptError(f"an image prompt names adapter {prompt.adapter}, but {len(self.adapters)} attached")
        with torch.no_grad():
            return encode_prompt(prompt, self.adapters[prompt.adapter], self._sources[prompt.adapter])

    def _blocks(self) -> list[list[str]]:
        """The block of each site of every adapter."""
        labels = {site.index: site.block for site in self.sites}
        return [[labels[index] for index in adapter.spec.site_indices] for adapter in self.adapters]

    def load_encoders(self) -> None:
        """Load now what is loaded otherwise when a picture first needs it.

        Raises:
            EncoderMismatch: an adapter has no encoder, and no published one fits.
            DownloadError: one is neither here nor reachable.
            CheckpointError: one is here and cannot be read.
        """
        for source in self._sources:
            source.load_encoders()

    def describe_encoders(self) -> list[dict[str, str]]:
        """Name and fingerprint of the encoders of every adapter that has used or been given some."""
        texts = [
            {"adapter": name, "name": encoder.spec.name, "fingerprint": encoder.spec.fingerprint}
            for name, encoder in self._texts.used.items()
        ]
        return texts + [
            {"adapter": source.spec.name, "name": encoder.spec.name, "fingerprint": encoder.spec.fingerprint}
            for source in self._sources
            for encoder in source.encoders
        ]

    def _find_sources(self, image_encoder: Any, face_encoder: Any) -> list[EncoderFeatures | FaceFeatures]:
        number = len(self.adapters)
        encoders = find_encoders(image_encoder, self.pipe, number, self._load)
        given = image_encoder if isinstance(image_encoder, list | tuple) else [image_encoder] * number
        faces = face_encoder if isinstance(face_encoder, list | tuple) else [face_encoder] * number
        check_face_encoders(faces, [adapter.spec for adapter in self.adapters])
        return [
            self._source(adapter.spec, encoder, face, is_own=source is None)
            for adapter, encoder, face, source in zip(self.adapters, encoders, faces, given, strict=True)
        ]

    def _source(
        self, spec: AdapterSpec, encoder: ImageEncoder | None, face: Any, *, is_own: bool
    ) -> EncoderFeatures | FaceFeatures:
        if spec.features.layer == "face_embeds":
            face, encoder = face_encoder_of(spec, face, encoder, is_own=is_own)
            crop = None if encoder is None else cached(encoder, self._cache)
            return FaceFeatures(spec, face, crop, self._load, self._cache)
        return EncoderFeatures(spec, None if encoder is None else cached(encoder, self._cache), self._load)

    def _load(self, source: str | Path) -> ImageEncoder:
        dtype = getattr(self.pipe, "dtype", torch.float32)
        encoder = load_encoder(source, dtype=dtype, device=self.device, offload=self.offload)
        return cached(encoder, self._cache)


def attach(  # noqa: PLR0913  (a name for each thing that may be given)
    target: Any,
    *adapters: Adapter,
    image_encoder: EncoderSource | Sequence[EncoderSource | None] | None = None,
    face_encoder: FaceEncoder | Sequence[FaceEncoder | None] | None = None,
    text_encoder: TextSource | None = None,
    offload: bool = False,
    fuse: bool = True,
    guidance: str | None = None,
    lora_scale: float = 1.0,
    cache: FeatureCache | None = None,
) -> PipelineAttachment:
    """Attach image prompt adapters to a pipeline; until they are detached, it follows the images that are set.

    Any diffusers pipeline will do whose denoiser is of a family that imprompt knows, whether or not it knows image
    prompts itself. It is called as ever, and its weights are not touched.

    Args:
        target: the pipeline, or a bare denoiser.
        *adapters: one adapter or several; prompts name theirs by its position.
        image_encoder: what turns pictures into features: an `ImageEncoder` as `VisionEncoder`, a vision tower of
            transformers (CLIP, SigLIP, DINO), its folder or hub folder; a list gives every adapter its own. By default
            the pipeline's `image_encoder`, else the published one that the adapter names, loaded when a picture first
            needs it.
        face_encoder: what tells whose face a picture shows, for adapters that read that (FaceID, InstantID); a list
            gives every adapter its own. FaceID-Plus reads both: the face encoder finds, aligns and embeds the face, and
            the image encoder looks at the aligned face. Where nothing but faces is read, `image_encoder` may be the
            face encoder as well. There is no default: which face networks to use, and under which licence, is yours to
            say.
        text_encoder: the text tower of the same CLIP as the image encoder, for prompts that subtract a text: a
            `TextEncoder`, or its folder or hub folder; by default the pipeline's that projects (SDXL's second).
        offload: move the adapters' weights, and an encoder loaded here, off the device when they have done their work.
            What works at every step stays: the LoRA of a FaceID adapter, and all of an adapter whose keys and values
            depend on the timestep (Stable Diffusion 3.5).
        fuse: put a faster attention processor with the same output in place of diffusers' stock one.
        guidance: how a batch is laid out, one of `imprompt.adapter.guidance.LAYOUTS`; by default the pipeline tells,
            and a bare denoiser has positive rows alone.
        lora_scale: how strongly the LoRA acts that comes with FaceID adapters; on rows that follow such an adapter.
        cache: where features are kept, e.g. `FeatureCache(folder=...)` to keep them on disk; by default in memory, as
            long as the attachment lives.

    Returns:
        The attachment: `set` gives it image prompts, and leaving its `with` block, or `detach`, takes it off.

    Raises:
        HostMismatch: the adapter was made for another denoiser.
        EncoderMismatch: the image encoder makes other features than the adapter reads.
        ConditioningError: the guidance is unknown.

    Example:
        ```python
        with imprompt.attach(pipe, adapter) as images:
            images.set(ImagePrompt("cat.png", weight=0.7), ImagePrompt("street.png", mask="left.png"))
            pipe("on the moon").images[0].save("moon.png")

            images.set(rows=[[ImagePrompt("cat.png")], []])  # the second picture follows no image
            pipe(["on the moon", "in the sea"]).images
        ```
    """
    return PipelineAttachment(
        target,
        *adapters,
        image_encoder=image_encoder,
        face_encoder=face_encoder,
        text_encoder=text_encoder,
        cache=cache,
        offload=offload,
        fuse=fuse,
        guidance=guidance,
        lora_scale=lora_scale,
    )


def _as_rows(
    prompts: Sequence[Any], rows: Sequence[Sequence[ImagePrompt]] | None, regions: Any
) -> tuple[Sequence[Sequence[ImagePrompt]], Regions]:
    """Image prompts and texts' regions of every row."""
    if rows is not None and prompts:
        raise PromptError("both prompts and rows= were given; give prompts for all pictures, or rows= for each its own")
    if rows is None and not prompts and regions is None:
        raise PromptError("no image prompts; give at least one, or set(None) to take them away")
    rows = [prompts] if rows is None else rows
    for prompt in (prompt for row in rows for prompt in row):
        if not isinstance(prompt, ImagePrompt):
            raise PromptError(f"expected an ImagePrompt, got {prompt!r:.60}; write ImagePrompt(...) around a picture")
    regions = [] if regions is None else regions
    if not all(isinstance(row, list | tuple) for row in regions) or not regions:
        regions = [regions] * len(rows)
    rows = list(rows) * len(regions) if len(rows) == 1 else rows
    if len(regions) != len(rows):
        raise PromptError(f"regions= has {len(regions)} rows, rows= has {len(rows)}; give regions for every row")
    for region in (region for row in regions for region in row):
        if not isinstance(region, TextRegion):
            raise PromptError(f"expected a TextRegion, got {region!r:.60}; write TextRegion(text, mask)")
    return rows, regions
