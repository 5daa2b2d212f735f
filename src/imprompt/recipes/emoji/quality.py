"""How good is the embedded model? Measured on held-out pictures by a judge that had no part in its training.

Three questions, each with an answer of 0 or 1 a picture:

* image alone: is what comes out nearer to its reference than to nine other references?
* style: with a text that names another subject, does the style probe recognise the reference's style?
* text alone: is what comes out nearer to its subject than to nine other subjects of the training set?
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from imprompt.adapter.checkpoint import load_adapter
from imprompt.emoji.bundle import ADAPTER_FILES
from imprompt.emoji.styles import STYLES
from imprompt.generation.attach import attach
from imprompt.generation.pipelines import load_pipeline
from imprompt.prompts.image_prompt import ImagePrompt
from imprompt.recipes.emoji import dataset
from imprompt.recipes.emoji.augment import to_tensor
from imprompt.recipes.emoji.captions import full_caption
from imprompt.recipes.emoji.judge import Verdict, judge, style_probe, ten_way

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """What is measured and how.

    Attributes:
        bundle: folder of the model.
        num_pictures: pictures for each question.
        num_steps: of the sampler.
        guidance_scale: classifier-free guidance.
        style_weight: weight of the image prompt where a text names another subject.
        batch_size: pictures sampled together.
        seed: of the choice of pictures, of the noise and of the candidates.
    """

    bundle: Path
    num_pictures: int = 256
    num_steps: int = 20
    guidance_scale: float = 3.0
    style_weight: float = 0.6
    batch_size: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Figure:
    """One measured share: how many pictures of how many, and what chance would give."""

    question: str
    setting: str
    share: float
    num_pictures: int
    chance: float

    @property
    def margin(self) -> float:
        """Half of the 95 % interval of a share of independent pictures."""
        return 1.96 * math.sqrt(self.share * (1 - self.share) / self.num_pictures)

    def as_row(self) -> str:
        """The figure as a row of a Markdown table."""
        share, chance = f"{100 * self.share:.1f} % ± {100 * self.margin:.1f}", f"{100 * self.chance:.1f} %"
        return f"| {self.question} | {self.setting} | {share} | {chance} | {self.num_pictures} |"


TABLE_HEAD = "| question | setting | share | chance | pictures |\n|---|---|---|---|---|"


@dataclass(frozen=True)
class References:
    """Real pictures and what the judge sees in them.

    Attributes:
        images: the pictures.
        styles: their styles.
        verdict: the judge's view of them.
        labels: what they show.
        captions: the same with the style's word.
    """

    images: UInt8[Tensor, "pictures 3 height width"]
    styles: Int[Tensor, " pictures"]
    verdict: Verdict
    labels: list[str]
    captions: list[str]


def measure(config: QualityConfig) -> list[Figure]:
    """All figures, sampled from the bundle. Minutes on a CPU."""
    pictures = dataset.load()
    held_out = {
        "held-out subjects": _references(pictures, ("held_out_subject",), config),
        "held-out pairs": _references(pictures, ("held_out_pair",), config),
    }
    training = _references(pictures, ("train",), config, num_pictures=1500)
    probe = style_probe(training.verdict.style, training.styles, len(STYLES))
    pipe = load_pipeline(config.bundle)
    pipe.set_progress_bar_config(disable=True)
    figures = [_text_alone(pipe, training, config)]
    for name, file in ADAPTER_FILES.items():
        with attach(pipe, load_adapter(config.bundle / "adapters" / file)) as images:
            for split, references in held_out.items():
                setting = f"{name} adapter, {split}"
                figures.append(_image_alone(pipe, images, references, training, setting, config))
                figures.append(_style_kept(pipe, images, references, training, (probe, setting), config))
    return [*figures, *_judge_itself(held_out, probe)]


def table(figures: Sequence[Figure]) -> str:
    """The figures as Markdown."""
    return "\n".join([TABLE_HEAD, *(figure.as_row() for figure in figures)])


def as_json(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """The figures as plain data."""
    return [asdict(figure) for figure in figures]


def _references(
    pictures: dataset.EmojiPictures, splits: tuple[Any, ...], config: QualityConfig, num_pictures: int | None = None
) -> References:
    members = np.random.default_rng(config.seed).permutation(pictures.split(*splits))
    members = members[: num_pictures or config.num_pictures]
    images = to_tensor(pictures)[torch.from_numpy(members)]
    subjects = [pictures.subject_of(index) for index in members]
    styles = pictures.styles[members]
    return References(
        images=images,
        styles=torch.from_numpy(styles),
        verdict=judge(images),
        labels=[subject.label for subject in subjects],
        captions=[full_caption(subject, STYLES[style]) for subject, style in zip(subjects, styles, strict=True)],
    )


def _text_alone(pipe: Any, training: References, config: QualityConfig) -> Figure:
    chosen = _distinct(training.labels)[: config.num_pictures]
    prompts = [training.captions[index] for index in chosen]
    seen = judge(_sample(pipe, prompts, config, "text alone")).subject
    drawn = torch.stack([_drawings_of(training, training.labels[index]) for index in chosen])
    hits = ten_way(*_centred(training, seen, drawn), seed=config.seed)
    return Figure("text alone: subject found among ten", "training subjects", hits.mean().item(), len(hits), 0.1)


def _image_alone(
    pipe: Any, images: Any, references: References, training: References, setting: str, config: QualityConfig
) -> Figure:
    pictures = _sample(
        pipe,
        [""] * len(references.images),
        config,
        f"image alone: {setting}",
        before=lambda part: images.set(rows=[[ImagePrompt(image)] for image in _as_pil(references.images[part])]),
    )
    hits = ten_way(
        *_centred(training, judge(pictures).subject, references.verdict.subject),
        seed=config.seed,
    )
    return Figure("image alone: reference found among ten", setting, hits.mean().item(), len(hits), 0.1)


def _style_kept(
    pipe: Any,
    images: Any,
    references: References,
    training: References,
    probe_and_setting: tuple[nn.Module, str],
    config: QualityConfig,
) -> Figure:
    probe, setting = probe_and_setting
    prompts = _other_labels(references, training, config.seed)
    pictures = _sample(
        pipe,
        prompts,
        config,
        f"style kept: {setting}",
        before=lambda part: images.set(
            rows=[[ImagePrompt(image, weight=config.style_weight)] for image in _as_pil(references.images[part])]
        ),
    )
    hits = (probe(judge(pictures).style).argmax(dim=1) == references.styles).float()
    question = f"text names another subject (weight {config.style_weight}): style recognised"
    return Figure(question, setting, hits.mean().item(), len(hits), 1 / len(STYLES))


def _judge_itself(held_out: dict[str, References], probe: nn.Module) -> list[Figure]:
    figures = []
    for split, references in held_out.items():
        hits = (probe(references.verdict.style).argmax(dim=1) == references.styles).float()
        setting = f"real pictures, {split}"
        figures.append(
            Figure("the probe itself: style recognised", setting, hits.mean().item(), len(hits), 1 / len(STYLES))
        )
    return figures


def _sample(
    pipe: Any,
    prompts: Sequence[str],
    config: QualityConfig,
    title: str,
    before: Callable[[slice], None] | None = None,
) -> UInt8[Tensor, "pictures 3 height width"]:
    parts = []
    for part in tqdm(list(_slices(len(prompts), config.batch_size)), desc=title, unit="batch"):
        if before is not None:
            before(part)
        seeds = (config.seed * 100_000 + row for row in range(part.start, part.stop))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        sampled = pipe(
            list(prompts[part]),
            num_inference_steps=config.num_steps,
            guidance_scale=config.guidance_scale,
            generator=generators,
            output_type="np",
        ).images
        parts.append(torch.from_numpy(np.round(sampled * 255).astype(np.uint8)).permute(0, 3, 1, 2))
    return torch.cat(parts)


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _as_pil(images: UInt8[Tensor, "pictures 3 height width"]) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


def _centred(
    training: References, *features: Float[Tensor, "pictures width"]
) -> tuple[Float[Tensor, "pictures width"], ...]:
    mean = training.verdict.subject.mean(dim=0)
    return tuple(part - mean for part in features)


def _drawings_of(training: References, label: str) -> Float[Tensor, " width"]:
    """What the judge sees in a subject on average over its styles, so that the style alone gives nothing away."""
    return training.verdict.subject[torch.tensor([other == label for other in training.labels])].mean(dim=0)


def _distinct(labels: Sequence[str]) -> list[int]:
    """First position of every label."""
    first: dict[str, int] = {}
    for index, label in enumerate(labels):
        first.setdefault(label, index)
    return list(first.values())


def _other_labels(references: References, training: References, seed: int) -> list[str]:
    """For every reference the label of another subject of the training set, without a word about style."""
    labels = [training.labels[index] for index in _distinct(training.labels)]
    order = np.random.default_rng(seed).permutation(len(labels))
    candidates = [labels[index] for index in order]
    chosen = []
    for row, label in enumerate(references.labels):
        candidate = candidates[row % len(candidates)]
        chosen.append(candidate if candidate != label else candidates[(row + 1) % len(candidates)])
    return chosen
