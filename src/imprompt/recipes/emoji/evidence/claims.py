"""The paper's claims (arXiv 2308.06721): its words, what is compared on the embedded model, and a verdict each."""

from collections.abc import Sequence

from imprompt.recipes.emoji.evidence.ablation_claims import adapter_or_finetuning, decoupled_or_concatenated
from imprompt.recipes.emoji.evidence.claim import COMPARABLE, FIDELITY, SPLIT_WORDS, Chart, Claim, rows
from imprompt.recipes.emoji.evidence.judging import CUSTOM_LOOKS, Measured, mark_of
from imprompt.recipes.emoji.evidence.references import SPLITS
from imprompt.recipes.emoji.evidence.shipped import ADAPTERS, WEIGHTS
from imprompt.recipes.emoji.evidence.verdicts import Figure, change, kept, mean


def all_claims(measured: Measured, training_seeds: Sequence[int]) -> list[Claim]:
    """Every claim, the check of the judge last."""
    return [
        decoupled_or_concatenated(measured, training_seeds),
        adapter_or_finetuning(measured, training_seeds),
        fine_or_global(measured),
        *(custom_base(measured, base) for base in CUSTOM_LOOKS),
        structure(measured, "controlnet", "ControlNet", "edges"),
        structure(measured, "t2i", "T2I-Adapter", "colours"),
        image_and_text(measured),
        judge_itself(measured),
    ]


def fine_or_global(measured: Measured) -> Claim:
    """Whether features of every patch are followed closer, and leave less freedom, than one embedding."""
    tests = [
        *(
            Figure(what=f"{measure}: plus less global", interval=change(measured, "global", "plus", measure))
            for measure in FIDELITY
        ),
        Figure(
            what="diversity: plus less global",
            interval=change(measured, "global", "plus", "diversity"),
            above=False,
        ),
    ]
    notes = [
        Figure(
            what=f"{measure}: plus less global{SPLIT_WORDS[split]}",
            interval=change(measured, "global", "plus", measure, split),
        )
        for measure in (*FIDELITY, "diversity")
        for split in SPLITS
    ]
    columns = [(measure, None) for measure in (*FIDELITY, "diversity")]
    return Claim(
        name="fine-grained",
        title="Fine-grained features against global ones",
        sentence="Although the IP-Adapter with finer-grained features can generate more consistent images with image "
        "prompt, it can also learn the spatial structure information, which may reduce the diversity of generated "
        "images.",
        source="section 4.4.2, figure 11",
        compared="The two adapters that ship: `plus` reads every patch, `global` one embedding. `plus` must be more "
        "faithful by both measures, and its pictures of one reference less diverse. Each was trained once; what other "
        "trainings would give is in no interval.",
        rows=rows(measured, ("text", *ADAPTERS), columns),
        ways=[tests],
        sheet=["global", "plus"],
        charts=[],
        notes=notes,
    )


def custom_base(measured: Measured, base: str) -> Claim:
    """Whether adapters follow references on a base that they were not trained on."""
    look = CUSTOM_LOOKS[base].name
    tests = [
        Figure(
            what=f"{measure} above chance kept: {adapter} adapter",
            interval=kept(measured, mark_of(adapter, base), f"{adapter}-{base}", measure, measured.chance[measure]),
            bound=COMPARABLE,
        )
        for adapter in ADAPTERS
        for measure in FIDELITY
    ]
    series = [name for adapter in ADAPTERS for name in (mark_of(adapter, base), f"{adapter}-{base}")]
    how = "all of whose weights were trained on" if base == "finetuned" else "with a LoRA trained on"
    return Claim(
        name=f"base-{base}",
        title="On a fine-tuned base" if base == "finetuned" else "With a LoRA",
        sentence="As we freeze the original diffusion model in the training stage, the IP-Adapter can also be "
        "generalizable to the custom models fine-tuned from SD v1.5 like other adapters (e.g., ControlNet).",
        source="section 4.3.1, figure 4",
        compared=f"The shipped adapters, unchanged, on a base {how} pictures in {look}, without image prompts. "
        f"Pictures are compared with the references in {look}. The mark is what the unchanged base draws, with the "
        f"same colours laid over it. Both adapters must keep {COMPARABLE:.0%} of what it is above chance, by both "
        "measures; the paper names no number.",
        rows=rows(measured, series, [(measure, None) for measure in FIDELITY]),
        ways=[tests],
        sheet=series,
        charts=[],
        notes=[],
    )


