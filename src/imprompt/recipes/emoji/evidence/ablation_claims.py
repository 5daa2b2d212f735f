"""The claims about trainings: decoupled attention against what the paper compares it with, at the same budget."""

from collections.abc import Sequence

from imprompt.recipes.emoji.evidence.ablations import ABLATIONS
from imprompt.recipes.emoji.evidence.claim import COMPARABLE, FIDELITY, SPLIT_WORDS, Claim, Row, rows
from imprompt.recipes.emoji.evidence.judging import Measured
from imprompt.recipes.emoji.evidence.references import SPLITS, HeldOut
from imprompt.recipes.emoji.evidence.training import trained_name
from imprompt.recipes.emoji.evidence.verdicts import Figure, change, kept


def decoupled_or_concatenated(measured: Measured, training_seeds: Sequence[int]) -> Claim:
    """Whether separate attention to the image beats image tokens among the text's."""
    tests = _decoupled_less(measured, "concatenated", "concatenated", training_seeds)
    return Claim(
        name="decoupled",
        title="Decoupled attention against image tokens among the text's",
        sentence="As we can observe, the IP-Adapter not only can generate higher quality images than the simple "
        "adapter, but also can generate more consistent images with image prompts.",
        source="section 4.4.1, figure 10",
        compared="The same projector, trained for the same steps on the same pictures: with keys and values of the "
        "image's own, or with its tokens behind the text's, read by the base's frozen attention. The former "
        "trains more parameters; see the costs. The image is the only prompt. Every difference, on all references and "
        "on each split, must be above 0, in every training. How good pictures look is not measured. "
        f"{_rates('decoupled', 'concatenated')}",
        rows=_ablation_rows(measured, ("decoupled", "concatenated"), training_seeds),
        ways=[tests],
        sheet=[trained_name(kind, training_seeds[0]) for kind in ("decoupled", "concatenated")],
        charts=[],
        notes=[],
    )


def adapter_or_finetuning(measured: Measured, training_seeds: Sequence[int]) -> Claim:
    """Whether an adapter reaches what training the whole denoiser reaches."""
    tests = [
        Figure(
            what=f"{measure} above chance: decoupled over fine-tuned",
            interval=kept(measured, "finetuned", "decoupled", measure, measured.chance[measure]),
            bound=COMPARABLE,
            trainings=_share_of_each_training(measured, "finetuned", "decoupled", measure, training_seeds),
        )
        for measure in FIDELITY
    ]
    notes = _decoupled_less(measured, "finetuned", "fine-tuned", training_seeds)
    return Claim(
        name="finetuning",
        title="An adapter against fine-tuning the whole denoiser",
        sentence="Despite the simplicity of our method, an IP-Adapter with only 22M parameters can achieve comparable "
        "or even better performance to a fully fine-tuned image prompt model.",
        source="abstract, table 1",
        compared="The same adapter, and a denoiser that reads the image's tokens behind the text's and whose weights "
        f"were all trained, for the same steps on the same pictures. Comparable means here {COMPARABLE:.0%} of the "
        "other's figure above chance or more, in every training; the paper names no number. Differences are listed "
        f"below the verdict's figures. {_rates('decoupled', 'finetuned')}",
        rows=_ablation_rows(measured, ("decoupled", "finetuned"), training_seeds),
        ways=[tests],
        sheet=[trained_name(kind, training_seeds[0]) for kind in ("decoupled", "finetuned")],
        charts=[],
        notes=notes,
    )


def _decoupled_less(measured: Measured, kind: str, word: str, training_seeds: Sequence[int]) -> list[Figure]:
    """Decoupled attention less another kind, on all references and on each split."""
    return [
        Figure(
            what=f"{measure}: decoupled less {word}{SPLIT_WORDS[split]}",
            interval=change(measured, kind, "decoupled", measure, split),
            trainings=_each_training(measured, kind, "decoupled", measure, training_seeds, split),
        )
        for measure in FIDELITY
        for split in (None, *SPLITS)
    ]


def _each_training(
    measured: Measured, first: str, second: str, measure: str, seeds: Sequence[int], split: HeldOut | None
) -> tuple[float | None, ...]:
    """Mean difference of each training seed; None where one was not measured."""
    found = (change(measured, trained_name(first, seed), trained_name(second, seed), measure, split) for seed in seeds)
    return tuple(None if interval is None else interval.mean for interval in found)


def _share_of_each_training(
    measured: Measured, mark: str, series: str, measure: str, seeds: Sequence[int]
) -> tuple[float | None, ...]:
    """Share of the mark of each training seed; None where that may be no better than chance."""
    chance = measured.chance[measure]
    pairs = ((trained_name(mark, seed), trained_name(series, seed)) for seed in seeds)
    found = (kept(measured, *pair, measure, chance) for pair in pairs)
    return tuple(None if interval is None else interval.mean for interval in found)


def _rates(*kinds: str) -> str:
    """Peak learning rates in words."""
    told = (f"{ABLATIONS[kind].learning_rate:g} for {ABLATIONS[kind].title}" for kind in kinds)
    return f"Peak learning rates: {'; '.join(told)}."


def _ablation_rows(measured: Measured, kinds: Sequence[str], training_seeds: Sequence[int]) -> list[Row]:
    series = [name for kind in kinds for name in (kind, *(trained_name(kind, seed) for seed in training_seeds))]
    return rows(measured, series, [(measure, split) for measure in FIDELITY for split in (None, *SPLITS)])
