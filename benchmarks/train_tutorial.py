"""From files to a picture in under ten minutes on two cores: the commands of docs/guide/train.md, timed.

    python benchmarks/train_tutorial.py [--keep FOLDER]

It reads them off the page, so that the page cannot say what does not run. On a machine that does other things as well,
look at processor seconds. The reference gain is that of the run's last validation.
"""

import argparse
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "guide" / "train.md"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LIMIT = 600  # seconds


def commands() -> list[tuple[str, list[str]]]:
    """What the page tells to do: a name, and arguments of Python."""
    found: list[tuple[str, list[str]]] = []
    for language, text in BLOCK.findall(PAGE.read_text()):
        if language == "python":
            found.append(("draw pictures", ["-c", text]))
        else:
            lines = (shlex.split(line) for line in text.splitlines())
            found += [(" ".join(words[:3]), ["-m", *words]) for words in lines]
    return found


def run(folder: Path) -> list[tuple[str, float]]:
    """Run all commands in a folder; seconds of each."""
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    taken: list[tuple[str, float]] = []
    print("| command | seconds | processor seconds |\n|---|---:|---:|")
    for name, arguments in commands():
        started, busy = time.monotonic(), _processor_seconds()
        done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name} failed: {done.stderr[-2000:]}")
        taken.append((name, time.monotonic() - started))
        print(f"| {name} | {taken[-1][1]:.0f} | {_processor_seconds() - busy:.0f} |", flush=True)
    return taken


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="Work here, and leave everything.")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        total = sum(seconds for _, seconds in run(folder))
        log = (folder / "runs" / "emoji-plus" / "log.jsonl").read_text().splitlines()
        gains = [line for line in map(json.loads, log) if line.get("validation/reference_gain") is not None]
        gain, error = (gains[-1][f"validation/reference_gain{end}"] for end in ("", "_error"))
        assert (folder / "monster.png").is_file()
        print(f"| all | {total:.0f} | {_processor_seconds():.0f} |")
        print(f"reference gain {gain:.3f} ± {error:.3f} at step {gains[-1]['step']}")
        print("within ten minutes" if total < LIMIT else "longer than ten minutes")


if __name__ == "__main__":
    main()
