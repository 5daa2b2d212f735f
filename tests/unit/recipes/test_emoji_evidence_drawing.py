"""Pictures of the evidence run: drawn once, from noises of their own, by any number of processes; what ships draws."""

import json
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from imprompt import emoji
from imprompt.cli.emoji import app
from imprompt.core.errors import ImpromptError
from imprompt.emoji.styles import STYLES
from imprompt.recipes.emoji import custom
from imprompt.recipes.emoji.evidence import cost, origin, run, shipped
from imprompt.recipes.emoji.evidence.arms import Arm
from imprompt.recipes.emoji.evidence.drawing import draw_all, picture_file, pictures_of
from imprompt.recipes.emoji.evidence.processes import in_processes
from imprompt.recipes.emoji.evidence.references import Reference
from imprompt.recipes.emoji.evidence.settings import EvidenceSettings
from tests.evidence_stub import num_threads, open_stub, sleep_and_tell

DEVICES = ("cpu", "cuda")
WORDS = [style.word for style in STYLES]


@pytest.fixture
def settings(tmp_path):
    return EvidenceSettings(
        bundle=emoji.bundle_folder(),
        work=tmp_path / "work",
        sampling_seeds=(0, 1),
        num_steps=2,
        batch_size=2,
        num_processes=1,
    )


def reference(number):
    name, path = list(emoji.reference_pictures().items())[number]
    subject, word = name.split(", ")
    return Reference(
        number=number,
        split="held_out_subject" if number % 2 else "held_out_pair",
        pixels=np.array(Image.open(path).convert("RGB")),
        subject=subject,
        style=WORDS.index(word),
        other="rocket",
    )


REFERENCES = [reference(number) for number in range(5)]


@pytest.fixture
def diary(tmp_path):
    return tmp_path / "diary" / "lines.jsonl"


@pytest.fixture
def stub(diary):
    return lambda name="stub", **options: Arm(name=name, title=name, open=partial(open_stub, diary=diary, **options))


def drawn(diary):
    """Seeds of the first reference of every list that was drawn, and the diary is emptied."""
    lines = [json.loads(line) for line in diary.read_text().splitlines()] if diary.exists() else []
    diary.unlink(missing_ok=True)
    return [line["seeds"][0] for line in lines if "drawn" in line]


def draw(settings, arms, references=REFERENCES):
    draw_all(settings, arms, references, progress=False)


def test_every_arm_draws_the_whole_list_from_noises_of_references(settings, stub, diary):
    draw(settings, [stub("one", tint=1), stub("two", tint=2)])
    lines = [json.loads(line) for line in diary.read_text().splitlines()]
    assert [line.get("opened") for line in lines] == [1, None, None, 2, None, None]  # once for all noises
    lists = [line for line in lines if "drawn" in line]
    assert [line["numbers"] for line in lists] == [[0, 1, 2, 3, 4]] * 4
    assert [line["seeds"] for line in lists] == [[0, 1, 2, 3, 4], [100_003 + number for number in range(5)]] * 2
    one, two = (pictures_of(settings, name, 1) for name in ("one", "two"))
    assert torch.equal(one + 1, two)
    assert not torch.equal(one, pictures_of(settings, "one", 0))


def test_what_is_there_is_not_drawn_again(settings, stub, diary):
    draw(settings, [stub()])
    before = pictures_of(settings, "stub", 0)
    assert drawn(diary) == [0, 100_003]
    draw(replace(settings, sampling_seeds=(0, 1, 2), batch_size=1, num_processes=2), [stub(tint=50)])
    assert drawn(diary) == [200_006]
    assert torch.equal(pictures_of(settings, "stub", 0), before)


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_damaged_file_is_drawn_again(settings, stub, diary, damage, caplog):
    draw(settings, [stub()])
    before, path = pictures_of(settings, "stub", 0), picture_file(settings, "stub", 0)
    data = path.read_bytes()
    path.unlink()  # `before` is still mapped from it
    path.write_bytes(damage(data))
    with pytest.raises(ImpromptError, match="no whole pictures at .*stub-0.safetensors"):
        pictures_of(settings, "stub", 0)
    drawn(diary)
    draw(settings, [stub()])
    assert drawn(diary) == [0]
    assert "stub-0.safetensors is damaged" in caplog.text
    assert torch.equal(pictures_of(settings, "stub", 0), before)


