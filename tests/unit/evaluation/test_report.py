"""What a report shows of the pictures, and over the weight."""

from pathlib import Path

import pytest
from PIL import Image

from imprompt.evaluation.report import NUM_SHOWN, shown, write_report
from imprompt.evaluation.results import Results, Row

PROTOCOL = {
    "name": "sweep", "title": "A sweep", "steps": 20, "guidance_scale": 3.0, "scheduler": None, "num_seeds": 2,
    "seed": 7, "scales": [0.2, 1.0],
}  # fmt: skip


def row(scale: float, value: float) -> Row:
    return Row(
        subject="a", prompt_name="p00", seed=7, arm="adapter", scale=scale, file="made.png", reference="made.png",
        prompt="", values={"mobilenet": value, "near_copies": 0.0},
    )  # fmt: skip


@pytest.mark.parametrize("num", [1, 2, 3, 4, 7, 9, 23, 24, 100])
def test_no_picture_is_on_two_sheets(num: int) -> None:
    rows = [row(1.0, number / num) for number in range(num)]
    parts = shown(rows)
    together = [id(each) for part in parts.values() for each in part]
    assert len(together) == len(set(together)) <= num
    assert len(parts) == min(num, 3) and len(parts["Best"]) == min(NUM_SHOWN, max(1, num // 3))
    assert list(parts.values())[0][0] is rows[0] and list(parts.values())[-1][-1] is rows[-1]


def test_a_report_tells_its_settings_and_shows_any_likeness_over_the_weight(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "made.png")
    results = Results(
        protocol=PROTOCOL, models={}, judges={}, rows=[row(0.2, 0.4), row(1.0, 0.8)], groups=[], sets=[], versions={}
    )
    page = write_report(results, {("a", "p00"): tmp_path / "made.png"}, tmp_path).read_text(encoding="utf-8")
    assert "20 steps, guidance 3, sampler of the base, seeds 7 to 8, weights 0.2, 1." in page
    assert "Over the weight" in page and page.count("data:image/png;base64,") == 1 + 2
