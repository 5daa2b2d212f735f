"""An arm without a model that writes down what is asked of it, in a module that a new process imports at once."""

import json
import time
from pathlib import Path

import torch


def open_stub(settings, diary: Path, tint: int = 0, fails_at: int | None = None, failure: type = KeyboardInterrupt):
    """Draws noise, and writes down every time that it is opened or draws.

    Args:
        settings: Not read.
        diary: Where to; one JSON object a line.
        tint: Added to every pixel.
        fails_at: Seed of the first reference at which it raises `failure`.
        failure: A kind of exception.
    """

    def draw(references, seeds):
        if seeds[0] == fails_at:
            raise failure("as told")
        _write(diary, {"drawn": tint, "numbers": [one.number for one in references], "seeds": list(seeds)})
        rows = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return (torch.stack(rows) * 200 + tint).to(torch.uint8)

    _write(diary, {"opened": tint})
    return draw


def sleep_and_tell(diary: Path, seconds: int) -> int:
    """Sleep, and then write down for how long."""
    time.sleep(seconds)
    diary.parent.mkdir(exist_ok=True)
    with diary.open("a") as file:
        file.write(f"{seconds}\n")
    return seconds


def num_threads(_: object) -> int:
    """How many threads torch has here."""
    return torch.get_num_threads()


def _write(diary: Path, line: dict[str, object]) -> None:
    diary.parent.mkdir(exist_ok=True)
    with diary.open("a") as file:
        file.write(json.dumps(line | {"threads": torch.get_num_threads()}) + "\n")
