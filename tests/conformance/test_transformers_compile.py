"""torch.compile of diffusion transformers, without the type checker; the cases: `transformer_compile_cases.py`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("transformer_compile_cases.py")


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
    environment = {**os.environ, "JAXTYPING_DISABLE": "1"}
    finished = subprocess.run(
        command, cwd=CASES.parents[2], capture_output=True, text=True, check=False, env=environment
    )
    assert finished.returncode == 0, finished.stdout[-6000:] + finished.stderr[-2000:]
    assert " passed" in finished.stdout
