"""Image prompts resolved into numbers, once: what attention reads afterwards knows no picture, no flag and no name."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.conditioning import Branch, Conditioning
from imprompt.adapter.spec import AdapterSpec, FacePlusSpec
from imprompt.core.errors import EncoderMismatch, PromptError
from imprompt.core.images import Fit, load_image
from imprompt.encoders.base import EncoderSpec, ImageEncoder
from imprompt.generation.regions import stack_regions
from imprompt.generation.scales import column_scales
from imprompt.generation.text_features import TextFeatures, without_texts
from imprompt.generation.views import combined, encode_negatives, encode_prompts
from imprompt.prompts.expand import expand
from imprompt.prompts.image_prompt import FaceChoice, ImagePrompt

BLACK = Image.new("RGB", (64, 64))  # of any size: an encoder makes it its own

Row = Sequence[ImagePrompt]


@runtime_checkable
class FeatureSource(Protocol):
    """Where an adapter's image features come from."""

    def features(self, images: Sequence[Image.Image], fit: Fit) -> Float[Tensor, "images *length feature"]:
        """Features of pictures."""
        ...

    def null_features(self) -> Float[Tensor, "1 *length feature"]:
        """Features of pixels that are zero after normalisation, where the adapter's rule asks for those."""
        ...


@runtime_checkable
class FaceSource(FeatureSource, Protocol):
    """Where the features of an adapter of faces come from."""

    def choosing(self, choice: FaceChoice | None) -> "FaceSource":
        """The same with another face of every picture; itself if None."""
        ...

    def crop_features(self, images: Sequence[Image.Image]) -> Float[Tensor, "images length feature"]:
        """Features of the aligned faces of pictures."""
        ...

    def null_crop_features(self) -> Float[Tensor, "1 length feature"]:
        """Features that stand for no aligned face."""
        ...


def resolve(
    rows: Sequence[Row],
    adapters: Sequence[Adapter],
    sources: Sequence[FeatureSource],
    *,
    size: tuple[int, int] | None = None,
    blocks: Sequence[Sequence[str]] | None = None,
    texts: TextFeatures | None = None,
) -> Conditioning:
    """Turn image prompts into conditioning.

    The k-th prompt of each row for the same adapter shares a branch with the others'; a row that has fewer gets scale 0
    there, and attends to nothing.

    Args:
        rows: the prompts of every row of the batch; a row may have none.
        adapters: the attached adapters, which prompts name by position.
        sources: where the features of each adapter come from.
        size: height and width of the picture to be made, in pixels; masks of another shape are refused then.
        blocks: for each adapter the block of each of its sites, which prompts may weigh apart; if None, every site is
            known by its number in checkpoints.
        texts: what encodes the texts that prompts subtract.

    Raises:
        PromptError: no rows, a prompt names an adapter or blocks that are not there, or asks of an adapter what it
            cannot do.
        EncoderMismatch: features of another width or layer than the adapter reads.
        ImageError: a picture or a mask cannot be used.
    """
    if not rows:
        raise PromptError("no rows of image prompts; give one list of prompts for every text prompt (it may be empty)")
    rows = [[part for prompt in row for part in expand(prompt, size)] for row in rows]
    columns = _columns(rows, len(adapters))
    branches: list[Branch] = []
    for (number, _), column in columns.items():
        spec = adapters[number].spec
        labels = [str(index) for index in spec.site_indices] if blocks is None else blocks[number]
        null_scale = 0.0 if spec.null_image == "none" else 1.0
        scales = column_scales(column, labels, spec.site_widths, null_scale=null_scale)
        tokens = _column_tokens(column, adapters[number], sources[number], texts)
        branches.append(Branch(**tokens, **scales, region=stack_regions(column, size), adapter=number))
    return Conditioning(branches=tuple(branches), rows=len(rows))


def _columns(rows: Sequence[Row], num_adapters: int) -> dict[tuple[int, int], list[ImagePrompt | None]]:
    """Which prompts share a branch: (adapter, ordinal) to the prompt of every row, None where it has no such prompt."""
    columns: dict[tuple[int, int], list[ImagePrompt | None]] = {}
    for number, row in enumerate(rows):
        ordinals: Counter[int] = Counter()
        for prompt in row:
            if not prompt.adapter < num_adapters:
                raise PromptError(
                    f"an image prompt names adapter {prompt.adapter}, but {num_adapters} attached; count from 0"
                )
            key = (prompt.adapter, ordinals[prompt.adapter])
            ordinals[prompt.adapter] += 1
            columns.setdefault(key, [None] * len(rows))[number] = prompt
    return columns


