"""Files and functions stay small enough to read; the library logs and does not print."""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "imprompt"
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield str(path.relative_to(SOURCE)), ast.parse(path.read_text())


def test_files() -> None:
    lines = {str(path.relative_to(SOURCE)): len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py")}
    assert {name: count for name, count in lines.items() if count > MAX_FILE_LINES} == {}


def test_functions() -> None:
    """Counted from the first statement after the docstring: a long explanation is no long function."""
    long = {}
    for name, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            count = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            if count > MAX_FUNCTION_LINES:
                long[f"{name}:{node.name}"] = count
    assert long == {}


def test_nothing_prints() -> None:
    printing = [
        f"{name}:{node.lineno}"
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert printing == []


def test_no_nondescript_names() -> None:
    nondescript = ("utils", "util", "helper", "helpers", "manager", "misc", "common")
    assert [str(path) for path in SOURCE.rglob("*.py") if path.stem in nondescript] == []
