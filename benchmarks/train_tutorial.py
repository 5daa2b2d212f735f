"""From files to a picture in under ten minutes on two cores: the commands of docs/guide/train.md, timed.

    python benchmarks/train_tutorial.py [--keep FOLDER]

It reads them off the page, so that the page cannot say what does not run. On a machine that does other things as well,
look at processor seconds. Below stands what the run's validations told; with --keep, `sheet.png` shows the reference
and the picture.
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

from PIL import Image

from imprompt.core.sheet import contact_sheet

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


def _told(line: dict[str, float], name: str) -> str:
    return f"{line[f'validation/{name}']:.3f} ± {line[f'validation/{name}_error']:.3f}"


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
        assert (folder / "monster.png").is_file()
        print(f"| all | {total:.0f} | {_processor_seconds():.0f} |")
        print("\n| step | validation loss | reference gain |\n|---:|---:|---:|")
        for line in gains:
            print(f"| {line['step']} | {_told(line, 'loss')} | {_told(line, 'reference_gain')} |")
        reference, made = (Image.open(folder / name) for name in ("monsters/003.png", "monster.png"))
        contact_sheet([[reference, made]], ["reference", f"after {gains[-1]['step']} steps"]).save(folder / "sheet.png")
        print("within ten minutes" if total < LIMIT else "longer than ten minutes")


if __name__ == "__main__":
    main()
