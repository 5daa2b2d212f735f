"""Every Python block of README and docs runs; one that names a model hub runs only with `-m network`."""

import re
import shutil
from pathlib import Path

import pytest

from imprompt import emoji

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
HUB_NAME = re.compile(r"\"[\w.-]+/[\w.-]+\"")


def blocks():
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        found = [match[1] for match in BLOCK.finditer(document.read_text())]
        if document.is_relative_to(ROOT / "docs" / "guide"):
            found = ["\n".join(found)]  # the blocks of a guide follow one another
        for number, code in enumerate(found):
            marks = [pytest.mark.network] if HUB_NAME.search(code) else []
            yield pytest.param(code, id=f"{document.relative_to(ROOT)}:{number}", marks=marks)


@pytest.mark.filterwarnings("ignore:The decode_latents method:FutureWarning")  # diffusers' own, of T2I-Adapters
@pytest.mark.parametrize("code", list(blocks()))
def test_block_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "unet_blueprint" in code:  # which its reader has trained; the base stands in for it
        monkeypatch.setenv("IMPROMPT_CACHE", str(tmp_path))
        shutil.copytree(emoji.bundle_folder() / "unet", tmp_path / "emoji" / "models" / "unet_blueprint")
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


def test_pictures_of_guides_are_there_and_small():
    for document in (ROOT / "docs" / "guide").glob("*.md"):
        for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", document.read_text()):
            assert 0 < (document.parent / path).stat().st_size < 150_000, path
