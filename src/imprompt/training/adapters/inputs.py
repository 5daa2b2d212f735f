"""What a batch of an adapter's training is made of: latents or pixels, references, captions, noise.

No model is touched, so any process can make one; all randomness is that of the draw.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from imprompt.core.errors import ImageError
from imprompt.training.config import DropoutConfig
from imprompt.training.data.manifest import Manifest, ReferenceMode
from imprompt.training.data.quarantine import Quarantine
from imprompt.training.data.references import choose
from imprompt.training.errors import DataError
from imprompt.training.features.store import FeatureStore
from imprompt.training.loop.task import Draw
from imprompt.training.objective.dropout import draw_dropout
from imprompt.training.objective.noise import NoiseProcess

FEATURES, CROP = "features", "crop"
"""What an adapter may read of a reference: its features, and those of the aligned face beside them."""


@dataclass(frozen=True)
class Targets:
    """Pictures that are to be predicted: latents, or pixels that the base will encode.

    Attributes:
        latents: Scaled; None where there are pixels.
        pixels: Bytes; None where there are latents.
        sizes: Original height and width, top and left of the crop, height and width of each.
    """

    latents: Float[Tensor, "rows channels height width"] | None
    pixels: Shaped[Tensor, "rows 3 height width"] | None
    sizes: Float[Tensor, "rows 6"]


@dataclass(frozen=True)
class References:
    """Pictures to follow, several a row: features, or pixels that the image encoder will turn into them.

    Attributes:
        features: By `FEATURES` and `CROP`; those that are not there are read from `pixels`.
        pixels: Normalised as the encoder wants them; empty where all features are kept.
        present: Which of a row's places hold a reference.
    """

    features: Mapping[str, Float[Tensor, "rows references *length width"]]
    pixels: Mapping[str, Float[Tensor, "rows references 3 side side"]]
    present: Bool[Tensor, "rows references"]


@dataclass(frozen=True)
class AdapterBatch:
    """Rows of one step.

    Attributes:
        targets: What is to be predicted.
        references: What is to be followed.
        captions: A text a row.
        noise: Of the latents' shape.
        timesteps: Where in the schedule each row is.
        no_image: Whose references are dropped.
        no_text: Whose caption is.
        texts: What the base reads of the captions, where that was computed once.
    """

    targets: Targets
    references: References
    captions: tuple[str, ...]
    noise: Float[Tensor, "rows channels height width"]
    timesteps: Shaped[Tensor, " rows"]
    no_image: Bool[Tensor, " rows"]
    no_text: tuple[bool, ...]
    texts: Mapping[str, Shaped[Tensor, "rows ..."]] | None = None

    def without_dropout(self) -> "AdapterBatch":
        """Every image and every text as they are."""
        return replace(self, no_image=torch.zeros_like(self.no_image), no_text=(False,) * len(self.no_text))

    def with_references(self, permutation: Int[Tensor, " rows"]) -> "AdapterBatch":
        """Row i with the references of row `permutation[i]`."""
        found = self.references
        features, pixels = (
            {name: value[permutation] for name, value in each.items()} for each in (found.features, found.pixels)
        )
        return replace(self, references=References(features, pixels, found.present[permutation]))


class BadSample(ImageError):
    """A sample whose picture, or whose reference, cannot be read.

    Attributes:
        number: Of what cannot be read, in the manifest.
        row: Whose it is, within the batch.
    """

    def __init__(self, number: int, row: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number
        self.row = row


@runtime_checkable
class TargetSource(Protocol):
    """Where latents or pixels come from."""

    @property
    def num_views(self) -> int:
        """Views a sample."""
        ...

    def shape(self, bucket: int) -> tuple[int, int, int]:
        """Channels, height and width of a bucket's latents."""
        ...

    def read(self, samples: Int[Tensor, " rows"], views: Int[Tensor, " rows"], bucket: int) -> Targets:
        """Samples of the manifest, each in one of its views."""
        ...


