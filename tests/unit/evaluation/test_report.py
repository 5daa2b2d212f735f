"""What a report shows of the pictures, and over the weight."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imprompt.evaluation import report
from imprompt.evaluation.items import Arm
from imprompt.evaluation.report import NUM_SHOWN, shown, summary_table, write_report
from imprompt.evaluation.results import Results, Row

PROTOCOL = {
    "prompts": (),
    "name": "sweep", "title": "A sweep", "steps": 20, "guidance_scale": 3.0, "scheduler": None, "num_seeds": 2,
    "seed": 7, "scales": [0.2, 1.0],
}  # fmt: skip

MODELS: dict[str, Any] = {
    "base": {
        "pipeline": "StableDiffusionPipeline", "name": "sd15", "scheduler": "DDIMScheduler", "loras": ["sepia"],
        "sha256": {"unet": {"model.safetensors": "0123456789abcdef0123"}},
    },
    "adapters": [
        {"name": "plus", "file": "ip-adapter-plus.safetensors", "sha256": "fedcba98765432100123"},
        {"name": "global", "sha256_tensors": "00112233445566778899"},
    ],
    "image_encoders": [{"adapter": "plus", "name": "ViT-H/14", "fingerprint": "aabbccddeeff00112233"}],
}  # fmt: skip


def row(scale: float, value: float, arm: Arm = "adapter", **values: float) -> Row:
    return Row(
        subject="a", prompt_name="p00", seed=7, arm=arm, scale=scale, file="made.png", reference="made.png",
        prompt="", values={"mobilenet": value, "near_copies": 0.0, **values},
    )  # fmt: skip


def results_of(rows: list[Row], **protocol: Any) -> Results:
    said = {"protocol": {**PROTOCOL, **protocol}, "models": MODELS, "versions": {"torch": "2.13.0"}}
    return Results(**said, judges={}, rows=rows, groups=[], sets=[])


def page_of(results: Results, folder: Path) -> str:
    Image.new("RGB", (8, 8), "red").save(folder / "made.png")
    return write_report(results, {("a", "p00"): folder / "made.png"}, folder).read_text(encoding="utf-8")


@pytest.mark.parametrize("num", [1, 2, 3, 4, 7, 9, 23, 24, 100])
def test_no_picture_is_on_two_sheets(num: int) -> None:
    rows = [row(1.0, number / num) for number in range(num)]
    parts = shown(rows)
    together = [id(each) for part in parts.values() for each in part]
    assert len(together) == len(set(together)) <= num
    assert len(parts) == min(num, 3) and len(parts["Best"]) == min(NUM_SHOWN, max(1, num // 3))
    assert list(parts.values())[0][0] is rows[0] and list(parts.values())[-1][-1] is rows[-1]


def test_a_report_tells_its_settings_and_shows_any_likeness_over_the_weight(tmp_path: Path) -> None:
    page = page_of(results_of([row(0.2, 0.4), row(1.0, 0.8)]), tmp_path)
    assert "20 steps, guidance 3, sampler of the base, seeds 7 to 8, weights 0.2, 1." in page
    assert "Over the weight" in page and "against" not in page  # nothing was measured to the text
    assert page.count("data:image/png;base64,") == 1 + 2
    assert 'alt=""' not in page and "below: a" in page


def test_a_report_tells_which_files_drew(tmp_path: Path) -> None:
    page = page_of(results_of([row(1.0, 0.5)]), tmp_path)
    words = "sd15, StableDiffusionPipeline, DDIMScheduler, LoRA sepia, torch 2.13.0. References by hash (1): run.json."
    assert f"<p class=small>{words}<" in page
    assert "<td>unet<td>model.safetensors<td>0123456789abcdef<" in page
    assert "<td>adapter plus<td>ip-adapter-plus.safetensors<td>fedcba9876543210<" in page
    assert "<td>adapter global<td>its tensors<td>0011223344556677<" in page
    assert "<td>image encoder of adapter plus<td>ViT-H/14<td>aabbccddeeff0011<" in page
    in_memory = {
        "base": {**MODELS["base"], "name": None, "loras": [], "sha256": {}},
        "adapters": [],
        "image_encoders": [],
    }
    page = page_of(dataclasses.replace(results_of([row(1.0, 0.5)]), models=in_memory), tmp_path)
    assert "<p class=small>StableDiffusionPipeline, DDIMScheduler, torch 2.13.0. References" in page


def test_sheets_mix_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheets: list[set[float]] = []

    def pairs(rows: Sequence[Row], *_: Any) -> Image.Image:
        sheets.append({each.scale for each in rows})
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(report, "_pairs", pairs)
    rows = [row(scale, scale + number / 10) for number in range(4) for scale in (1.0, 0.2)]
    page = page_of(results_of(rows), tmp_path)
    assert sheets == [{0.2}] * 3 + [{1.0}] * 3
    assert "<h2>Best by MobileNetV2, weight 0.2</h2>" in page and "<h2>Worst by MobileNetV2, weight 1</h2>" in page
    assert "<h2>Best by MobileNetV2</h2>" in page_of(results_of(rows[::2]), tmp_path)


@pytest.mark.parametrize(
    ("likeness", "title"), [("clip_i", "CLIP-I"), ("dinov2", "DINOv2"), ("mobilenet", "MobileNetV2")]
)
def test_a_sweep_shows_likeness_to_the_image_against_likeness_to_the_text(
    likeness: str, title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []

    def path_chart(points: list[tuple[float, float]], labels: list[str], **words: str) -> Image.Image:
        drawn.append((points, labels, words))
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(report, "path_chart", path_chart)
    rows = [row(scale, 1.0, clip_t=0.3 - scale / 10, **{likeness: scale}) for scale in (1.0, 0.2)]
    rows += [row(0.0, 1.0, "text", clip_t=0.3, **{likeness: 0.1}), row(0.0, 1.0, "copy", clip_t=0.2, **{likeness: 1.0})]
    page = page_of(results_of(rows, scales=[0.0, 0.2, 1.0]), tmp_path)
    assert f"<h2>{title} against CLIP-T</h2>" in page and "At 0 it is the text alone" in page
    ((points, labels, words),) = drawn
    assert labels == ["0", "0.2", "1"] and words == {"x_label": "CLIP-T", "y_label": title}
    assert points == [pytest.approx(each) for each in [(0.3, 0.1), (0.28, 0.2), (0.2, 1.0)]]
    assert "against" not in page_of(results_of(rows[:1], scales=[1.0]), tmp_path)


def test_scales_of_a_cosine_are_derived_and_not_stored(tmp_path: Path) -> None:
    results = results_of([row(1.0, 0.8, clip_t=0.25), row(0.2, 0.8, clip_t=-0.1)])
    results.save(tmp_path / "results.json")
    said = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [each["values"].keys() for each in said["rows"]] == [{"mobilenet", "near_copies", "clip_t"}] * 2
    means = {(each["metric"], each["scale"]): each["mean"] for each in said["summary"]}
    assert [means[name, 1.0] for name in ("clip_t", "clip_score", "clip_t_100")] == [0.25, 0.625, 25.0]
    assert [means[name, 0.2] for name in ("clip_t", "clip_score", "clip_t_100")] == [-0.1, 0.0, -10.0]
    assert "2.5 x max(CLIP-T, 0)" in said["definitions"]["clip_score"] and "raw" in said["definitions"]["clip_t"]
    assert said["definitions"].keys() == {name for name, _ in means}
    head, first, _ = summary_table(results)
    assert dict(zip(head, first, strict=True)) == {
        "": "adapter, weight 1", "CLIP-T ↑": "0.250", "CLIPScore ↑": "0.625", "100 x CLIP-T ↑": "25.000",
        "MobileNetV2 ↑": "0.800", "near-copies ↓": "0.000",
    }  # fmt: skip
    assert "2.5 x max(CLIP-T, 0)" in page_of(results, tmp_path)
