"""`imprompt grid` and request files: one sheet over two settings, every value read as a request file reads it."""

import pytest
from PIL import Image

from imprompt.cli.grid import Axis, cells_of, parse_axis
from imprompt.core.chart import bar_chart, line_chart
from imprompt.core.errors import PromptError
from imprompt.generation.request import Request
from imprompt.generation.result import read_provenance
from imprompt.prompts.image_prompt import ImagePrompt

QUICK = ("--steps", "2")


def test_a_grid_of_two_settings(embedded, run, cat, tmp_path):
    axes = ("--columns", "weight=0.2,1", "--rows", "blocks=style|0:1.0, 2:0.5", "--plot", "plot.png")
    code, out, err = run("grid", "a cat", "-i", cat, *axes, *QUICK)
    assert (code, out) == (0, "grid.png\nplot.png\n"), err
    cells = read_provenance(tmp_path / "grid.png")["cells"]
    said = [(cell["image_prompts"][0]["blocks"], cell["image_prompts"][0]["weight"]) for cell in cells]
    assert said == [("style", 0.2), ("style", 1.0), ("0:1.0, 2:0.5", 0.2), ("0:1.0, 2:0.5", 1.0)]
    assert {cell["seed"] for cell in cells} == {0}
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.size == (640, 426)


def test_seeds_are_the_columns_if_nothing_is_said(embedded, run, tmp_path):
    code, _, err = run("grid", "a cat", *QUICK)
    assert code == 0, err
    assert [cell["seed"] for cell in read_provenance(tmp_path / "grid.png")["cells"]] == [1, 2, 3]


def test_a_request_file_for_both_commands(embedded, run, cat, tmp_path):
    (tmp_path / "shot.toml").write_text(
        'prompt = "a cat"\nseed = 4\nsteps = 2\nadapter = "global"\n'
        '[[image_prompts]]\nimage = "cat.png"\nblocks = "style"\nmask = { box = [0, 0, 0.5, 1] }\n'
    )
    code, out, err = run("generate", "--request", "shot.toml", "-o", "out.png")
    assert (code, out) == (0, "out.png\n"), err
    told = read_provenance(tmp_path / "out.png")
    assert (told["prompt"], told["seed"], told["adapters"][0]["name"]) == ("a cat", 4, "tiny-linear")
    assert told["image_prompts"][0]["blocks"] == "style" and "box" in told["image_prompts"][0]["mask"]
    code, _, err = run("generate", "a dog", "--request", "shot.toml", "--seed", 9, "-o", "out.png")
    assert code == 0 and (read_provenance(tmp_path / "out.png")["prompt"]) == "a dog", err
    code, _, err = run("grid", "--request", "shot.toml", "--columns", "end=0.5,1", "--rows", "image=cat.png")
    assert code == 0 and len(read_provenance(tmp_path / "grid.png")["cells"]) == 2, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate", "--request", "missing.toml"), "no request file"),
        (("generate", "--request", "bad.toml"), "did you mean 'prompt'"),
        (("generate", "--request", "full.toml", "-i", "cat.png"), "write the --image there too"),
        (("generate", "--request", "base.toml"), "base must be a text"),
        (("grid", "a", "--columns", "wieght=1"), "did you mean 'weight'"),
        (("grid", "a", "--columns", "seed"), "gives seed no values"),
        (("grid", "a", "--columns", "weight=1,2"), "there are none; give an --image"),
        (("grid", "-i", "cat.png", "--columns", "blocks=styel"), "did you mean 'style'"),
        (("grid", "-i", "cat.png", "--columns", "weight=nan"), "weight must be a finite number"),
        (("grid", "a", "--columns", "seed=" + ",".join(map(str, range(401)))), "at most 400"),
        (("grid", "a", "--output", "folder"), "names a folder"),
    ],
)
def test_what_makes_no_sense_is_one_line(embedded, run, cat, tmp_path, arguments, words):
    (tmp_path / "bad.toml").write_text('promt = "a"')
    (tmp_path / "full.toml").write_text('image_prompts = ["cat.png"]')
    (tmp_path / "base.toml").write_text("prompt = 'a'\nbase = 3")
    code, out, err = run(*arguments)
    assert (code, out) == (1, "") and words in " ".join(err.split()), err


def test_axes():
    assert parse_axis("weight=0.2, 1") == Axis("weight", (0.2, 1))
    assert parse_axis("prompt=a cat, sitting|a dog").values == ("a cat, sitting", "a dog")
    assert parse_axis("image=a/cat.png").labels == ["image cat"]
    start = Request(prompt="a", image_prompts=[ImagePrompt("a.png", weight=0.3), ImagePrompt("b.png")])
    cells = cells_of(start, parse_axis("end=0.5"), parse_axis("seed=1,2"))
    assert [(cell.seed, [prompt.end for prompt in cell.image_prompts]) for cell in cells] == [
        (1, [0.5, 0.5]),
        (2, [0.5, 0.5]),
    ]
    assert cells[0].image_prompts[0].weight == 0.3
    with pytest.raises(PromptError, match="did you mean 'steps'"):
        parse_axis("step=3")


def test_charts():
    chart = line_chart({"a": [0.0, 1.0], "b": [0.5, 0.5]}, [0.2, 0.8], x_label="weight", y_label="likeness")
    assert chart.size == (640, 426) and len(chart.getcolors(10**6)) > 10
    assert line_chart({"a": [0.5]}, [1.0], x_label="x", y_label="y").size == (640, 426)
    bars = bar_chart([1.0, 0.0, -1.0])
    colours = [bars.getpixel((20, 10)), bars.getpixel((80, 10)), bars.getpixel((130, 70))]
    assert (
        colours[0] != (255, 255, 255) and colours[1] == (255, 255, 255) and colours[2] not in (colours[0], colours[1])
    )