def structure(measured: Measured, tool: str, title: str, measure: str) -> Claim:
    """Whether a picture takes its structure from one picture and the rest from another."""
    both, more = f"{tool}-plus", measure == "edges"
    followed = "edges" if more else "colours of 4 x 4 cells"
    tests = [
        Figure(
            what=f"{measure}: both less the image prompt alone",
            interval=change(measured, "plus", both, measure),
            above=more,
        ),
        *(
            Figure(what=f"{name}: both less {title} alone", interval=change(measured, tool, both, name))
            for name in FIDELITY
        ),
    ]
    notes = [
        Figure(what=f"{measure}: both less {title} alone", interval=change(measured, tool, both, measure), above=more),
        *(
            Figure(what=f"{name}: both less the image prompt alone", interval=change(measured, "plus", both, name))
            for name in FIDELITY
        ),
    ]
    return Claim(
        name=tool,
        title=f"With {title}",
        sentence="As our adapter does not change the original network structure, we found that the IP-Adapter is fully "
        "compatible with existing controllable tools.",
        source="section 4.3.2, figures 5 and 6",
        compared=f"{title} follows the {followed} of another reference, the `plus` adapter its own. Together they must "
        f"follow the {followed} closer than the image prompt alone, and the reference closer than {title} alone. What "
        "each gives up to the other is listed beside it.",
        rows=rows(measured, ("plus", tool, both), [(measure, None), *((name, None) for name in FIDELITY)]),
        ways=[tests],
        sheet=["structure", "plus", tool, both],
        charts=[],
        notes=notes,
    )


def image_and_text(measured: Measured) -> Claim:
    """Whether at some weight the text decides the subject and the image the style."""
    level = 1 - 0.05 / len(WEIGHTS)
    series = ["text-other", *(f"{name}-other-{weight}" for name in ADAPTERS for weight in WEIGHTS)]
    measures = ("named", "style", "likeness")
    return Claim(
        name="text",
        title="Image and text together",
        sentence="With the benefit of the decoupled cross-attention strategy, the image prompt can also work well with "
        "the text prompt to achieve multimodal image generation.",
        source="abstract, figure 8",
        compared="The text names another subject, without a word about style; the image is the reference; the weight "
        "of the image prompt goes from 0, the text alone, to 1. At one weight of the `plus` adapter the named subject "
        "must be recognised and the reference's style kept: each above chance, the subject more often than in pictures "
        f"never told its name, the style more often than without the image. This verdict's intervals are of "
        f"{level:.0%}, since there are {len(WEIGHTS)} weights to choose from.",
        rows=rows(measured, [*series, *ADAPTERS], [(measure, None) for measure in measures]),
        ways=[_both_followed(measured, weight, level) for weight in WEIGHTS],
        sheet=["text-other", *(f"plus-other-{weight}" for weight in WEIGHTS)],
        charts=[_over_the_weight(measured, name, measures) for name in ADAPTERS],
        notes=[],
        choices=tuple(f"weight {weight}" for weight in WEIGHTS),
    )


def _both_followed(measured: Measured, weight: float, level: float) -> list[Figure]:
    series, at = f"plus-other-{weight}", f"at {weight}"
    chances = [
        Figure(
            what=f"{measure} {at}",
            interval=mean(measured, series, measure, level=level),
            bound=measured.chance[measure],
        )
        for measure in ("named", "style")
    ]
    controls = (("named", "plus", "pictures never told the name"), ("style", "text-other", "the text alone"))
    return [
        *chances,
        *(
            Figure(what=f"{measure} {at}, less {words}", interval=change(measured, other, series, measure, level=level))
            for measure, other, words in controls
        ),
    ]


def _over_the_weight(measured: Measured, adapter: str, measures: Sequence[str]) -> Chart:
    series = ["text-other", *(f"{adapter}-other-{weight}" for weight in WEIGHTS)]
    curves = {}
    for measure in measures:
        found = [mean(measured, name, measure) for name in series]
        curves[measure] = [interval.mean for interval in found if interval is not None]
    return Chart(f"text-{adapter}", [0.0, *WEIGHTS], curves)


def judge_itself(measured: Measured) -> Claim:
    """Whether the judge knows what it is shown, and knows nothing where there is nothing to know."""
    tests = [
        Figure(what="identified: the reference handed back", interval=mean(measured, "copy", "identified"), bound=0.99),
        Figure(
            what="style: the reference handed back",
            interval=mean(measured, "copy", "style"),
            bound=measured.chance["style"],
        ),
        *(
            Figure(
                what=f"{measure}: plus less the text of another subject",
                interval=change(measured, "text-other", "plus", measure),
            )
            for measure in FIDELITY
        ),
    ]
    columns = [(measure, None) for measure in (*FIDELITY, "style", "named")]
    return Claim(
        name="judge",
        title="The judge itself",
        sentence="The judge must know a reference that is handed back and the style of real pictures, and must find "
        "the reference more often in pictures that saw it than in pictures that did not.",
        source="",
        compared="Real held-out pictures in place of drawn ones; pictures of a text that names another subject, which "
        "know nothing of the reference; and the text that describes the reference in words. Chance is 0.1 of "
        f"`identified` and `named` and 0 of `likeness`; who draws all in the style that is commonest among the "
        f"references has {measured.chance['style']:.3f} of `style`.",
        rows=rows(measured, ("copy", "text-other", "text", *ADAPTERS), columns),
        ways=[tests],
        sheet=["text-other", "text"],
        charts=[],
        notes=[],
    )