@pytest.mark.parametrize(
    ("changes", "references", "needs_training", "told"),
    [
        ({"num_steps": 3}, REFERENCES, (), "num_steps"),
        ({"guidance_scale": 4.0, "num_steps": 3}, REFERENCES, (), "guidance_scale, num_steps"),
        ({}, REFERENCES[:3], (), "references"),
        ({}, [*REFERENCES[:4], replace(REFERENCES[4], other="pizza")], (), "references"),
        ({"training_minutes": 7.0}, REFERENCES, ("decoupled-0",), "training_minutes"),
    ],
)
def test_pictures_that_something_else_decided_are_drawn_anew(
    settings, stub, diary, caplog, changes, references, needs_training, told
):
    arm = replace(stub(), needs_training=needs_training)
    draw(settings, [arm])
    drawn(diary)
    draw(replace(settings, **changes), [arm], references)
    assert drawn(diary) == [0, 100_003]
    assert f"stub-0.safetensors was drawn with other {told} and is drawn anew" in caplog.text
    assert len(pictures_of(settings, "stub", 1)) == len(references)


def test_pictures_of_another_training_are_drawn_anew(settings, stub, diary, caplog):
    draw(settings, [replace(stub(), needs_training=("decoupled-0-aa",))])
    drawn(diary)
    draw(settings, [replace(stub(), needs_training=("decoupled-0-bb",))])
    assert drawn(diary) == [0, 100_003]
    assert "stub-0.safetensors was drawn with other trainings and is drawn anew" in caplog.text


def test_what_decides_nothing_draws_nothing(settings, stub, diary, caplog):
    draw(settings, [stub()])
    drawn(diary)
    with caplog.at_level(logging.DEBUG):
        draw(replace(settings, training_steps=7, batch_size=1, num_processes=3), [stub()])
    assert drawn(diary) == []
    assert "anew" not in caplog.text


@pytest.mark.slow
def test_processes_draw_the_same_pictures_as_one(settings, stub, diary, tmp_path):
    arms = [stub("one", tint=1), stub("two", tint=2)]
    draw(settings, arms)
    shared = replace(settings, work=tmp_path / "shared", num_processes=2)
    draw(shared, arms)
    assert {json.loads(line)["threads"] for line in diary.read_text().splitlines()} == {1}
    assert sorted(drawn(diary)) == [0] * 4 + [100_003] * 4
    for arm in arms:
        for seed in settings.sampling_seeds:
            assert torch.equal(pictures_of(settings, arm.name, seed), pictures_of(shared, arm.name, seed))


def test_an_interruption_loses_the_job_at_hand_alone(settings, stub, diary):
    with pytest.raises(KeyboardInterrupt):
        draw(settings, [stub("one"), stub("two", fails_at=100_003)])
    assert [path.name for path in sorted((settings.work / "pictures").iterdir())] == [
        "one-0.safetensors",
        "one-1.safetensors",
        "two-0.safetensors",
    ]
    drawn(diary)
    draw(settings, [stub("one"), stub("two")])
    assert drawn(diary) == [100_003]


@pytest.mark.slow
def test_an_error_in_a_process_is_told_by_its_sentence(settings, stub):
    with pytest.raises(ImpromptError, match="as told"):
        draw(replace(settings, num_processes=2), [stub(fails_at=100_003, failure=ImpromptError)])


@pytest.mark.slow
def test_who_stops_listening_ends_the_work_at_hand(diary):
    work = in_processes(partial(sleep_and_tell, diary), [0, 600, 600, 600], 2)
    assert next(work) == 0
    work.close()  # would wait for ten minutes else
    assert diary.read_text().split() == ["0"]


def test_work_in_this_process_has_one_thread_too():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert list(in_processes(num_threads, [0, 1], 1)) == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_arms_of_one_name_are_refused(settings, stub, diary):
    with pytest.raises(ImpromptError, match="several arms are named stub"):
        draw(settings, [stub(), stub(tint=1), stub("other")])
    assert not diary.exists()


def _open_too_few(settings):
    return lambda references, seeds: torch.zeros(2, 3, 64, 64, dtype=torch.uint8)


