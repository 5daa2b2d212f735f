"""`imprompt generate`: pictures with provenance, or one line of error and no file."""

import pytest
import torch
from PIL import Image

from imprompt.adapter.checkpoint import save_adapter
from imprompt.cli import generate as command
from imprompt.cli.generate import image_prompts, parse_size
from imprompt.core.errors import PromptError
from imprompt.generation.result import read_provenance
from tests import tiny

QUICK = ("--steps", "2", "--seed", "3")


def test_an_image_alone(embedded, run, cat, tmp_path):
    code, out, err = run("generate", "--image", cat, *QUICK, "--output", "out.png")
    assert (code, out) == (0, "out.png\n"), err
    told = read_provenance(tmp_path / "out.png")
    assert (told["prompt"], told["seed"], told["steps"], told["base"]["name"]) == ("", 3, 2, embedded.name)
    assert told["adapters"][0]["name"] == "tiny-resampler"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat.png", "out.png"]


def test_a_text_alone_needs_no_adapter(embedded, run, tmp_path):
    code, out, _ = run("generate", "a cat", *QUICK)
    assert (code, out) == (0, "outputs/3.png\n")
    assert read_provenance(tmp_path / "outputs" / "3.png")["adapters"] == []


def test_every_option_of_an_image_reaches_it(embedded, run, cat, tmp_path):
    tiny.picture(seed=4).save(tmp_path / "mask.png")
    images = ("-i", cat, "-i", cat, "--weight", "0.4", "--weight", "0.6", "--mask", "none", "--mask", "mask.png")
    window = ("--start", "0.1", "--end", "0.9", "--fit", "pad", "--adapter", "global")
    code, _, err = run("generate", "a cat", *images, *window, *QUICK, "-o", "out.png")
    assert code == 0, err
    first, second = read_provenance(tmp_path / "out.png")["image_prompts"]
    assert (first["weight"], first["mask"]) == (0.4, None)
    assert (second["weight"], second["mask"]["file"]) == (0.6, "mask.png")
    assert (first["start"], second["end"], first["fit"]) == (0.1, 0.9, "pad")


def test_texts_of_regions_need_no_adapter(embedded, run, cat, tmp_path):
    regions = ("--region", "a dog", "--region-mask", "0,0,0.5,1", "--region", "a fox", "--region-mask", cat)
    code, _, err = run("generate", "a cat", *regions, *QUICK, "-o", "out.png")
    assert code == 0, err
    told = read_provenance(tmp_path / "out.png")
    first, second = told["regions"]
    assert (first["text"], first["mask"]) == ("a dog", {"box": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]})
    assert (second["text"], second["mask"]["file"], told["adapters"]) == ("a fox", "cat.png", [])
    (tmp_path / "shot.toml").write_text(
        'prompt = "a cat"\n[[regions]]\ntext = "a dog"\nmask = { box = [0, 0, 0.5, 1] }\n'
        '[[image_prompts]]\nimage = "cat.png"\n'
    )
    code, _, err = run("generate", "--request", "shot.toml", *QUICK, "-o", "both.png")
    assert code == 0, err
    told = read_provenance(tmp_path / "both.png")
    assert told["regions"] == [first] and len(told["image_prompts"]) == 1


def test_pictures_are_saved_as_they_are_made(embedded, run, cat, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "BATCH_SIZE", 2)
    code, out, err = run("generate", "-i", cat, *QUICK, "-n", 3, "-o", "many.png")
    assert code == 0, err
    assert out.split() == ["many-1.png", "many-2.png", "many-3.png"]
    assert [read_provenance(tmp_path / name)["seed"] for name in out.split()] == [3, 4, 5]


