"""What an independent judge sees in the pictures of every arm: values a picture, from which intervals are made.

Everything that pictures are compared with is real: the references, and pictures of the training split, on whose mean
the judge's features are centred. Nothing is taken from the pictures that are judged.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imprompt.core.files import atomic_write
from imprompt.emoji.conditions import edge_maps
from imprompt.emoji.styles import STYLES
from imprompt.evaluation.intervals import Place
from imprompt.evaluation.mobilenet import JUDGE_SIZE, PACKAGE
from imprompt.recipes.emoji import custom
from imprompt.recipes.emoji.augment import to_tensor
from imprompt.recipes.emoji.dataset import EmojiPictures
from imprompt.recipes.emoji.evidence.ablations import ABLATIONS
from imprompt.recipes.emoji.evidence.measures import colour_errors, diversities, edge_correlations, likenesses
from imprompt.recipes.emoji.evidence.references import HeldOut, Reference
from imprompt.recipes.emoji.evidence.settings import EvidenceSettings
from imprompt.recipes.emoji.evidence.shipped import ADAPTERS, shipped_arms, structure_of
from imprompt.recipes.emoji.evidence.training import trained_name
from imprompt.recipes.emoji.judge import Verdict, style_probe, ten_way
from imprompt.recipes.emoji.looks import Look

Pictures: TypeAlias = UInt8[Tensor, "_pictures 3 _height _width"]
Sees: TypeAlias = Callable[[Pictures], Verdict]
Drawn: TypeAlias = Callable[[str, int], Pictures]
"""Pictures of an arm from a noise, in the order of the references."""

KINDS = tuple(ABLATIONS)
"""Those of ablations; the arm of each training is called as `trained_name` calls it."""

CUSTOM_LOOKS: dict[str, Look] = {
    "finetuned": custom.default_config("finetune").look,
    "lora": custom.default_config("lora").look,
}
"""Look of what each custom base draws, by the end of its arms' names."""

CHANCE = {"identified": 0.1, "named": 0.1, "style": 1 / len(STYLES), "likeness": 0.0}
"""What pictures reach that know nothing of what they are measured by; `style`, where all styles are as common."""

NUM_TRAINING = 1500
"""Pictures of the training split for the mean and the style probe; a run on few references looks at fewer."""

NUM_IN_LOOK = 300
"""How many of these are looked at in each other look, for the mean alone."""


@dataclass(frozen=True)
class JudgedArm:
    """What is judged, and how.

    Attributes:
        name: Of the series of values.
        title: In tables.
        drawn: Name of the arm whose pictures these are; None hands the references back.
        look: In which references are compared; None as they are.
        laid: Whether the look is laid over the pictures: what an unchanged base reaches in it.
    """

    name: str
    title: str
    drawn: str | None
    look: Look | None = None
    laid: bool = False


def judged_arms(settings: EvidenceSettings) -> list[JudgedArm]:
    """The references handed back, what ships, its marks in the looks of the custom bases, and the ablations."""
    shipped = shipped_arms()
    titles = {arm.name: arm.title for arm in shipped}
    custom_bases = {f"{adapter}-{base}": look for adapter in ADAPTERS for base, look in CUSTOM_LOOKS.items()}
    marks = [
        JudgedArm(mark_of(adapter, base), f"{titles[adapter]}, {look.name} laid over", adapter, look, laid=True)
        for adapter in ADAPTERS
        for base, look in CUSTOM_LOOKS.items()
    ]
    ablations = [
        JudgedArm(trained_name(kind, seed), f"{ablation.title}, training seed {seed}", trained_name(kind, seed))
        for kind, ablation in ABLATIONS.items()
        for seed in settings.training_seeds
    ]
    return [
        JudgedArm("copy", "the reference handed back", None),
        *(JudgedArm(arm.name, arm.title, arm.name, custom_bases.get(arm.name)) for arm in shipped),
        *marks,
        *ablations,
    ]


def mark_of(adapter: str, base: str) -> str:
    """Name of the series that a custom base is measured by."""
    return f"{adapter}-as-{base}"


