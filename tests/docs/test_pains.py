"""docs/guide/pains.md counts all that hurts, and names tests that there are."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guide" / "pains.md"
ROW = re.compile(r"^\| (\d+) \|.*\| `(\S+)::(test_\w+)` \|$", re.MULTILINE)


def names_in(path: Path) -> set[str]:
    return {part.name for part in ast.parse(path.read_text()).body if isinstance(part, ast.FunctionDef)}


def test_every_answer_names_a_test_that_there_is():
    rows = ROW.findall(PAGE.read_text())
    assert [int(number) for number, _, _ in rows] == list(range(1, 45))
    missing = [f"{file}::{name}" for _, file, name in rows if name not in names_in(ROOT / "tests" / file)]
    assert not missing
