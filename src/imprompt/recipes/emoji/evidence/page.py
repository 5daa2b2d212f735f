"""Words and tables of the page of evidence, in Markdown."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from imprompt.core.markdown import markdown_table
from imprompt.evaluation.intervals import Interval
from imprompt.recipes.emoji.evidence.claim import Chart, Claim
from imprompt.recipes.emoji.evidence.cost_table import CostRow
from imprompt.recipes.emoji.evidence.references import Reference
from imprompt.recipes.emoji.evidence.settings import EvidenceSettings
from imprompt.recipes.emoji.evidence.verdicts import FAILS, FEWEST, HOLDS, UNDECIDED, Figure, together, weakest

MEASURES = {
    "identified": "1 where a picture is nearer to its own reference than to nine other references drawn at random, "
    "else 0",
    "likeness": "cosine to the own reference, less the mean cosine to all other references",
    "diversity": "mean distance (1 less the cosine) between the pictures that the noises give of one reference",
    "style": "1 where a linear probe, fitted on real training pictures, names the reference's style, else 0",
    "named": "1 where a picture is nearer to the training drawings, in all their styles, of the subject that its text "
    "names than to those of nine other subjects, else 0",
    "edges": "correlation of the picture's edges with the edges of another reference, both averaged over 4 x 4 pixels",
    "colours": "mean error of the colours of 4 x 4 cells against those of another reference, of a range of 1",
}


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that the page tells.

    Attributes:
        settings: Of the run.
        references: What was drawn from.
        num_arms: Ways of drawing that were judged.
        claims: With their verdicts.
        chance: What pictures reach that know nothing, by measure.
        costs: Of trainings.
        origin: Commit, machine and versions.
    """

    settings: EvidenceSettings
    references: Sequence[Reference]
    num_arms: int
    claims: list[Claim]
    chance: dict[str, float]
    costs: list[CostRow]
    origin: dict[str, str]


def text(findings: Findings, folder: str) -> str:
    """The whole page.

    Args:
        findings: What it tells.
        folder: Name of the folder of its pictures, beside it.
    """
    parts = [
        "# The paper's claims on the embedded model",
        _introduction(findings),
        _summary(findings.claims),
        _measures(findings.chance),
        *(_section(claim, findings, folder) for claim in findings.claims),
        _costs(findings.costs),
        _what_falls_short(findings.claims),
        _origin(findings),
    ]
    return "\n\n".join(parts) + "\n"


def sheet_name(claim: Claim) -> str:
    """File of a claim's pictures."""
    return f"{claim.name}.png"


def chart_name(chart: Chart) -> str:
    """File of a chart."""
    return f"{chart.name}-chart.png"


def _introduction(findings: Findings) -> str:
    settings, num_references = findings.settings, len(findings.references)
    num_pictures = findings.num_arms * num_references * len(settings.sampling_seeds)
    return (
        "What the IP-Adapter paper (arXiv 2308.06721) says of its method, checked on the embedded model. "
        f"{findings.num_arms} ways of drawing made a picture of each of {num_references} references from each of "
        f"{len(settings.sampling_seeds)} noises, {num_pictures:,} pictures; references and noises are the same for "
        "every way, and no part of the model was trained on the references. They are judged by MobileNetV2 with "
        "ImageNet weights, which had no part in any training. Verdicts follow from the intervals by rules in "
        "`recipes/emoji/evidence/verdicts.py`; this page is written by the program, as a whole: `make evidence`.\n\n"
        "The model draws emoji of 64 x 64 pixels. The verdicts are about this model; of models of other sizes they say "
        "nothing. What is compared in training was trained for "
        f"{settings.training_steps:,} steps of {settings.training_batch_size} pictures, the paper's adapter for a "
        "million of 64; of what ships, each part was trained once. The judge is another network than the teacher of "
        "the model's image encoder, EfficientNet-Lite0, but both learnt ImageNet's classes.\n\n"
        "A claim holds by the bar that stands with it, and the bars differ: a fine-tuned base or a LoRA must leave "
        "nearly all of what the image prompt gives, with ControlNet or T2I-Adapter the picture must only follow each "
        "of the two better than the other alone does."
    )


def _summary(claims: Sequence[Claim]) -> str:
    rows = []
    for claim in claims:
        test = weakest(_best_way(claim))
        rows.append(
            [f"[{claim.title}](#{_anchor(claim.title)})", f"**{claim.verdict}**", f"{test.what}: {_cell(test)}"]
        )
    return "## Summary\n\n" + markdown_table([["claim", "verdict", "the figure on which it hangs"], *rows])


def _measures(chance: dict[str, float]) -> str:
    rows = [[f"`{name}`", words, f"{chance[name]:.3g}" if name in chance else ""] for name, words in MEASURES.items()]
    return (
        "## What is measured\n\n"
        "The judge's features are centred on their mean over pictures of the training split. Figures are means with "
        "intervals of 95 % by the bootstrap over references, then trainings, then noises; differences and shares are "
        "of pairs, of the same reference and noise. A claim holds where the whole interval of every figure that "
        "decides is beyond its bound, does not hold where that of one is wholly on the other side, and else is not "
        f"decided; nothing is decided by fewer than {FEWEST} references. Trainings are too few for an interval of "
        "their own: each is told, and all must agree. Chance of `style` is that of pictures which "
        "are all in the style that is commonest among the references.\n\n"
        + markdown_table([["measure", "of a picture", "chance"], *rows])
    )


