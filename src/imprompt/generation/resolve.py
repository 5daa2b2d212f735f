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
from imprompt.adapter.conditioning import NUM_PROGRESS, Branch, Conditioning
from imprompt.adapter.spec import AdapterSpec, FacePlusSpec
from imprompt.core.errors import EncoderMismatch, ImageError, PromptError
from imprompt.core.images import FITS, Fit, load_image, load_mask
from imprompt.prompts.image_prompt import FaceChoice, ImagePrompt
from imprompt.prompts.schedule import window

# A run's step falls on the nearest bin of the table, so a prompt's edges reach half a bin further; the rest is for
# rounding. A start of 1/3 in 30 steps is step 10, whose bin is 0.333.
HALF_BIN = 0.5 / (NUM_PROGRESS - 1) + 1e-9

MASK_TOLERANCE = 0.02  # of the aspect ratio: pipelines round sizes to multiples of 8

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
) -> Conditioning:
    """Turn image prompts into conditioning.

    The k-th prompt of each row for the same adapter shares a branch with the others'; a row that has fewer gets scale 0
    there, and attends to nothing.

    Args:
        rows: the prompts of every row of the batch; a row may have none.
        adapters: the attached adapters, which prompts name by position.
        sources: where the features of each adapter come from.
        size: height and width of the picture to be made, in pixels; masks of another shape are refused then.

    Raises:
        PromptError: no rows, or a prompt names an adapter that is not there.
        EncoderMismatch: features of another width or layer than the adapter reads.
        ImageError: a picture or a mask cannot be used.
    """
    if not rows:
        raise PromptError("no rows of image prompts; give one list of prompts for every text prompt (it may be empty)")
    columns = _columns(rows, len(adapters))
    branches = tuple(
        _branch(column, adapters[number], sources[number], number=number, size=size)
        for (number, _), column in columns.items()
    )
    return Conditioning(branches=branches, rows=len(rows))


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


def _branch(
    column: Sequence[ImagePrompt | None],
    adapter: Adapter,
    source: FeatureSource,
    *,
    number: int,
    size: tuple[int, int] | None,
) -> Branch:
    check_face_options(column, adapter.spec)
    read = zip(column, column_features(column, adapter, source), column_crops(column, adapter, source), strict=True)
    pairs = [
        None
        if prompt is None or features is None
        else image_tokens(features, adapter, source, crop=crop, structure=prompt.structure)
        for prompt, features, crop in read
    ]
    tokens, token_mask = pad_tokens([None if pair is None else pair[0] for pair in pairs])
    null_tokens, _ = pad_tokens([None if pair is None else pair[1] for pair in pairs])
    return Branch(
        tokens=tokens,
        null_tokens=null_tokens,
        scale=scale_table(column, num_sites=len(adapter.spec.site_indices)),
        region=stack_regions(column, size),
        token_mask=token_mask,
        adapter=number,
        null_scale=0.0 if adapter.spec.null_image == "none" else 1.0,
    )


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
    for fit in FITS:
        shown = {
            row: prompt.images for row, prompt in enumerate(column) if prompt and prompt.images and prompt.fit == fit
        }
        pictures = [load_image(picture) for images in shown.values() for picture in images]
        if pictures:
            parts = source.features(pictures, fit).split([len(images) for images in shown.values()])
            for row, part in zip(shown, parts, strict=True):
                features[row] = part
    return features


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
) -> tuple[Float[Tensor, "tokens width"], Float[Tensor, "tokens width"]]:
    """The tokens of all pictures of a prompt one after another, and as many that stand for no picture."""
    tokens = adapter.project(features, crop=crop, structure=structure)
    null = adapter.project(
        _null_features(features, adapter, source),
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


def scale_table(column: Sequence[ImagePrompt | None], *, num_sites: int) -> Float[Tensor, "steps sites rows"]:
    """Strength of every row at every site: one step if no prompt has a beginning or an end, else one a bin."""
    weights = torch.tensor([0.0 if prompt is None else prompt.weight for prompt in column])
    if all(prompt is None or (prompt.start, prompt.end) == (0.0, 1.0) for prompt in column):
        return weights.expand(1, num_sites, -1)
    windows = torch.stack([_window_bins(prompt) for prompt in column], dim=-1)
    return (windows * weights)[:, None].expand(-1, num_sites, -1)


def _window_bins(prompt: ImagePrompt | None) -> Float[Tensor, " steps"]:
    if prompt is None:
        return torch.zeros(NUM_PROGRESS)
    progress = (number / (NUM_PROGRESS - 1) + HALF_BIN for number in range(NUM_PROGRESS))
    return torch.tensor([float(window(prompt.start, prompt.end, value)) for value in progress])


def stack_regions(
    column: Sequence[ImagePrompt | None], size: tuple[int, int] | None = None
) -> Float[Tensor, "rows height width"] | None:
    """The masks of every row at one size, ones where a row has none; None if no row has one.

    Raises:
        ImageError: a mask has another shape than the picture.
    """
    masks = [None if prompt is None or prompt.mask is None else load_mask(prompt.mask) for prompt in column]
    sizes = {(mask.shape[0], mask.shape[1]) for mask in masks if mask is not None}
    if not sizes:
        return None
    for height, width in sizes:
        _check_mask(height, width, size)
    target = (max(height for height, _ in sizes), max(width for _, width in sizes))
    return torch.stack([_resize_mask(mask, target) for mask in masks])


def _check_mask(height: int, width: int, size: tuple[int, int] | None) -> None:
    if size is not None and abs(width / height * size[0] / size[1] - 1) > MASK_TOLERANCE:
        raise ImageError(
            f"a mask has {width} x {height} pixels, the picture {size[1]} x {size[0]}; give one of the picture's shape"
        )


def _resize_mask(mask: Tensor | None, target: tuple[int, int]) -> Tensor:
    """A mask enlarged by repeating pixels, so that its mean over any region stays what it was."""
    if mask is None:
        return torch.ones(target)
    return functional.interpolate(mask[None, None], target, mode="nearest-exact")[0, 0]