def _column_tokens(
    column: Sequence[ImagePrompt | None], adapter: Adapter, source: FeatureSource, texts: TextFeatures | None
) -> dict[str, Tensor | None]:
    """Everything about tokens that a branch holds, by the names of its fields."""
    check_face_options(column, adapter.spec)
    for prompt in column:
        check_origin(prompt, adapter.spec, source)
    features = column_features(column, adapter, source)
    read = zip(
        column,
        without_texts(column, features, adapter.spec, vision_of(source), texts),
        column_crops(column, adapter, source),
        encode_negatives(column, source.features),
        strict=True,
    )
    pairs = [
        None
        if prompt is None or features is None
        else image_tokens(
            combined(prompt, features),
            adapter,
            source,
            crop=None if crop is None else combined(prompt, crop),
            structure=prompt.structure,
            # One negative picture stands for as many as there are; noise was made of each.
            negative=negative if negative is None or len(negative) == 1 else combined(prompt, negative),
        )
        for prompt, features, crop, negative in read
    ]
    tokens, token_mask = pad_tokens([None if pair is None else pair[0] for pair in pairs])
    null_tokens, _ = pad_tokens([None if pair is None else pair[1] for pair in pairs])
    gain = token_gain(column, [0 if pair is None else len(pair[0]) for pair in pairs])
    return {
        "tokens": tokens,
        "null_tokens": null_tokens,
        "token_mask": token_mask,
        "gain": None if gain is None else gain.to(tokens.device),
    }


def column_features(
    column: Sequence[ImagePrompt | None], adapter: Adapter, source: FeatureSource
) -> list[Float[Tensor, "_ *length feature"] | None]:
    """The features of all pictures of every row; the pictures of all rows are encoded together."""
    features: list[Tensor | None] = [
        None if prompt is None or prompt.features is None else _given_features(prompt.features, adapter)
        for prompt in column
    ]
    if isinstance(source, FaceSource):
        for row, prompt in enumerate(column):
            if prompt is not None and prompt.images:
                features[row] = source.choosing(prompt.face).features(_pictures(prompt), "crop")
        return features
    encoded = encode_prompts(column, source.features)
    return [given if made is None else made for given, made in zip(features, encoded, strict=True)]


def vision_of(source: FeatureSource) -> EncoderSpec | None:
    """What makes the features of a source, as far as it is at hand."""
    encoders: Sequence[ImageEncoder] = getattr(source, "encoders", ())
    return next((encoder.spec for encoder in encoders), None)


def column_crops(
    column: Sequence[ImagePrompt | None], adapter: Adapter, source: FeatureSource
) -> list[Float[Tensor, "_ length feature"] | None]:
    """The features of all aligned faces of every row, for adapters that read those too."""
    if adapter.spec.face_crop is None:
        return [None] * len(column)
    crops: list[Tensor | None] = []
    for prompt in column:
        given = None if prompt is None else prompt.crop_features
        if prompt is not None and prompt.images and isinstance(source, FaceSource):
            given = source.choosing(prompt.face).crop_features(_pictures(prompt))
        crops.append(given[None] if given is not None and given.ndim == 2 else given)
    return crops


def _pictures(prompt: ImagePrompt) -> list[Image.Image]:
    """The pictures of a prompt, which still know their files."""
    pictures = []
    for source in prompt.images:
        picture: Any = load_image(source)
        if isinstance(source, str | Path):
            picture.filename = str(source)
        pictures.append(picture)
    return pictures


def check_origin(prompt: ImagePrompt | None, spec: AdapterSpec, source: FeatureSource) -> None:
    """Refuse features that are known to come from elsewhere than the adapter reads.

    Raises:
        EncoderMismatch: another layer, or another encoder.
    """
    origin = None if prompt is None else prompt.origin
    if origin is None:
        return
    wanted, encoders = spec.features, getattr(source, "encoders", ())
    if (origin.layer, origin.index) != (wanted.layer, wanted.index):
        raise EncoderMismatch(
            f"the saved features are {origin.layer} of layer {origin.index}, {spec.name!r} reads {wanted.layer} of "
            f"layer {wanted.index}; save the prompt again with this adapter attached"
        )
    known = [encoder.spec for encoder in encoders]
    if known and origin.fingerprint not in [encoder.fingerprint for encoder in known]:
        raise EncoderMismatch(
            f"the saved features were made by {origin.encoder} ({origin.fingerprint[:12]}), {spec.name!r} is attached "
            f"with {known[0].name} ({known[0].fingerprint[:12]}); save the prompt again with this one"
        )


