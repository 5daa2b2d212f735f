"""Where a run's figures go: always `log.jsonl`, and the trackers asked for, through accelerate."""

import json
import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imprompt.core.errors import ImpromptError, first_line
from imprompt.core.files import atomic_write

LOG = "log.jsonl"
PROJECT = "imprompt"
"""Name of the project under which wandb and trackio file a run."""


class Tracking:
    """The log of a run and its trackers."""

    def __init__(self, folder: Path, names: tuple[str, ...], config: Mapping[str, Any], step: int) -> None:
        """Open the log and the trackers.

        Args:
            folder: Run folder.
            names: Of "tensorboard", "wandb", "trackio".
            config: What trackers file as the run's settings.
            step: The run goes on after so many steps; what an interrupted run logged beyond them is dropped.

        Raises:
            ImpromptError: The package of a tracker is not installed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / LOG
        drop_lines_after(self._log, step)
        self._trackers = [_start(name, folder, step) for name in names]
        for name, tracker in zip(names, self._trackers, strict=True):
            if config and name != "tensorboard":  # which makes a run of its own of it at every start
                tracker.store_init_configuration(flatten(config))

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Append a line; figures that are no finite numbers are null there.

        Raises:
            ImpromptError: The log cannot be written, as on a full disk.
        """
        line = {"step": step, **figures}
        try:
            with self._log.open("a") as stream:
                stream.write(json.dumps({name: _as_json(value) for name, value in line.items()}) + "\n")
        except OSError as error:
            raise ImpromptError(
                f"'{self._log}' cannot be written ({first_line(error)}); see to it and run again, which goes on from "
                "the newest checkpoint"
            ) from error
        for tracker in self._trackers:
            tracker.log(dict(figures), step=step)

    def close(self) -> None:
        """Let the trackers finish what they write."""
        for tracker in self._trackers:
            tracker.finish()


def drop_lines_after(log: Path, step: int) -> None:
    """Take lines of steps that will be taken again, and a line that was cut short, off a log."""
    if not log.exists():
        return
    text = log.read_text(errors="replace")
    kept = "".join(f"{line}\n" for line in text.splitlines() if _step_of(line) <= step)
    if kept != text:
        with atomic_write(log) as path:
            path.write_text(kept)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names, as trackers want them: numbers, words and None."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, bool | int | float | str | None) else str(value)
    return flat


def _start(name: str, folder: Path, step: int) -> Any:
    from accelerate import tracking

    identity = _identity(folder)
    tracker: Any
    if name == "tensorboard":
        tracker = tracking.TensorBoardTracker("tensorboard", folder, purge_step=step + 1 if step else None)
    elif name == "wandb":
        tracker = tracking.WandBTracker(PROJECT, name=folder.name, id=identity, resume="allow", dir=str(folder))
    else:
        tracker = tracking.TrackioTracker(PROJECT, name=f"{folder.name}-{identity}", resume="allow")
    try:
        tracker.start()
    except ImportError as error:
        raise ImpromptError(
            f"the tracker {name!r} needs the package {name}, which is not installed; 'pip install {name}', or leave it "
            "out of loop.trackers"
        ) from error
    return tracker


def _identity(folder: Path) -> str:
    """What trackers know the run by, also when it goes on on another day."""
    file = folder / "run-id"
    if not file.exists():
        with atomic_write(file) as path:
            path.write_text(secrets.token_hex(4))
    return file.read_text().strip()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _as_json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