def shown(judged: JudgedArm, references: Sequence[Reference], drawn: Drawn, seed: int) -> Pictures:
    """The pictures as they are judged."""
    pictures = pixels(references) if judged.drawn is None else drawn(judged.drawn, seed)
    return judged.look(pictures) if judged.look is not None and judged.laid else pictures


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """Values of every series.

    Attributes:
        series: By series and measure, at places: the reference's number, for a kind of ablation the training's seed,
            and the noise's where the measure has one for each.
        splits: Split of each reference, by number.
        titles: Of the series, in tables.
        chance: What pictures reach that know nothing; of `style` the most that the same style everywhere reaches.
    """

    series: dict[str, dict[str, dict[Place, float]]] = field(default_factory=dict)
    splits: dict[int, HeldOut] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=CHANCE.copy)

    def values(self, series: str, measure: str, split: HeldOut | None = None) -> dict[Place, float]:
        """Values at places; of the references of one split or of all. Empty where there are none."""
        found = self.series.get(series, {}).get(measure, {})
        return {
            place: value
            for place, value in found.items()
            if split is None or self.splits[place[0]] == split  # pyright: ignore[reportArgumentType]
        }


def measure(
    settings: EvidenceSettings, references: Sequence[Reference], pictures: EmojiPictures, drawn: Drawn, sees: Sees
) -> Measured:
    """Judge the pictures of every arm from every noise.

    Args:
        settings: Which noises and trainings there are.
        references: What was drawn from.
        pictures: The data set, of which the training split is read.
        drawn: The pictures.
        sees: The judge.
    """
    few = NUM_TRAINING if settings.num_references is None else 100 * settings.num_references
    standard = Standard.of(references, pictures, sees, num_training=min(few, NUM_TRAINING))
    arms = judged_arms(settings)
    series = {arm.name: _values(arm, settings, standard, drawn) for arm in arms}
    pooled = {kind: _pooled(series, kind, settings.training_seeds) for kind in KINDS}
    titles = {kind: f"{ablation.title}, all trainings" for kind, ablation in ABLATIONS.items()}
    return Measured(
        series={**series, **pooled},
        splits={reference.number: reference.split for reference in references},
        titles={**{arm.name: arm.title for arm in arms}, **titles},
        chance={**CHANCE, "style": styles_of(references).bincount().max().item() / len(references)},
    )


def remembering(sees: Sees, folder: Path) -> Sees:
    """A judge that looks at the same pictures only once: what it saw lies in a folder, by the hash of the pictures."""

    def look(pictures: Pictures) -> Verdict:
        digest = hashlib.sha256(f"{PACKAGE} {JUDGE_SIZE} {tuple(pictures.shape)}".encode())
        digest.update(pictures.contiguous().numpy().tobytes())
        file = folder / f"{digest.hexdigest()[:32]}.safetensors"
        if not file.exists():
            verdict = sees(pictures)
            parts = {"subject": verdict.subject.half().contiguous(), "style": verdict.style.half().contiguous()}
            with atomic_write(file) as path:
                save_file(parts, path)
        parts = load_file(file)
        return Verdict(parts["subject"].float(), parts["style"].float())

    return look


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale:
    """What features of pictures are compared with, in one look.

    Attributes:
        mean: Of the features of training pictures.
        references: Centred features of the references.
    """

    mean: Float[Tensor, " width"]
    references: Float[Tensor, "references width"]

    @classmethod
    def of(cls, references: Pictures, training: Pictures, sees: Sees, look: Look | None) -> "Scale":
        """Look at references and training pictures, in a look or as they are."""
        features = [sees(part if look is None else look(part)).subject for part in (references, training)]
        mean = features[1].mean(dim=0)
        return cls(mean=mean, references=features[0] - mean)


@dataclass(frozen=True, kw_only=True, eq=False)
class Standard:
    """What pictures are judged by.

    Attributes:
        references: In the order of the pictures.
        sees: The judge.
        plain: Comparison with the references as they are.
        looks: The same in the looks of the custom bases, by name.
        named: Centred features of the training drawings of the subject that each reference's text names.
        probe: Recognises styles.
        structure: Pictures whose edges and colours each reference's picture is to have.
    """

    references: Sequence[Reference]
    sees: Sees
    plain: Scale
    looks: dict[str, Scale]
    named: Float[Tensor, "references width"]
    probe: nn.Module
    structure: Pictures

    @classmethod
    def of(
        cls, references: Sequence[Reference], pictures: EmojiPictures, sees: Sees, *, num_training: int = NUM_TRAINING
    ) -> "Standard":
        """Look at what is real."""
        training, styles = training_pictures(pictures, num_training)
        own = pixels(references)
        plain = Scale.of(own, training, sees, None)
        return cls(
            references=references,
            sees=sees,
            plain=plain,
            looks={look.name: Scale.of(own, training[:NUM_IN_LOOK], sees, look) for look in CUSTOM_LOOKS.values()},
            named=drawings(pictures, [reference.other for reference in references], sees) - plain.mean,
            probe=style_probe(sees(training).style, styles, len(STYLES)),
            structure=pixels(structure_of(references)),
        )

    def scale(self, look: Look | None) -> Scale:
        """Comparison in a look."""
        return self.plain if look is None else self.looks[look.name]