def _section(claim: Claim, findings: Findings, folder: str) -> str:
    said = f"> {claim.sentence}" + (f"\n>\n> ({claim.source})" if claim.source else "")
    parts = [
        f"## {claim.title}",
        said,
        claim.compared,
        f"Verdict: **{claim.verdict}**." + _where(claim),
        _figures(claim),
        _tests(claim),
        *([_notes(claim.notes)] if claim.notes else []),
        *(f"![{chart.name}]({folder}/{chart_name(chart)})" for chart in claim.charts),
        f"![{claim.title}]({folder}/{sheet_name(claim)})",
        f"The first references of the list, from the noise {findings.settings.sampling_seeds[0]}; none was chosen.",
    ]
    return "\n\n".join(parts)


def _where(claim: Claim) -> str:
    """In which of several ways a claim holds."""
    if not claim.choices:
        return ""
    found = [name for name, way in zip(claim.choices, claim.ways, strict=True) if together(way) == HOLDS]
    return f" All figures are beyond their bounds at: {', '.join(found) or 'none of them'}."


def _figures(claim: Claim) -> str:
    columns = list(claim.rows[0].figures)
    rows = [[row.title, *(interval_text(row.figures[name]) for name in columns)] for row in claim.rows]
    return markdown_table([["", *columns], *rows])


def _tests(claim: Claim) -> str:
    tests = [test for way in claim.ways for test in way]
    rows = [
        [test.what, _cell(test), f"{'above' if test.above else 'below'} {test.bound:.3g}", test.outcome]
        for test in tests
    ]
    return markdown_table([["what decides", "figure", "wanted", "outcome"], *rows])


def _notes(notes: Sequence[Figure]) -> str:
    return markdown_table([["beside it", "figure"], *([test.what, _cell(test)] for test in notes)])


def _costs(costs: Sequence[CostRow]) -> str:
    head = [
        "",
        "trained parameters",
        "of the denoiser",
        "steps",
        "pictures seen",
        "minutes of arithmetic",
        "seconds a step",
        "operations a step",
        "bytes",
    ]
    rows = [
        [
            row.title,
            f"{row.num_parameters:,}",
            f"{row.share:.1%}",
            _number(row.num_steps, ",.0f"),
            _number(row.num_pictures, ",.0f"),
            _number(row.minutes, ".1f"),
            _number(row.seconds_per_step, ".3f"),
            _number(row.operations_per_step, ".2e"),
            f"{row.num_bytes:,}",
        ]
        for row in costs
    ]
    return (
        "## Costs\n\n"
        "The paper's adapter has 22 M trained parameters beside a denoiser of 860 M. Minutes and seconds are of "
        "arithmetic alone, a processor's own or an accelerator's, measured on some steps after each training; "
        "operations are those of its products of matrices and its convolutions, forward and backward; bytes are those "
        "of what has to be kept of a model, in half precision. A dash stands for what is not known. These are counts, "
        "without a verdict.\n\n" + markdown_table([head, *rows])
    )


def _what_falls_short(claims: Sequence[Claim]) -> str:
    lines = []
    for outcome in (FAILS, UNDECIDED):
        for claim in claims:
            if claim.verdict == outcome:
                figures = "; ".join(f"{test.what}: {_cell(test)}" for test in _short_of(claim))
                lines.append(f"* {claim.title}: {outcome}. {figures}.")
    return "## What does not hold\n\n" + ("\n".join(lines) or "Every claim above holds by the rules above.")


def _best_way(claim: Claim) -> list[Figure]:
    """The way that comes closest to holding."""
    order = (FAILS, UNDECIDED, HOLDS)
    return max(claim.ways, key=lambda way: (order.index(together(way)), sum(test.outcome == HOLDS for test in way)))


def _short_of(claim: Claim) -> list[Figure]:
    return [test for test in _best_way(claim) if test.outcome != HOLDS]


def _origin(findings: Findings) -> str:
    settings = {
        name.replace("_", " "): str(value)
        for name, value in asdict(findings.settings).items()
        if name not in ("bundle", "work")
    }
    rows = [
        *([name, words] for name, words in findings.origin.items()),
        *([name, told] for name, told in settings.items()),
    ]
    return "## How this page was made\n\n" + markdown_table([["", ""], *rows])


def interval_text(interval: Interval | None) -> str:
    """Mean and interval; a dash where there is none."""
    return "–" if interval is None else f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _cell(test: Figure) -> str:
    """A figure, and that of each training."""
    each = ", ".join(_number(figure, ".3f") for figure in test.trainings)
    return interval_text(test.interval) + (f"; trainings {each}" if each else "")


def _number(value: int | float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _anchor(title: str) -> str:
    """As Markdown's readers make it of a heading."""
    kept = "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -_")
    return kept.replace(" ", "-")
