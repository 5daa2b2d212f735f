"""What a claim is: the paper's words, what is compared on the embedded model, its figures and its verdict."""

from collections.abc import Sequence
from dataclasses import dataclass

from imprompt.evaluation.intervals import Interval
from imprompt.recipes.emoji.evidence.judging import Measured
from imprompt.recipes.emoji.evidence.references import HeldOut
from imprompt.recipes.emoji.evidence.verdicts import Figure, Outcome, anywhere, mean, together

COMPARABLE = 0.9
"""Share of another model's figure from which a figure counts as comparable, and as kept; the paper names none."""

FIDELITY = ("identified", "likeness")
SPLIT_WORDS: dict[HeldOut | None, str] = {
    None: "",
    "held_out_subject": ", held-out subjects",
    "held_out_pair": ", held-out pairs",
}


@dataclass(frozen=True)
class Row:
    """Figures of one series, by the title of their column; None where one was not measured."""

    title: str
    figures: dict[str, Interval | None]


@dataclass(frozen=True)
class Chart:
    """Figures over the weight of the image prompt."""

    name: str
    places: list[float]
    curves: dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim and what became of it.

    Attributes:
        name: Of its files.
        title: Of its section.
        sentence: The paper's words, or what must be so for the rest to mean anything.
        source: Where the paper says so; empty where it does not.
        compared: What is compared, and what must hold.
        rows: Figures.
        ways: Tests; the claim holds where all tests of one way hold.
        sheet: Series whose pictures are shown.
        charts: Curves, where there are any.
        notes: Further figures that decide nothing.
        choices: Names of the ways, where there are several.
    """

    name: str
    title: str
    sentence: str
    source: str
    compared: str
    rows: list[Row]
    ways: list[list[Figure]]
    sheet: list[str]
    charts: list[Chart]
    notes: list[Figure]
    choices: tuple[str, ...] = ()

    @property
    def verdict(self) -> Outcome:
        """What follows from the intervals."""
        return together(self.ways[0]) if len(self.ways) == 1 else anywhere(self.ways)


def rows(measured: Measured, series: Sequence[str], columns: Sequence[tuple[str, HeldOut | None]]) -> list[Row]:
    """Means of each series: one row a series, one column a measure and split."""
    return [
        Row(
            measured.titles[name],
            {f"{measure}{SPLIT_WORDS[split]}": mean(measured, name, measure, split) for measure, split in columns},
        )
        for name in series
    ]
