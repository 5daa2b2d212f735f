"""Other libraries' errors in one phrase."""

import ast
from pathlib import Path

import pytest

import imprompt
from imprompt.core.errors import MAX_REASON, first_line

SOURCES = Path(imprompt.__file__).parent


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("no such key.\nand more"), "no such key"),
        (KeyError(), "KeyError"),
        (OSError("\n\n  first\nsecond"), "first"),
        (RuntimeError("  "), "RuntimeError"),
        (RuntimeError("x" * 1000), "x" * MAX_REASON),
    ],
)
def test_the_first_line(error: Exception, words: str) -> None:
    assert first_line(error) == words


def test_it_is_written_once() -> None:
    """Nobody cuts an error's message into lines by another rule."""
    found = [
        path.name
        for path in SOURCES.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and "first_line" in node.name
        or isinstance(node, ast.Call)
        and ast.unparse(node).startswith("next(iter(str(error)")
    ]
    assert set(found) == {"errors.py"}