def training_pictures(
    pictures: EmojiPictures, number: int = NUM_TRAINING, seed: int = 0
) -> tuple[Pictures, Int[Tensor, " pictures"]]:
    """Some of the training split, and their styles."""
    members = np.random.default_rng(seed).permutation(pictures.split("train"))[:number]
    return to_tensor(pictures)[torch.from_numpy(members)], torch.from_numpy(pictures.styles[members])


def drawings(pictures: EmojiPictures, labels: Sequence[str], sees: Sees) -> Float[Tensor, "labels width"]:
    """What the judge sees in the training drawings of subjects, on average over styles, which thus tell nothing."""
    members: dict[str, list[int]] = {label: [] for label in sorted(set(labels))}
    for index in pictures.split("train").tolist():
        members.get(pictures.subject_of(index).label, []).append(index)
    numbers = [index for indices in members.values() for index in indices]
    features = iter(
        sees(to_tensor(pictures)[torch.tensor(numbers)]).subject.split([len(row) for row in members.values()])
    )
    means = {label: next(features).mean(dim=0) for label in members}
    return torch.stack([means[label] for label in labels])


def _values(
    arm: JudgedArm, settings: EvidenceSettings, standard: Standard, drawn: Drawn
) -> dict[str, dict[Place, float]]:
    seeds = settings.sampling_seeds if arm.drawn is not None else settings.sampling_seeds[:1]
    numbers = [reference.number for reference in standard.references]
    values: dict[str, dict[Place, float]] = {}
    features = []
    for seed in seeds:
        pictures = shown(arm, standard.references, drawn, seed)
        verdict = standard.sees(pictures)
        features.append(verdict.subject - standard.scale(arm.look).mean)
        for name, column in _of_each(arm, standard, pictures, verdict, seed).items():
            places: Iterable[Place] = ((number, seed) for number in numbers)
            values.setdefault(name, {}).update(zip(places, column.tolist(), strict=True))
    if len(seeds) > 1:
        column = diversities(torch.stack(features))
        values["diversity"] = {(number,): value for number, value in zip(numbers, column.tolist(), strict=True)}
    return values


def styles_of(references: Sequence[Reference]) -> Int[Tensor, " references"]:
    """Numbers of their styles."""
    return torch.tensor([reference.style for reference in references])


def recognised(probe: nn.Module, verdict: Verdict, references: Sequence[Reference]) -> Float[Tensor, " references"]:
    """Whether the probe finds each reference's style in what was drawn from it: 0 or 1."""
    return (probe(verdict.style).argmax(dim=1) == styles_of(references)).float()


def _of_each(
    arm: JudgedArm, standard: Standard, pictures: Pictures, verdict: Verdict, seed: int
) -> dict[str, Float[Tensor, " pictures"]]:
    """Values of each picture; the nine others that it is compared with are the same in every arm."""
    scale = standard.scale(arm.look)
    features = verdict.subject - scale.mean
    return {
        "identified": ten_way(features, scale.references, seed=seed),
        "likeness": likenesses(features, scale.references),
        "style": recognised(standard.probe, verdict, standard.references),
        "named": ten_way(verdict.subject - standard.plain.mean, standard.named, seed=seed),
        "edges": edge_correlations(pictures, edge_maps(standard.structure)),
        "colours": colour_errors(pictures, standard.structure),
    }


def _pooled(
    series: dict[str, dict[str, dict[Place, float]]], kind: str, training_seeds: Sequence[int]
) -> dict[str, dict[Place, float]]:
    """Values of all trainings of a kind, each training's seed nested in the reference."""
    pooled: dict[str, dict[Place, float]] = {}
    for training_seed in training_seeds:
        for name, column in series[trained_name(kind, training_seed)].items():
            moved: dict[Place, float] = {
                (place[0], training_seed, *place[1:]): value for place, value in column.items()
            }
            pooled.setdefault(name, {}).update(moved)
    return pooled


def pixels(references: Sequence[Reference]) -> Pictures:
    """Pictures of references, channels first."""
    return torch.from_numpy(np.stack([reference.pixels for reference in references])).permute(0, 3, 1, 2).contiguous()
