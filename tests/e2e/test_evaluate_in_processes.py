"""`imprompt evaluate` under torchrun: two processes draw and measure what one does."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from imprompt.emoji.bundle import bundle_folder

LAUNCHERS = {
    "one": (),
    "two": ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"),
}


@pytest.mark.slow
def test_two_processes_leave_the_results_of_one(tmp_path: Path) -> None:
    references = tmp_path / "references"
    references.mkdir()
    for path in sorted((bundle_folder() / "references").glob("*.png"))[:3]:
        shutil.copy(path, references)
    asked = ("evaluate", "folder", "references", "--metrics", "near_copies", "--steps", "2", "--num-seeds", "1")
    for output, launcher in LAUNCHERS.items():
        command = [sys.executable, "-m", *launcher, "imprompt", *asked, "--output", output]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("report.html") >= 1
    one, two = (tmp_path / output for output in LAUNCHERS)
    assert (one / "results.json").read_bytes() == (two / "results.json").read_bytes()
    pictures = [{path.name: path.read_bytes() for path in (each / "pictures").iterdir()} for each in (one, two)]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 3 * 2
