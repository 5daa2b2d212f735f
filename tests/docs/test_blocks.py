"""Every Python block of README and docs runs; one that names a model hub runs only with `-m network`."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
HUB_NAME = re.compile(r"\"[\w.-]+/[\w.-]+\"")


def blocks():
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for number, match in enumerate(BLOCK.finditer(document.read_text())):
            marks = [pytest.mark.network] if HUB_NAME.search(match[1]) else []
            name = f"{document.relative_to(ROOT)}:{number}"
            yield pytest.param(match[1], id=name, marks=marks)


@pytest.mark.parametrize("code", list(blocks()))
def test_block_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "block", "exec"), {"__name__": "__main__"})


def test_there_are_blocks():
    assert len(list(blocks())) >= 2


def test_readme_picture_is_there():
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / path).is_file(), path


def test_readme_has_no_gaps_and_names_files_that_are_there():
    text = (ROOT / "README.md").read_text()
    assert not re.findall(r"^[A-Z]{4,}$", text, re.MULTILINE)
    for path in re.findall(r"`(src/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path