def check_face_options(column: Sequence[ImagePrompt | None], spec: AdapterSpec) -> None:
    """Refuse what only adapters of faces understand, where the adapter is none.

    Raises:
        PromptError: a choice among faces, features of faces, or a `structure` that the adapter knows nothing of.
    """
    projector = spec.projector
    for prompt in column:
        if prompt is None:
            continue
        if prompt.structure != 1.0 and not (isinstance(projector, FacePlusSpec) and projector.shortcut):
            raise PromptError(
                f"structure={prompt.structure!r} is for FaceID-Plus version 2 alone; {spec.name!r} has no such strength"
            )
        if prompt.face is not None and spec.features.layer != "face_embeds":
            raise PromptError(f"face={prompt.face!r:.40} chooses a face, and {spec.name!r} reads whole pictures")
        if prompt.negative is not None and spec.features.layer == "face_embeds":
            raise PromptError(f"{spec.name!r} reads faces, and its negative half has none; leave negative out")
        if (prompt.crop_features is not None) != (prompt.features is not None and spec.face_crop is not None):
            wanted = "no crop_features" if spec.face_crop is None else "crop_features beside them"
            raise PromptError(f"the features of a prompt for {spec.name!r} have {wanted}; give what its encoders made")


def image_tokens(
    features: Float[Tensor, "images *length feature"],
    adapter: Adapter,
    source: FeatureSource,
    *,
    crop: Float[Tensor, "images crop_length crop_feature"] | None = None,
    structure: float = 1.0,
    negative: Float[Tensor, "negatives *length feature"] | None = None,
) -> tuple[Float[Tensor, "tokens width"], Float[Tensor, "tokens width"]]:
    """The tokens of all pictures of a prompt one after another, and as many of the negative, or that stand for none."""
    tokens = adapter.project(features, crop=crop, structure=structure)
    null = adapter.project(
        _null_features(features, adapter, source) if negative is None else negative,
        crop=None if crop is None else _null_crop(crop, adapter, source),
        structure=structure,
    )
    if null.shape[1:] != tokens.shape[1:]:
        raise EncoderMismatch(
            f"the features given for {adapter.spec.name!r} make {tokens.shape[1]} tokens, its image encoder's "
            f"{null.shape[1]}; give features of {adapter.spec.features.encoder}"
        )
    return tokens.flatten(0, 1), null.expand_as(tokens).flatten(0, 1)


def _given_features(features: Tensor, adapter: Adapter) -> Tensor:
    """Features as [images, width] or [images, length, width]; those of one image may come without the first axis."""
    one_image = features.ndim == (2 if adapter.spec.features.is_sequence else 1)
    return features[None] if one_image else features


def _null_features(features: Tensor, adapter: Adapter, source: FeatureSource) -> Tensor:
    """Features of "no image", by the rule that the adapter was trained with."""
    match adapter.spec.null_image:
        case "zero_features" | "none":
            return torch.zeros_like(features[:1])
        case "zero_pixels":
            return source.null_features()
        case "black_pixels":
            return source.features([BLACK], "stretch")


def _null_crop(crop: Tensor, adapter: Adapter, source: FeatureSource) -> Tensor:
    """The same for the aligned face."""
    if adapter.spec.null_crop == "zero_pixels" and isinstance(source, FaceSource):
        return source.null_crop_features()
    return torch.zeros_like(crop[:1])


def token_gain(column: Sequence[ImagePrompt | None], lengths: Sequence[int]) -> Float[Tensor, "rows tokens"] | None:
    """Factors on the values of single tokens: each picture's weight on its own; None if no prompt weighs its pictures.

    Args:
        column: the prompt of every row.
        lengths: how many tokens each has.
    """
    weighed = [prompt.image_weights if prompt is not None and prompt.combine == "concat" else None for prompt in column]
    if not any(weighed):
        return None
    gain = torch.ones(len(column), max(lengths))
    for row, (weights, length) in enumerate(zip(weighed, lengths, strict=True)):
        if weights:
            gain[row, :length] = torch.tensor(list(weights)).repeat_interleave(length // len(weights))
    return gain


def pad_tokens(
    rows: Sequence[Float[Tensor, "_ width"] | None],
) -> tuple[Float[Tensor, "rows tokens width"], Bool[Tensor, "rows tokens"] | None]:
    """Rows of tokens as one tensor, zeros where a row has fewer, and which are real; None if all rows have as many."""
    present = [row for row in rows if row is not None]
    longest = max(len(row) for row in present)
    padded = [
        present[0].new_zeros(longest, present[0].shape[1])
        if row is None
        else functional.pad(row, (0, 0, 0, longest - len(row)))
        for row in rows
    ]
    if all(len(row) == longest for row in present):
        return torch.stack(padded), None
    lengths = torch.tensor([0 if row is None else len(row) for row in rows], device=present[0].device)
    return torch.stack(padded), torch.arange(longest, device=lengths.device) < lengths[:, None]