@runtime_checkable
class ReferenceSource(Protocol):
    """Where references come from."""

    def read(
        self, samples: Int[Tensor, "rows references"], views: Int[Tensor, "rows references"], draw: Draw
    ) -> References:
        """Samples of the manifest, each in one of its views."""
        ...


@dataclass(frozen=True)
class AdapterInputs:
    """Makes batches of an adapter's training.

    Attributes:
        manifest: Captions and who is whose reference.
        members: Numbers in the manifest of what draws count: the training samples, then those of validation.
        successors: For each of them, which one takes its place where it cannot be read: another of its bucket.
        quarantine: Where samples that cannot be read are listed.
        targets: Latents or pixels.
        references: Features or pixels.
        noise: Noise process of the base.
        token_side: Latents along each side of what the denoiser counts as a token, where its schedule shifts by them.
        dropout: How often conditions are dropped.
        mode: Which references a sample has.
        num_references: At most so many a row.
        prompt_template: What becomes of a caption.
        texts: What the base reads of captions, where that was computed once.
    """

    manifest: Manifest
    members: Int[Tensor, " members"]
    successors: Int[Tensor, " members"]
    quarantine: Quarantine
    targets: TargetSource
    references: ReferenceSource
    noise: NoiseProcess
    token_side: int
    dropout: DropoutConfig
    mode: ReferenceMode = "self"
    num_references: int = 1
    prompt_template: str = "{caption}"
    texts: FeatureStore | None = None

    def batch(self, draw: Draw) -> AdapterBatch:
        """The rows of a draw; in place of a sample that cannot be read, the next one of its bucket.

        Raises:
            DataError: More cannot be read than may be.
        """
        places = draw.samples.clone()
        for _ in range(len(self.members)):
            try:
                return self._batch(self.members[places], draw)
            except BadSample as bad:
                self.quarantine.report(self.manifest.sample_id(bad.number), str(bad))
                places[bad.row] = self.successors[places[bad.row]]
        raise DataError(
            f"no sample of bucket {draw.bucket} can be read; mend the pictures that are listed in "
            f"'{self.quarantine.folder}'"
        )

    def _batch(self, samples: Int[Tensor, " rows"], draw: Draw) -> AdapterBatch:
        views = draw.per_row("views", lambda generator, size: _integers(self.targets.num_views, size, generator))
        chosen = choose(self.manifest, samples, self.mode, self.num_references, draw)
        channels, height, width = self.targets.shape(draw.bucket)
        no_image, no_text = draw_dropout(self.dropout, draw)
        return AdapterBatch(
            targets=self.targets.read(samples, views, draw.bucket),
            references=self.references.read(chosen, views[:, None].expand_as(chosen), draw),
            captions=self._captions(samples, draw),
            noise=self.noise.noise(draw, (channels, height, width)),
            timesteps=self.noise.draw(draw, (height // self.token_side) * (width // self.token_side)),
            no_image=no_image,
            no_text=tuple(no_text.tolist()),
            texts=self._texts(samples, draw),
        )

    def _texts(self, samples: Int[Tensor, " rows"], draw: Draw) -> Mapping[str, Tensor] | None:
        if self.texts is None:
            return None
        return self.texts.columns((self._chances(draw) * self.texts.spec.views).long(), samples)

    def _chances(self, draw: Draw) -> Float[Tensor, " rows"]:
        return draw.per_row("captions", lambda generator, size: torch.rand(size, generator=generator))

    def _captions(self, samples: Int[Tensor, " rows"], draw: Draw) -> tuple[str, ...]:
        chances = self._chances(draw)
        pairs = zip(samples.tolist(), chances.tolist(), strict=True)
        return tuple(self._caption(self.manifest.captions(number), chance) for number, chance in pairs)

    def _caption(self, texts: Sequence[str], chance: float) -> str:
        return self.prompt_template.replace("{caption}", texts[int(chance * len(texts))]) if texts else ""


def _integers(below: int, size: int, generator: torch.Generator) -> Int[Tensor, " rows"]:
    return torch.randint(below, (size,), generator=generator)
