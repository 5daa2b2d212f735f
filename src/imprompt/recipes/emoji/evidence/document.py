"""The page of evidence, written whole from what was measured; nothing in it is chosen or typed by hand."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from imprompt.core.chart import line_chart
from imprompt.core.files import atomic_write
from imprompt.core.sheet import contact_sheet
from imprompt.evaluation.intervals import Interval
from imprompt.recipes.emoji import dataset
from imprompt.recipes.emoji.evidence import page
from imprompt.recipes.emoji.evidence.claim import Chart, Claim
from imprompt.recipes.emoji.evidence.claims import all_claims
from imprompt.recipes.emoji.evidence.cost_table import cost_rows
from imprompt.recipes.emoji.evidence.drawing import pictures_of
from imprompt.recipes.emoji.evidence.judging import Drawn, JudgedArm, Pictures, judged_arms, measure, remembering, shown
from imprompt.recipes.emoji.evidence.origin import origin
from imprompt.recipes.emoji.evidence.page import Findings
from imprompt.recipes.emoji.evidence.references import Reference
from imprompt.recipes.emoji.evidence.settings import EvidenceSettings
from imprompt.recipes.emoji.evidence.shipped import structure_of
from imprompt.recipes.emoji.judge import judge

NUM_SHOWN = 6
"""References on a sheet: the first of the list, which is in random order."""

JUDGED = "judged"
_CELL, _COLOURS = 64, 256


def write_document(settings: EvidenceSettings, references: Sequence[Reference], output: Path) -> Path:
    """Judge everything that was drawn, and write the page, its pictures and its figures.

    Args:
        settings: Of the run; everything is drawn and trained.
        references: What was drawn from.
        output: The page, Markdown. Pictures and `evidence.json` go into the folder of the same name beside it.

    Returns:
        The page.

    Raises:
        BundleError: The judge's weights are not installed.
        ImpromptError: Something was not drawn.
    """
    drawn = partial(pictures_of, settings)
    sees = remembering(judge, settings.work / JUDGED)
    measured = measure(settings, references, dataset.load(), drawn, sees)
    arms = judged_arms(settings)
    findings = Findings(
        settings=settings,
        references=references,
        num_arms=len({arm.drawn for arm in arms} - {None}),
        claims=all_claims(measured, settings.training_seeds),
        chance=measured.chance,
        costs=cost_rows(settings),
        origin=origin(settings),
    )
    folder = output.with_suffix("")
    _save_pictures(findings, {arm.name: arm for arm in arms}, drawn, folder)
    _write(folder / "evidence.json", json.dumps(_as_data(findings), indent=1, ensure_ascii=False) + "\n")
    _write(output, page.text(findings, folder.name))
    return output


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _save_pictures(findings: Findings, arms: dict[str, JudgedArm], drawn: Drawn, folder: Path) -> None:
    for claim in findings.claims:
        _save(_sheet(claim, findings, arms, drawn), folder / page.sheet_name(claim))
        for chart in claim.charts:
            _save(_chart(chart), folder / page.chart_name(chart))


def _sheet(claim: Claim, findings: Findings, arms: dict[str, JudgedArm], drawn: Drawn) -> Image.Image:
    """The first references across, and below each what every series of the claim makes of it."""
    settings, references = findings.settings, findings.references
    titles, rows = ["reference"], [[reference.image for reference in references[:NUM_SHOWN]]]
    for name in claim.sheet:
        if name == "structure":
            titles.append("edges or colours of")
            rows.append([other.image for other in structure_of(references)[:NUM_SHOWN]])
            continue
        pictures = shown(arms[name], references, drawn, settings.sampling_seeds[0])
        titles.append(arms[name].title)
        rows.append(_as_images(pictures[:NUM_SHOWN]))
    labels = [_label(claim, reference) for reference in references[:NUM_SHOWN]]
    return contact_sheet(rows, labels, titles, cell=_CELL, gap=6, font_size=9)


def _label(claim: Claim, reference: Reference) -> str:
    told = f" (text: {reference.other})" if claim.name == "text" else ""
    return f"{reference.name}{told}"


def _chart(chart: Chart) -> Image.Image:
    return line_chart(chart.curves, chart.places, x_label="weight of the image prompt", y_label="", width=480)


def _as_images(pictures: Pictures) -> list[Image.Image]:
    return [Image.fromarray(picture.numpy()) for picture in pictures.permute(0, 2, 3, 1).contiguous()]


def _save(image: Image.Image, path: Path) -> None:
    """As few bytes as 256 colours take."""
    few = image.quantize(_COLOURS, dither=Image.Dither.NONE)
    with atomic_write(path) as temporary:
        few.save(temporary, optimize=True)


def _as_data(findings: Findings) -> dict[str, Any]:
    settings = {name: value for name, value in asdict(findings.settings).items() if name not in ("bundle", "work")}
    return {
        "origin": findings.origin,
        "settings": settings,
        "num_references": len(findings.references),
        "claims": [_claim_data(claim) for claim in findings.claims],
        "costs": [asdict(row) for row in findings.costs],
    }


def _claim_data(claim: Claim) -> dict[str, Any]:
    tests = {"tests": [test for way in claim.ways for test in way], "notes": claim.notes}
    return {
        "name": claim.name,
        "verdict": claim.verdict,
        "rows": [
            {"title": row.title, "figures": {name: _interval(found) for name, found in row.figures.items()}}
            for row in claim.rows
        ],
        **{kind: [asdict(test) | {"outcome": test.outcome} for test in members] for kind, members in tests.items()},
        "charts": [asdict(chart) for chart in claim.charts],
    }


def _interval(found: Interval | None) -> dict[str, float] | None:
    return None if found is None else asdict(found)
