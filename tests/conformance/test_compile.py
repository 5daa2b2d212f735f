"""torch.compile, in a process without the type checker; the cases are in `compile_cases.py`."""

import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("compile_cases.py")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compile_cases() -> None:
    options = [
        "-o",
        "addopts=--import-mode=importlib",
        "-p",
        "no:cacheprovider",
        "-q",
        "--tb=short",
        "-o",
        "timeout=600",
    ]
    command = [sys.executable, "-m", "pytest", *options, str(CASES)]
    finished = subprocess.run(command, cwd=CASES.parents[2], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout[-6000:] + finished.stderr[-2000:]
    assert " passed" in finished.stdout