def test_an_arm_that_does_not_draw_one_picture_for_each_reference_is_refused(settings):
    with pytest.raises(
        ImpromptError, match=r"'few' drew pictures of shape \[2, 3, 64, 64\]; expected \[5, 3, 64, 64\]"
    ):
        draw(settings, [Arm(name="few", title="few", open=_open_too_few)])
    assert not picture_file(settings, "few", 0).exists()


def arm_named(name):
    return next(arm for arm in shipped.shipped_arms() if arm.name == name)


def test_names_of_what_ships():
    weights = (0.2, 0.4, 0.6, 0.8, 1.0)
    other = [f"{name}-other-{weight}" for name in ("global", "plus") for weight in weights]
    bases = [f"{name}-{base}" for name in ("global", "plus") for base in ("finetuned", "lora")]
    structure = ["controlnet", "controlnet-plus", "t2i", "t2i-plus"]
    names = [arm.name for arm in shipped.shipped_arms()]
    assert sorted(names) == sorted(["text", "text-other", "global", "plus", *other, *bases, *structure])
    assert len({arm.title for arm in shipped.shipped_arms()}) == len(names)


def test_structure_is_of_another_reference_that_nobody_else_gets():
    for number in (2, 3, 5):
        lent = shipped.structure_of(REFERENCES[:number])
        assert sorted(one.number for one in lent) == list(range(number))
        assert lent[0] is REFERENCES[number // 2]
        assert all(one is not other for one, other in zip(lent, REFERENCES, strict=False))


def test_texts():
    one = REFERENCES[0]
    assert shipped.text_of(one, "nothing") == ""
    assert shipped.text_of(one, "other") == "rocket"
    assert shipped.text_of(one, "caption") == "barber pole, flat style emoji"


@pytest.fixture(scope="module")
def drawn_by_plus(tmp_path_factory):
    """Two references through the real adapter, both at once."""
    settings = EvidenceSettings(
        bundle=emoji.bundle_folder(),
        work=tmp_path_factory.mktemp("plus"),
        sampling_seeds=(0,),
        num_steps=2,
        batch_size=2,
        num_processes=1,
    )
    draw(settings, [arm_named("plus")], REFERENCES[:2])
    return settings, pictures_of(settings, "plus", 0)


def test_a_row_does_not_depend_on_its_batch(drawn_by_plus, tmp_path):
    settings, together = drawn_by_plus
    alone = replace(settings, work=tmp_path, batch_size=1)
    draw(alone, [arm_named("plus")], REFERENCES[:2])
    assert (pictures_of(alone, "plus", 0).int() - together.int()).abs().max() <= 1
    assert (together[0].int() - together[1].int()).abs().float().mean() > 5


def test_the_reference_and_the_other_text_decide_what_is_drawn(drawn_by_plus, tmp_path):
    settings, followed = drawn_by_plus
    settings = replace(settings, work=tmp_path)
    exchanged = [
        replace(REFERENCES[0], pixels=REFERENCES[3].pixels),
        replace(REFERENCES[1], other="pizza", pixels=REFERENCES[1].pixels),
    ]
    draw(settings, [arm_named("plus"), arm_named("plus-other-0.2")], exchanged)
    change = (pictures_of(settings, "plus", 0).float() - followed.float()).abs().mean(dim=(1, 2, 3))
    assert change[0] > 3
    assert change[1] <= 1 / 255
    with_text = pictures_of(settings, "plus-other-0.2", 0).float()
    assert ((with_text - followed.float()).abs().mean(dim=(1, 2, 3)) > 3).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["controlnet", "t2i-plus"])
def test_structure_comes_from_the_other_reference(settings, name):
    settings = replace(settings, sampling_seeds=(0,))
    draw(settings, [arm_named(name)], REFERENCES[:3])
    first = pictures_of(settings, name, 0).float()
    lender = replace(REFERENCES[1], pixels=REFERENCES[4].pixels)  # lends to the first of three
    other = replace(settings, work=settings.work / "other")
    draw(other, [arm_named(name)], [REFERENCES[0], lender, REFERENCES[2]])
    change = (pictures_of(other, name, 0).float() - first).abs().mean(dim=(1, 2, 3))
    assert change[0] > 1
    assert change[2] <= 1 / 255


