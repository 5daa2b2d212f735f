"""Contact sheets of a run: the same references, texts and noise every time, so that two of them can be compared."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.attach import Attachment
from imprompt.adapter.fit import pipe_and_host
from imprompt.core.errors import PromptError
from imprompt.core.images import load_image
from imprompt.core.sheet import contact_sheet
from imprompt.encoders.cache import FeatureCache
from imprompt.encoders.face import FaceEncoder
from imprompt.generation.attach import attach
from imprompt.generation.features import EncoderSource
from imprompt.generation.generate import generate
from imprompt.generation.request import Request
from imprompt.prompts.image_prompt import ImagePrompt
from imprompt.training.config import ValidationConfig
from imprompt.training.feedback.validation import undisturbed
from imprompt.training.feedback.visitors import Visitors

CELL = 160  # side of a picture on the sheet, in pixels
IMAGE_ALONE = "image alone"
MOST_LETTERS = 80  # of a text beside a row


@dataclass(frozen=True, eq=False)
class SheetReference:
    """A picture to follow, and what it is followed with.

    Attributes:
        prompt: The picture, or features of it where no encoder is at hand.
        texts: Texts beside which it is tried, besides none at all.
        picture: What the sheet shows; the prompt's own picture by default, if it has one.
    """

    prompt: ImagePrompt
    texts: tuple[str, ...] = ()
    picture: Image.Image | None = None

    def shown(self) -> Image.Image | None:
        """What the sheet shows of it."""
        return (
            load_image(next(iter(self.prompt.images))) if self.picture is None and self.prompt.images else self.picture
        )


@dataclass(frozen=True, kw_only=True)
class SheetPlan:
    """What a sheet shows: rows of references with and without text, columns of weights.

    Attributes:
        references: Top to bottom; each has a row for the image alone and one for each of its texts.
        scales: Weights of the image prompt, left to right.
        steps: Denoising steps.
        guidance_scale: Strength of classifier-free guidance.
        seed: Of every picture, so that only what the labels tell differs.
        size: Side of the pictures in pixels; None leaves it to the pipeline.
    """

    references: tuple[SheetReference, ...]
    scales: tuple[float, ...] = (0.0, 0.5, 1.0)
    steps: int = 30
    guidance_scale: float = 7.5
    seed: int = 0
    size: int | None = None

    def rows(self) -> list[tuple[SheetReference, str]]:
        """Reference and text of each row; the empty text is the image alone."""
        return [(reference, text) for reference in self.references for text in ("", *reference.texts)]


def plan_sheet(config: ValidationConfig, samples: Sequence[SheetReference], *, size: int | None = None) -> SheetPlan:
    """A sheet of the configured references and texts, and of validation samples where there are none.

    Args:
        config: Its `references` go before the samples', its `prompts` before the samples' own captions.
        samples: Some samples that validation holds out, with their captions.
        size: Side of the pictures in pixels.

    Raises:
        PromptError: There are neither references nor samples.
    """
    texts = config.prompts
    references = [SheetReference(ImagePrompt(path), texts or captions_of(samples)) for path in config.references]
    if not references:
        references = [SheetReference(each.prompt, texts or each.texts, each.picture) for each in samples]
    if not references:
        raise PromptError("a contact sheet wants references; give validation.references=[picture.png, ...]")
    return SheetPlan(
        references=tuple(references),
        scales=config.scales,
        steps=config.steps,
        guidance_scale=config.guidance_scale,
        size=size,
    )


def captions_of(samples: Sequence[SheetReference]) -> tuple[str, ...]:
    """The first caption among samples, to try references with that have none of their own."""
    return next((each.texts[:1] for each in samples if each.texts), ())


@dataclass(eq=False)
class SheetPainter:
    """Draws the sheet of a plan, again and again.

    Attributes:
        pipe: The pipeline around the frozen denoiser.
        plan: What is drawn.
        image_encoder: As `attach` takes it; the pipeline's own by default.
        face_encoder: For adapters that read faces; without one, references need features.
        training: The attachment that training computes through; it is left without an image prompt, as it is before
            every step, and stays attached.
        visitors: Models that drawing needs and training does not; None if all are at hand.
        batch_size: Pictures made at once.
    """

    pipe: Any
    plan: SheetPlan
    image_encoder: EncoderSource | None = None
    face_encoder: FaceEncoder | None = None
    training: Attachment | None = None
    visitors: Visitors | None = None
    batch_size: int = 4
    _cache: FeatureCache = field(default_factory=FeatureCache)

    def draw(self, adapter: Adapter) -> Image.Image:
        """The sheet of an adapter as it is now; weights, modes and random numbers are as before afterwards.

        Raises:
            EncoderMismatch: References are pictures, and there is no encoder for them.
            ImageError: One cannot be read, or shows no face where one is wanted.
        """
        requests = self._requests()
        unique = list({key: request for row in requests for key, request in row}.items())
        if self.training is not None:
            self.training.set(None)
        _, host = pipe_and_host(self.pipe)
        present = nullcontext() if self.visitors is None else self.visitors.present()
        with present, undisturbed(adapter, host), _full_precision(next(host.parameters()).device):
            images = attach(
                self.pipe,
                adapter,
                image_encoder=self.image_encoder,
                face_encoder=self.face_encoder,
                cache=self._cache,
            )
            with images:
                results = generate(
                    self.pipe, images, [request for _, request in unique], batch_size=self.batch_size, progress=_silent
                )
        pictures = {key: result.images[0] for (key, _), result in zip(unique, results, strict=True)}
        return self._sheet([[pictures[key] for key, _ in row] for row in requests])

    def _requests(self) -> list[list[tuple[Any, Request]]]:
        """Row by row, what each cell asks for; cells with the same key show the same picture."""
        plan = self.plan
        return [
            [
                ((text, scale, None if scale == 0 else id(reference)), self._request(reference, text, scale))
                for scale in plan.scales
            ]
            for reference, text in plan.rows()
        ]

    def _request(self, reference: SheetReference, text: str, scale: float) -> Request:
        plan = self.plan
        return Request(
            prompt=text,
            image_prompts=[replace(reference.prompt, weight=scale)],
            steps=plan.steps,
            guidance_scale=plan.guidance_scale,
            seed=plan.seed,
            height=plan.size,
            width=plan.size,
        )

    def _sheet(self, pictures: list[list[Image.Image]]) -> Image.Image:
        rows = self.plan.rows()
        return contact_sheet(
            [[reference.shown(), *made] for (reference, _), made in zip(rows, pictures, strict=True)],
            ["reference", *(f"weight {scale:g}" for scale in self.plan.scales)],
            [_short(text) or IMAGE_ALONE for _, text in rows],
            cell=CELL,
        )


def _short(text: str) -> str:
    """A text that fits beside a row."""
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1].rstrip()}…"


def _full_precision(device: torch.device) -> torch.autocast:
    """Everything in the number format it has, also where training computes under autocast."""
    return torch.autocast(device.type, enabled=False)


def _silent(done: int, total: int) -> None:
    """No bar: the run has one."""