def test_another_base_with_its_adapter(embedded, run, cat, tmp_path):
    base = tmp_path / "base"
    pipe = tiny.pipeline()
    pipe.save_pretrained(base)
    tiny.vision_tower().save_pretrained(tmp_path / "encoder")
    adapter = save_adapter(tiny.adapter(pipe.unet), tmp_path / "mine.safetensors")
    named = ("--base", base, "--encoder", tmp_path / "encoder", "--scheduler", "lcm", "--size", "32x16", "--offload")
    code, _, err = run("generate", "-i", cat, "--adapter", adapter, *named, *QUICK, "-o", "out.png")
    assert code == 0, err
    told = read_provenance(tmp_path / "out.png")
    assert (told["width"], told["height"], told["base"]["scheduler"]) == (32, 16, "LCMScheduler")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "nothing to draw"),
        (("-i", "missing.png"), "does not exist"),
        (("-i", "text.png"), "not a picture"),
        (("-i", "cat.png", "--weight", "nan"), "weight must be a finite number"),
        (("-i", "cat.png", "--weight", "1", "--weight", "2"), "2 --weight for 1 --image"),
        (("a", "--mask", "cat.png"), "1 --mask for 0 --image"),
        (("-i", "cat.png", "--mask", "missing.png"), "does not exist"),
        (("-i", "cat.png", "--subtract", "a cat"), "takes a text from pooled features"),
        (("-i", "cat.png", "--adapter", "global", "--subtract", "a cat"), "pass --text-encoder"),
        (("a", "--region", "b"), "0 --region-mask for 1 --region"),
        (("a", "--region", "b", "--region-mask", "missing.png"), "does not exist"),
        (("a", "--region", "b", "--region-mask", "0,0,0,1"), "a box needs"),
        (("-i", "cat.png", "--mask", "wide.png"), "give one of the picture's shape"),
        (("-i", "cat.png", "--start", "0.9", "--end", "0.5"), "start and end"),
        (("-i", "cat.png", "--fit", "squeeze"), "fit must be one of"),
        (("-i", "cat.png", "--base", "BASE"), "needs an --adapter"),
        (("-i", "cat.png", "--adapter", "cut.safetensors"), "no complete safetensors file"),
        (("-i", "cat.png", "--adapter", "nan.safetensors"), "NaN"),
        (("-i", "cat.png", "--adapter", "code.bin"), "refused"),
        (("-i", "cat.png", "--adapter", "plus", "--encoder", "ENCODER"), "wants features of width 20"),
        (("a", "--size", "large"), "--size is 'large'"),
        (("a", "--size", "33"), "expected a multiple of 2"),
        (("a", "--steps", "0"), "steps is 0"),
        (("a", "--steps", "100000"), "the pipeline refuses these settings"),
        (("-i", "bomb.png"), "at most 64 million"),
        (("a", "--scheduler", "fast"), "unknown scheduler"),
        (("a", "--output", "out.jpg"), "give a name that ends in .png"),
        (("a", "--base", "nowhere"), "not a file or folder here"),
    ],
)
def test_bad_input_is_one_line_and_no_file(embedded, run, cat, tmp_path, arguments, words):
    make_bad_files(tmp_path, embedded)
    if "bomb.png" in arguments:
        Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    places = {"BASE": embedded, "ENCODER": tmp_path / "encoder"}
    before = sorted(tmp_path.rglob("*"))
    arguments = [places.get(argument, argument) for argument in arguments]
    output = () if "--output" in arguments else ("--output", "out.png")
    code, out, err = run("generate", *arguments, "--seed", 1, *output)
    assert code == 1 and out == ""
    assert words in err and err.count("\n") == 1 and "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def make_bad_files(folder, embedded):
    (folder / "text.png").write_text("this is no picture")
    tiny.picture(size=(40, 20)).save(folder / "wide.png")
    whole = (embedded / "adapters" / "ip-adapter_emoji.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    broken = tiny.adapter(tiny.unet())
    broken.image_proj.proj.weight[0, 0] = float("nan")  # pyright: ignore
    save_adapter(broken, folder / "nan.safetensors")
    torch.save({"image_proj": {"a": print}, "ip_adapter": {}}, folder / "code.bin")
    tower = tiny.vision_tower()
    config = tower.config.__class__(**{**tower.config.to_dict(), "hidden_size": 24})
    tower.__class__(config).save_pretrained(folder / "encoder")


def test_an_interrupt_leaves_what_is_done_and_nothing_half_made(embedded, run, cat, tmp_path, monkeypatch):
    from imprompt.generation import generate as generation

    monkeypatch.setattr(command, "BATCH_SIZE", 1)
    original, calls = generation._sample, []

    def sample(*given):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(generation, "_sample", sample)
    code, out, err = run("generate", "-i", cat, *QUICK, "-n", 3, "-o", "many.png")
    assert code == 130 and out == "many-1.png\n" and "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat.png", "many-1.png"]


def test_a_full_accelerator_is_one_line(embedded, run, monkeypatch):
    from imprompt.generation import generate as generation

    def sample(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")

    monkeypatch.setattr(generation, "_sample", sample)
    code, _, err = run("generate", "a cat")
    assert code == 1 and "try --offload" in err and err.count("\n") == 1


def test_one_value_serves_all_images():
    first, second = image_prompts(["a.png", "b.png"], "crop", weight=[0.5], mask=["none", "m.png"], start=[], end=None)
    assert (first.weight, second.weight, first.mask, second.mask) == (0.5, 0.5, None, "m.png")
    with pytest.raises(PromptError, match="3 --end for 2 --image"):
        image_prompts(["a.png", "b.png"], "crop", end=[0.1, 0.2, 0.3])


@pytest.mark.parametrize(("text", "size"), [(None, (None, None)), ("64", (64, 64)), ("768x512", (512, 768))])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "64x", "-64", "1x2x3", "64.0"])
def test_sizes_that_are_none(text):
    with pytest.raises(PromptError, match="expected a side"):
        parse_size(text)


def test_the_help_shows_an_example(run):
    code, out, _ = run("generate", "--help")
    assert code == 0 and "imprompt generate --image cat.png" in " ".join(out.split())