class _Denoiser:
    def save_pretrained(self, folder):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "config.json").write_text("{}")


@pytest.fixture
def finetuning(monkeypatch):
    """Configurations that were trained, each until a step that is named here."""
    asked, stops = [], []

    def trained(config):
        asked.append(config)
        return _Denoiser(), stops.pop() if stops else config.loop.num_steps

    monkeypatch.setattr(custom, "trained", trained)
    return asked, stops


def test_the_base_is_finetuned_once(settings, finetuning):
    asked, stops = finetuning
    stops.append(60)
    with pytest.raises(KeyboardInterrupt):
        shipped.prepare(settings)
    assert not shipped.finetuned_folder(settings).exists()
    shipped.prepare(settings)
    shipped.prepare(settings)
    published = custom.default_config("finetune")
    assert asked == [replace(published, preview_every=0)] * 2
    assert [path.name for path in settings.work.iterdir()] == ["finetuned"]


def test_a_short_run_leaves_the_published_stage_alone(settings, finetuning):
    shipped.prepare(replace(settings, training_steps=3))
    (config,), _ = finetuning
    assert (config.loop.num_steps, config.num_pictures) == (3, 48)
    assert config.loop.output.is_relative_to(settings.work)


def test_another_base_is_finetuned_in_the_runs_own_folder(settings, finetuning, tmp_path):
    shipped.prepare(replace(settings, bundle=tmp_path / "base"))
    (config,), _ = finetuning
    assert config.bundle == tmp_path / "base"
    assert config.loop.num_steps == custom.default_config("finetune").loop.num_steps
    assert config.loop.output == settings.work / "finetuning"


def test_an_accelerator_is_used_by_one_process(settings):
    settings = replace(settings, num_processes=4)
    assert run.on_device(settings) == settings
    assert run.on_device(replace(settings, device="meta")) == replace(settings, device="meta", num_processes=1)


@pytest.mark.parametrize("device", ["cuda:99", "xpu", "gpu"])
def test_a_device_that_is_not_there_is_told_before_anything_is_done(settings, device):
    with pytest.raises(ImpromptError, match=f"device '{device}'.*; give "):
        run.run(replace(settings, device=device))
    assert not settings.work.exists()


def test_an_accelerators_time_is_taken_when_its_work_is_done(monkeypatch):
    done = []
    monkeypatch.setattr(torch.accelerator, "synchronize", done.append)
    monkeypatch.setattr(cost.time, "perf_counter", lambda: float(len(done)))
    assert cost._seconds(torch.device("cuda")) == 1.0
    assert cost._seconds(torch.device("cpu")) > 0
    assert done == [torch.device("cuda")]


def test_the_page_names_the_device(settings, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a fast one")
    told = {device: origin.origin(replace(settings, device=device, autocast="no"))["machine"] for device in DEVICES}
    assert told["cuda"].endswith("; drawn and trained on a fast one")
    assert told["cuda"].startswith(told["cpu"])


@pytest.fixture
def asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("IMPROMPT_CACHE", str(tmp_path))
    calls = []
    monkeypatch.setattr(run, "run", lambda settings, page: calls.append((settings, page)) or Path("page.md"))

    def command(*arguments):
        result = CliRunner().invoke(app, ["evidence", *arguments])
        return result, calls

    return command


def test_the_command_writes_the_page_of_the_documentation(asked_for, tmp_path):
    result, [(settings, page)] = asked_for("--processes", "8")
    assert result.exit_code == 0, result.output
    assert (settings.num_processes, len(settings.sampling_seeds), settings.num_references) == (8, 5, None)
    assert settings.work.parent == tmp_path / "emoji" / "evidence"
    assert page == Path("docs") / "evidence.md"


def test_a_quick_run_never_writes_it(asked_for):
    result, calls = asked_for("--quick")
    assert result.exit_code == 0, result.output
    ((settings, page),) = calls
    assert page is None
    assert settings.work.name == "quick"
    assert settings.work.parent == run.default_settings().work
    result, calls = asked_for("--quick", "--output", "docs/evidence.md")
    assert result.exit_code == 2
    assert len(calls) == 1
