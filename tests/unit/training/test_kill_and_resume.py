"""Three kills of `benchmarks/kill_and_resume.py`, whose thirty are evidence outside of the suite."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "kill_and_resume.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="it forks")
def test_a_run_killed_three_times_ends_like_one_that_was_not(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, "--kills", "3"], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "half of a file written" in done.stdout
    assert "every run's end is bit-equal to an uninterrupted one" in done.stdout
