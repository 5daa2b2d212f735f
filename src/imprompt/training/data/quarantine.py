"""The list of samples that could not be used, with a budget: without one, a data set may be half gone unnoticed."""

import json
import os
import socket
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from imprompt.core.files import atomic_write
from imprompt.training.data.table import Loss
from imprompt.training.errors import DataError


class Quarantine:
    """Lost samples of a run, listed by any number of processes: each writes a file of its own, and all read all.

    It may be sent to other processes; what one of them reports counts in all.

    Attributes:
        folder: Where the lists are, one JSON object a line.
        budget: Fraction of samples that may be lost.
        total: Samples that there are.
    """

    def __init__(self, folder: Path, budget: float, total: int) -> None:
        self.folder = folder
        self.budget = budget
        self.total = total
        self._known: dict[str, str] = {}
        self._read_to: dict[Path, int] = {}

    def report(self, sample_id: str, reason: str) -> None:
        """Put a sample on the list, once.

        Raises:
            DataError: More are lost than may be.
        """
        if sample_id not in self.losses():
            self.folder.mkdir(parents=True, exist_ok=True)
            line = json.dumps({"where": sample_id, "reason": reason}) + "\n"
            with self._own_file().open("ab", buffering=0) as file:
                file.write(line.encode())
        self.check()  # also of what a run before this one had listed: that it was started again mends nothing

    def losses(self) -> dict[str, str]:
        """All samples on the list, and why; after a restart also those of before."""
        for path in sorted(self.folder.glob("*.jsonl")):
            self._read_on(path)
        return dict(self._known)

    def check(self) -> None:
        """Hold the list against the budget.

        Raises:
            DataError: More are lost than may be.
        """
        lost = self.losses()
        if len(lost) > self.budget * self.total:
            name, text = next(iter(lost.items()))
            reason = text.rstrip(".")
            raise DataError(
                f"{len(lost):,} of {self.total:,} samples cannot be used, and {self.budget:.1%} may be lost; the first "
                f"is {name!r}: {reason}. All are listed in '{self.folder}'; mend them and delete that folder, or raise "
                "data.bad_samples."
            )

    def _own_file(self) -> Path:
        return self.folder / f"{socket.gethostname()}-{os.getpid()}.jsonl"

    def _read_on(self, path: Path) -> None:
        """Read what was added to a list; a last line that is still being written waits for the next time."""
        begin = self._read_to.get(path, 0)
        if path.stat().st_size <= begin:
            return
        with path.open("rb") as file:
            file.seek(begin)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read_to[path] = begin + len(whole) + len(newline)
        for loss in _parsed(whole):
            self._known.setdefault(loss.where, loss.reason)


def write_losses(path: Path, losses: Iterable[Loss]) -> Path | None:
    """Write a list of losses, or take away an old one if there are none.

    Returns:
        The path, if there are any.
    """
    lines = [json.dumps(asdict(loss)) + "\n" for loss in losses]
    if not lines:
        path.unlink(missing_ok=True)
        return None
    with atomic_write(path) as part:
        part.write_text("".join(lines), encoding="utf-8")
    return path


def read_losses(path: Path) -> list[Loss]:
    """Read a list of losses; none if there is no file."""
    return list(_parsed(path.read_bytes())) if path.is_file() else []


def _parsed(content: bytes) -> Iterable[Loss]:
    """The losses of all lines that are whole; a killed process may have left half a line."""
    for line in content.splitlines():
        try:
            record = json.loads(line)
            yield Loss(str(record["where"]), str(record["reason"]))
        except (ValueError, KeyError, TypeError):
            continue
