"""`imprompt demo`: one sheet, one command to type next."""

import shlex

from PIL import Image

from imprompt.cli.demo import COLUMNS, TEXTS
from imprompt.generation.result import read_provenance


def test_the_sheet(embedded, run, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["imprompt"])
    code, out, err = run("demo", "--output", "demo.png", "--steps", "1", "--adapter", "global")
    assert code == 0, err
    first, second = out.splitlines()
    assert first.startswith(f"demo.png: {len(TEXTS) * len(COLUMNS)} pictures from {len(TEXTS)} references in ")
    with Image.open(tmp_path / "demo.png") as sheet:
        assert sheet.width > len(COLUMNS) * 128 and sheet.height > len(TEXTS) * 128
    told = read_provenance(tmp_path / "demo.png")
    assert len(told["cells"]) == len(TEXTS) * len(COLUMNS)
    assert told["adapters"][0]["name"] == "tiny-linear"
    assert [path.name for path in tmp_path.iterdir()] == ["demo.png"]
    typed = shlex.split(second.removeprefix("Next: "))
    assert typed[0] == "imprompt"
    code, out, err = run(*typed[1:], "--steps", "1")
    assert code == 0, err
    assert out.strip() == typed[-1]


def test_an_output_that_cannot_be_is_said_before_anything_is_drawn(embedded, run, tmp_path):
    code, _, err = run("demo", "--output", "demo.gif")
    assert code == 1 and "ends in .png" in err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_bundle_is_one_line(run, monkeypatch, tmp_path):
    from imprompt.core.errors import BundleError
    from imprompt.emoji import bundle

    def missing():
        raise BundleError("the embedded model is not there; reinstall imprompt")

    monkeypatch.setattr(bundle, "bundle_folder", missing)
    code, out, err = run("demo", "--output", tmp_path / "demo.png")
    assert code == 1 and out == ""
    assert err == "BundleError: the embedded model is not there; reinstall imprompt\n"
