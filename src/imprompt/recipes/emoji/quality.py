"""How good is the embedded model? Measured on held-out pictures by a judge that had no part in its training.

Three questions, each with an answer of 0 or 1 a picture:

* image alone: is what comes out nearer to its reference than to nine other references?
* style: with a text that names another subject, does the style probe recognise the reference's style?
* text alone: is what comes out nearer to its subject than to nine other subjects of the training set?
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from imprompt.emoji.bundle import ADAPTER_FILES, AdapterName
from imprompt.emoji.styles import STYLES
from imprompt.evaluation.intervals import Interval, bootstrap
from imprompt.generation.pipelines import default_device
from imprompt.recipes.emoji import dataset
from imprompt.recipes.emoji.base import base_pipeline
from imprompt.recipes.emoji.captions import full_caption
from imprompt.recipes.emoji.evidence.drawing import noise_seed
from imprompt.recipes.emoji.evidence.judging import drawings, pixels, recognised, training_pictures
from imprompt.recipes.emoji.evidence.references import HeldOut, Reference, described, one_of_each_subject
from imprompt.recipes.emoji.evidence.sampling import sample
from imprompt.recipes.emoji.evidence.settings import DrawingSettings, NumberFormat
from imprompt.recipes.emoji.evidence.shipped import Setting, drawer
from imprompt.recipes.emoji.judge import Verdict, judge, style_probe, ten_way

SPLITS: dict[HeldOut, str] = {"held_out_subject": "held-out subjects", "held_out_pair": "held-out pairs"}


@dataclass(frozen=True, kw_only=True)
class QualityConfig(DrawingSettings):
    """What is measured and how.

    Attributes:
        num_pictures: Pictures for each question.
        num_steps: Of the sampler.
        device: Where to compute; the accelerator if there is one.
        autocast: Number format of the arithmetic; by default that of the weights, single precision.
        style_weight: Weight of the image prompt where a text names another subject.
        seed: Of the choice of pictures, of the noise and of the candidates.
    """

    num_pictures: int = 128
    num_steps: int = 20
    device: str = field(default_factory=lambda: str(default_device()))
    autocast: NumberFormat = "no"
    style_weight: float = 0.6
    seed: int = 0


@dataclass(frozen=True)
class Figure:
    """One measured share of pictures.

    Attributes:
        question: One of the three, or how often the style probe is right itself.
        setting: Whose pictures, of which split.
        share: Mean over subjects, with an interval over them: pictures of one subject are not independent.
        chance: What is right without looking: one in ten, or always the commonest style of the references.
    """

    question: str
    setting: str
    share: Interval
    chance: float

    def as_row(self) -> str:
        """The figure as a row of a Markdown table."""
        share = self.share.told(".1%").replace("%", " %")
        numbers = f"{self.share.num_values} | {self.share.num_groups}"
        return f"| {self.question} | {self.setting} | {share} | {100 * self.chance:.1f} % | {numbers} |"


TABLE_HEAD = "| question | setting | share, 95 % interval | chance | pictures | subjects |\n|---|---|---|---|---|---|"


@dataclass(frozen=True, eq=False)
class HeldOutPictures:
    """Real pictures of one split and what the judge sees in them.

    Attributes:
        title: Of the split.
        references: The pictures.
        verdict: The judge's view of them.
    """

    title: str
    references: list[Reference]
    verdict: Verdict

    @cached_property
    def chance_of_style(self) -> float:
        """What drawing everything in the commonest style has."""
        styles = torch.tensor([one.style for one in self.references])
        return max(self.over((styles == style).float()).mean for style in range(len(STYLES)))

    def over(self, hits: Float[Tensor, " pictures"]) -> Interval:
        """Share of hits among pictures drawn from the references."""
        return _over([one.subject for one in self.references], hits)


@dataclass(frozen=True, eq=False)
class Standard:
    """What the judge has learnt of training pictures.

    Attributes:
        mean: Of their features.
        probe: Recognises their styles.
    """

    mean: Float[Tensor, " width"]
    probe: nn.Module


def measure(config: QualityConfig) -> list[Figure]:
    """All figures, sampled from the bundle. Minutes on a CPU."""
    pictures = dataset.load()
    held_out = [_held_out(pictures, split, config) for split in SPLITS]
    training, styles = training_pictures(pictures, seed=config.seed)
    seen = judge(training)
    standard = Standard(seen.subject.mean(dim=0), style_probe(seen.style, styles, len(STYLES)))
    num_drawn = 1 + 2 * len(ADAPTER_FILES) * len(held_out)
    drawn = tqdm(_of_drawn(pictures, held_out, standard, config), total=num_drawn, desc="questions", unit="question")
    return [*drawn, *(_judge_itself(each, standard) for each in held_out)]


def table(figures: Sequence[Figure]) -> str:
    """The figures as Markdown."""
    return "\n".join([TABLE_HEAD, *(figure.as_row() for figure in figures)])


def _held_out(pictures: dataset.EmojiPictures, split: HeldOut, config: QualityConfig) -> HeldOutPictures:
    random = np.random.default_rng(config.seed)
    chosen = random.permutation(pictures.split(split))[: config.num_pictures]
    references = described(pictures, {split: chosen}, random)
    return HeldOutPictures(SPLITS[split], references, judge(pixels(references)))


def _of_drawn(
    pictures: dataset.EmojiPictures, held_out: Sequence[HeldOutPictures], standard: Standard, config: QualityConfig
) -> Iterator[Figure]:
    yield _text_alone(pictures, standard, config)
    for name in ADAPTER_FILES:
        for each in held_out:
            yield _image_alone(name, each, standard, config)
            yield _style_kept(name, each, standard, config)


def _text_alone(pictures: dataset.EmojiPictures, standard: Standard, config: QualityConfig) -> Figure:
    """Compared with a subject's drawings on average over their styles, so that the style alone gives nothing away."""
    members = one_of_each_subject(pictures, pictures.split("train"), np.random.default_rng(config.seed))
    numbers = members[: config.num_pictures].tolist()
    subjects = [pictures.subject_of(number) for number in numbers]
    styles = (STYLES[pictures.styles[number]] for number in numbers)
    texts = [full_caption(subject, style) for subject, style in zip(subjects, styles, strict=True)]
    pipe = base_pipeline(bundle=config.bundle).to(config.device)
    seen = judge(sample(pipe, config, texts, [noise_seed(config.seed, number) for number in numbers])).subject
    labels = [subject.label for subject in subjects]
    candidates = drawings(pictures, labels, judge)
    hits = ten_way(seen - standard.mean, candidates - standard.mean, seed=config.seed)
    return Figure("text alone: subject found among ten", "training subjects", _over(labels, hits), 0.1)


