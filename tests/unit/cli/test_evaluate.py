"""`imprompt evaluate` and `imprompt compare`: what is drawn is kept, what is measured can be compared."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from imprompt.core.images import load_image
from imprompt.emoji.bundle import ADAPTER_FILES
from imprompt.encoders.vision import VisionEncoder
from imprompt.evaluation import drawing
from imprompt.evaluation.results import read_results
from imprompt.generation import attach, features
from tests import tiny, tiny_judges


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    return tiny_judges.clip_folder(tmp_path_factory.mktemp("judge"))


@pytest.fixture
def references(tmp_path):
    folder = tmp_path / "references"
    folder.mkdir()
    for number in range(2):
        tiny.picture(seed=number).save(folder / f"subject-{number}.png")
        (folder / f"subject-{number}.txt").write_text(f"subject {number}")
    return folder


@pytest.fixture
def evaluate(embedded, run, references, clip):
    """Evaluate the tiny model with the tiny judge; further options follow."""

    def call(*options, metrics="clip_i,clip_t,diversity,near_copies,cmmd"):
        said = ("--judge", f"clip={clip}", "--metrics", metrics, "--num-seeds", 2, "--steps", 1)
        return run("evaluate", "folder", references, *said, *options)

    return call


def test_a_folder_is_drawn_measured_and_shown(evaluate, tmp_path):
    code, out, err = evaluate("--scales", "0.5,1", "-o", "run")
    assert code == 0, err
    assert out.splitlines()[-1] == "run/report.html"
    results = read_results(tmp_path / "run")
    assert results.series() == [("adapter", 0.5), ("adapter", 1.0), ("text", 0.0), ("copy", 0.0)]
    assert len(results.rows) == 2 * 2 * 2 + 2 * 2 + 2
    copy = results.interval("clip_i", ("copy", 0.0))
    assert copy is not None and copy.mean == pytest.approx(1, abs=1e-6)
    adapter = results.interval("clip_t", ("adapter", 1.0))
    assert adapter is not None and (adapter.num_values, adapter.num_groups) == (4, 2)
    assert {row["metric"] for row in results.groups} == {"diversity"}
    assert [row["num_pictures"] for row in results.sets] == [4, 4, 4]
    table = (tmp_path / "run" / "results.md").read_text().splitlines()
    assert len(table) == 2 + 4 and {line.count("|") for line in table} == {5 + 2 + 2}  # two of CLIP-T
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Over the weight" in page and "CLIP-I against CLIP-T" in page and "http" not in page
    assert "12 pictures, of 2 subjects. The adapter is told nothing beside its image; the text alone is told" in page
    assert "References by hash (2): run.json." in page
    assert page.count("data:image/png;base64,") == 2 + 2 * 3  # curves, and three sheets of each weight


def test_a_sweep_draws_no_picture_twice(evaluate, tmp_path):
    code, out, err = evaluate("--scales", "0,0.5,1", "--prompt", "in snow", "-o", "run", metrics="clip_i,near_copies")
    assert code == 0, err
    pictures = {path.name: load_image(path).tobytes() for path in (tmp_path / "run" / "pictures").glob("subject-0-*")}
    assert len(pictures) == len(set(pictures.values())) == 2 * 3
    results = read_results(tmp_path / "run")
    assert results.over_the_weight() == [("text", 0.0), ("adapter", 0.5), ("adapter", 1.0)]


def test_a_killed_evaluation_loses_and_repeats_nothing(evaluate, tmp_path, monkeypatch):
    code, whole, err = evaluate("-o", "whole")
    assert code == 0, err
    drawn = []
    save = drawing.save_png

    def save_two_then_die(image, path, provenance):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(path.name)
        save(image, path, provenance)

    monkeypatch.setattr(drawing, "save_png", save_two_then_die)
    code, _, err = evaluate("-o", "run", "--batch-size", 2)
    assert code == 130
    assert err == "interrupted; the pictures that are drawn are kept, and the same command goes on from there\n"
    monkeypatch.setattr(
        drawing, "save_png", lambda image, path, said: (drawn.append(path.name), save(image, path, said))
    )
    damaged = tmp_path / "run" / "pictures" / drawn[0]
    damaged.write_bytes(damaged.read_bytes()[:100])  # one that does not survive is drawn again
    code, out, err = evaluate("-o", "run", "--batch-size", 2)
    assert code == 0 and "2 of 8 pictures are in 'run' already" in err, err
    assert len(drawn) == 2 + 1 + 6 and len(set(drawn)) == 8
    assert out.splitlines()[:-1] == whole.splitlines()[:-1]


def test_shares_are_drawn_apart_and_measured_together_as_by_one_process(evaluate, tmp_path, monkeypatch):
    code, _, err = evaluate("-o", "whole")
    assert code == 0, err
    code, out, _ = evaluate("--split", "1/2", "-o", "run")
    assert code == 0 and out.startswith("4 pictures of other shares are not drawn yet")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, err = evaluate("-o", "run")
    assert code == 0 and out.endswith("run/report.html\n"), err
    whole, shared = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "run"))
    assert whole == shared


def test_a_run_takes_no_pictures_of_another(evaluate, references):
    assert evaluate("-o", "run", metrics="near_copies")[0] == 0
    code, _, err = evaluate("-o", "run", "--guidance-scale", 2, metrics="near_copies")
    assert code == 1 and "pictures of other guidance_scale (3.0 there, 2.0 now)" in err
    assert "already" not in err
    tiny.picture(seed=9).save(references / "subject-0.png")
    code, _, err = evaluate("-o", "run", metrics="near_copies")
    assert code == 1 and "pictures of other references" in err


def test_a_run_takes_no_pictures_that_another_encoder_saw(embedded, evaluate, tmp_path):
    encoder = shutil.copytree(embedded / "image_encoder", tmp_path / "encoder")
    assert evaluate("-o", "run", "--encoder", encoder, metrics="near_copies")[0] == 0
    assert evaluate("-o", "run", "--encoder", encoder, metrics="near_copies")[0] == 0
    weights = {name: value + 1e-3 for name, value in load_file(encoder / "model.safetensors").items()}
    save_file(weights, encoder / "model.safetensors", metadata={"format": "pt"})
    code, _, err = evaluate("-o", "run", "--encoder", encoder, metrics="near_copies")
    assert code == 1 and "pictures of other models" in err


def test_a_reference_that_cannot_be_read_is_told_in_a_sentence(evaluate, references):
    whole = (references / "subject-1.png").read_bytes()
    (references / "subject-1.png").write_bytes(whole[: len(whole) // 2])
    code, _, err = evaluate(metrics="near_copies")
    assert code == 1 and "subject-1.png" in err and "damaged or cut short" in err
    assert not (references.parent / "evaluation").exists()  # told before anything is drawn
    assert "Traceback" not in err


def test_pictures_without_a_caption_have_no_likeness_to_one_and_are_counted(evaluate, references):
    (references / "subject-1.txt").unlink()
    code, out, err = evaluate(metrics="clip_t")
    assert "put name.txt beside a picture, or give --prompt" in err
    assert code == 0 and "1 of 2 have no caption (subject-1.png): CLIP-T leaves them out" in err
    (adapter,) = [line for line in out.splitlines() if line.startswith("adapter")]
    assert adapter.count("2 without") == 3  # CLIP-T and its two other scales
    (references / "subject-0.txt").unlink()
    code, out, err = evaluate("-o", "silent", metrics="clip_t")
    assert code == 0 and "2 of 2 have no caption" in err
    assert [line for line in out.splitlines() if line.startswith("adapter")][0].count("– · 4 without") == 3
    summary = json.loads(Path("silent/results.json").read_text())["summary"]
    assert {(row["mean"], row["num_unmeasured"]) for row in summary if row["arm"] == "adapter"} == {(None, 4)}


def test_the_text_alone_is_drawn_once_for_subjects_that_are_told_the_same(evaluate, tmp_path, monkeypatch):
    asked, generate = [], drawing.generate
    monkeypatch.setattr(drawing, "generate", lambda *said, **more: asked.extend(said[2]) or generate(*said, **more))
    code, _, err = evaluate("--prompt", "in the snow", "-o", "run", metrics="near_copies")
    assert code == 0, err
    assert [len(request.image_prompts) for request in asked] == [1] * 4 + [0] * 2  # two subjects, two seeds
    alone = [
        load_image(tmp_path / "run" / row.file) for row in read_results(tmp_path / "run").rows if row.arm == "text"
    ]
    assert [alone[0].tobytes(), alone[1].tobytes()] == [each.tobytes() for each in alone[2:]]
    assert "texts in the snow." in (tmp_path / "run" / "report.html").read_text()


def test_a_judge_that_no_metric_asks_is_named(evaluate, clip):
    code, _, err = evaluate("--judge", f"dino={clip}", metrics="clip_i")
    assert code == 0 and "no metric asks the judge dino; --metrics has clip_i" in err


def test_a_judge_that_reads_no_texts_is_told_before_anything_is_drawn(embedded, evaluate, tmp_path):
    code, _, err = evaluate("--judge", f"clip={embedded / 'image_encoder'}", metrics="clip_i,clip_t")
    assert code == 1 and "reads no texts; give the folder of a whole CLIP" in err
    assert not (tmp_path / "evaluation").exists()
    for caption in (tmp_path / "references").glob("*.txt"):
        caption.unlink()  # nothing is to be read
    assert evaluate("--judge", f"clip={embedded / 'image_encoder'}", metrics="clip_i,clip_t")[0] == 0


def test_a_weight_that_is_said_twice_is_drawn_once(evaluate, tmp_path):
    assert evaluate("--scales", "0.5,0.5", metrics="near_copies")[0] == 0
    assert len(read_results(tmp_path / "evaluation").rows) == 2 * 2 + 2 * 2 + 2


def test_an_encoder_that_is_fetched_by_name_is_part_of_a_run(embedded, evaluate, tmp_path, monkeypatch):
    """The base has none, and the adapter names a published one."""
    base = shutil.copytree(embedded, tmp_path / "base", ignore=shutil.ignore_patterns("image_encoder"))
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps({k: v for k, v in index.items() if k != "image_encoder"}))
    published = SimpleNamespace(name="published", address="nobody/published")
    monkeypatch.setattr(features, "_published", lambda spec: published)
    fetch = attach.load_encoder
    where = {published.address: embedded / "image_encoder"}
    monkeypatch.setattr(attach, "load_encoder", lambda source, **said: fetch(where.get(source, source), **said))
    said = ("--base", base, "--adapter", embedded / "adapters" / ADAPTER_FILES["plus"], "-o", "run")
    for _ in range(2):  # the second draws nothing
        assert evaluate(*said, metrics="near_copies")[0] == 0
        (told,) = read_results(tmp_path / "run").models["image_encoders"]
        assert told["fingerprint"] == VisionEncoder.from_folder(embedded / "image_encoder").spec.fingerprint
    other = shutil.copytree(embedded / "image_encoder", tmp_path / "other")
    weights = {name: value + 1e-3 for name, value in load_file(other / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    code, _, err = evaluate(*said, "--encoder", other, metrics="near_copies")
    assert code == 1 and "pictures of other models" in err


def test_compare_tells_what_is_real(evaluate, run, tmp_path):
    evaluate("-o", "before")
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    file = tmp_path / "after" / "results.json"
    content = json.loads(file.read_text())
    for row in content["rows"]:
        if row["arm"] == "adapter":
            row["values"]["clip_i"] += 0.1
    file.write_text(json.dumps(content))
    code, out, err = run("compare", "before", "after")
    assert code == 0, err
    said = {tuple(line.split()[:2]): line for line in out.splitlines()}
    assert said["CLIP-I", "adapter"].endswith("better") and "+0.1000" in said["CLIP-I", "adapter"]
    assert said["CLIP-T", "adapter"].endswith("  no difference")
    content["judges"]["clip"]["name"] = "another folder"  # of the same network
    file.write_text(json.dumps(content))
    assert run("compare", "before", "after")[1] == out
    assert {arm for _, arm in said} == {"adapter", "text"}  # the reference handed back is the same in both
    asked = content["rows"][0]["prompt"]
    content["rows"][0]["prompt"] = "something else"
    file.write_text(json.dumps(content))
    code, _, err = run("compare", "before", "after")
    assert code == 1 and "with the same prompts" in err
    content["rows"][0]["prompt"] = asked
    content["judges"]["clip"]["fingerprint"] = "another"
    file.write_text(json.dumps(content))
    code, _, err = run("compare", "before", "after")
    assert code == 1 and "not the same network" in err
    content["judges"]["clip"]["fingerprint"] = json.loads((tmp_path / "before/results.json").read_text())["judges"][
        "clip"
    ]["fingerprint"]
    for row in content["rows"]:
        row["scale"] = 0.5 if row["arm"] == "adapter" else row["scale"]
    file.write_text(json.dumps(content))
    code, out, err = run("compare", "before", "after")
    said = {tuple(line.split()[:2]): line for line in out.splitlines()}
    assert code == 0 and "adapter 1 -> 0.5" in said["CLIP-I", "adapter"] and "+0.1000" in said["CLIP-I", "adapter"]
    assert "only one of the two" not in err
    content["rows"].append({**content["rows"][0], "scale": 0.25})
    file.write_text(json.dumps(content))
    code, _, err = run("compare", "before", "after")
    assert code == 0 and "only one of the two has it: adapter 0.25, adapter 0.5, adapter 1" in err
    code, _, err = run("compare", "before", "nowhere")
    assert code == 1 and "no results.json" in err


def test_compare_tells_how_many_pictures_are_shared_and_what_was_set_otherwise(evaluate, run):
    assert evaluate("-o", "before", metrics="near_copies")[0] == 0
    assert evaluate("-o", "after", "--num-seeds", 3, metrics="near_copies")[0] == 0
    code, out, err = run("compare", "before", "after")
    assert code == 0 and "(4 shared of 4 and 6)" in out
    assert "num_seeds is 2 in the first and 3 in the second" in err


def test_a_metric_that_few_seeds_leave_out_is_named(evaluate):
    code, _, err = evaluate("--num-seeds", 1, metrics="clip_i,diversity")
    assert code == 0 and "diversity is left out: it wants --num-seeds 2 or more" in err


def test_one_subject_has_a_mean_and_decides_nothing(evaluate, run):
    code, out, err = evaluate("-o", "run", "--limit", 1, metrics="clip_i")
    assert code == 0 and "[" not in out and "0." in out, err
    code, out, _ = run("compare", "run", "run")
    assert code == 0 and "[" not in out and out.splitlines()[0].endswith("change +0.0000  one subject decides nothing")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--metrics", "clip-i"), "did you mean 'clip_i'"),
        (("--judge", "clip"), "expected NAME=VALUE"),
        (("--split", "3/2"), "as 2/8"),
        (("--scales", "much"), "expected a number"),
        (("--num-seeds", "0"), "expected 1 or more"),
        (("--metrics", "face"), "--judge face=FOLDER"),
        (("--judge", "clipp=x"), "no judge 'clipp'"),
        (("--fail-under", "clip_i=much"), "expected a number"),
        (("--fail-under", "near_copies=0.5"), "higher is better"),
        (("--fail-under", "dino=0.5"), "add it to --metrics"),
        (("--metrics", "face", "--judge", "face=nowhere"), "which is not there"),
        (("--judge", "clip=./nowhere"), "which is not there"),
        (("--judge", "clip=nowhere"), "the judge 'clip' is to be 'nowhere', which cannot be had"),
        (("--judge", "clip=nobody/nothing"), "'nobody/nothing' is not on this machine and could not be downloaded"),
        (("--judge", "clip=references"), "which has no config.json"),
        (("--metrics", "fid", "--judge", "inception=references/subject-0.txt"), "subject-0.txt"),
        (("--metrics", "face", "--judge", "face=references"), "references"),
        (("--metrics", "near_copies", "--scales", ""), "--scales is ''; expected one or more"),
        (("--metrics", "cmmd", "--limit", "1"), "CMMD of 2 pictures against 1 references; it wants 2 or more"),
        (("--metrics", "dinov2"), "the judge 'dinov2' is to be 'facebook/dinov2-small', which cannot be had"),
    ],
)
def test_wrong_options_are_told_in_a_sentence(evaluate, tmp_path, options, words):
    code, _, err = evaluate(*options)
    assert code == 1 and words in err
    assert not (tmp_path / "evaluation").exists()  # told before anything is drawn


@pytest.mark.parametrize("option", ["--limit", "--batch-size"])
def test_numbers_below_one_are_refused(evaluate, tmp_path, option):
    code, _, err = evaluate(option, 0)
    assert code == 2 and option in err
    assert not (tmp_path / "evaluation").exists()


def test_a_judge_that_is_not_installed_is_told_before_anything_is_drawn(evaluate, tmp_path, monkeypatch):
    monkeypatch.setattr("imprompt.evaluation.mobilenet.find_spec", lambda name: None)
    code, _, err = evaluate(metrics="mobilenet")
    assert code == 1 and "pip install --no-deps" in err
    assert not (tmp_path / "evaluation").exists()


def test_a_mean_below_the_bound_fails(evaluate):
    assert evaluate("-o", "run", "--fail-under", "clip_i=-1")[0] == 0
    code, _, err = evaluate("-o", "run", "--fail-under", "clip_i=1.01")
    assert code == 1 and "wanted 1.01 or more" in err