def _image_alone(name: AdapterName, held_out: HeldOutPictures, standard: Standard, config: QualityConfig) -> Figure:
    seen = _drawn(Setting(adapter=name), held_out, config).subject
    hits = ten_way(seen - standard.mean, held_out.verdict.subject - standard.mean, seed=config.seed)
    question, setting = "image alone: reference found among ten", f"{name} adapter, {held_out.title}"
    return Figure(question, setting, held_out.over(hits), 0.1)


def _style_kept(name: AdapterName, held_out: HeldOutPictures, standard: Standard, config: QualityConfig) -> Figure:
    setting = Setting(adapter=name, weight=config.style_weight, text="other")
    hits = recognised(standard.probe, _drawn(setting, held_out, config), held_out.references)
    question = f"text names another subject (weight {config.style_weight}): style recognised"
    return Figure(question, f"{name} adapter, {held_out.title}", held_out.over(hits), held_out.chance_of_style)


def _judge_itself(held_out: HeldOutPictures, standard: Standard) -> Figure:
    hits = recognised(standard.probe, held_out.verdict, held_out.references)
    question, setting = "the probe itself: style recognised", f"real pictures, {held_out.title}"
    return Figure(question, setting, held_out.over(hits), held_out.chance_of_style)


def _drawn(setting: Setting, held_out: HeldOutPictures, config: QualityConfig) -> Verdict:
    """What the judge sees in what a setting draws from held-out pictures."""
    draw = drawer(base_pipeline(bundle=config.bundle).to(config.device), config, setting)
    return judge(draw(held_out.references, [noise_seed(config.seed, one.number) for one in held_out.references]))


def _over(subjects: Sequence[str], hits: Float[Tensor, " pictures"]) -> Interval:
    """Share of hits, with an interval over subjects."""
    places = [(subject, number) for number, subject in enumerate(subjects)]
    return bootstrap(hits.tolist(), places)
