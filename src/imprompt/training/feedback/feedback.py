"""What a run tells while it goes on: validation, contact sheets and the report, at the steps that ask for them."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from imprompt.adapter.adapter import Adapter
from imprompt.core.errors import ImpromptError, first_line
from imprompt.core.files import atomic_write
from imprompt.training.feedback.report import GAIN, LOSS, REPORT, SHEETS, write_report
from imprompt.training.feedback.sheets import SheetPainter
from imprompt.training.feedback.validation import Estimate, ValidationPlan, ValidationResult, ValidationTask, validate
from imprompt.training.loop.distributed import Processes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """Measures and draws at the configured steps.

    Where several processes train, all of them call `after` with the same steps: they share the validation, and the main
    one draws and writes while the others wait.

    Attributes:
        task: What is measured.
        adapter: What is drawn with: its model.
        folder: Run folder.
        processes: Who trains.
        plan: The validation; None measures nothing.
        painter: Draws sheets; None draws none.
        validate_every: Steps between validations; 0 never validates.
        sheet_every: Steps between sheets; 0 draws none.
        report_every: Steps between reports, besides those after validations and sheets.
        num_buckets: Parts of the schedule that the validation is told for.
        draws_everywhere: Draw in all processes, as a base that is sharded over them needs.
    """

    task: ValidationTask
    adapter: Adapter
    folder: Path
    processes: Processes
    plan: ValidationPlan | None = None
    painter: SheetPainter | None = None
    validate_every: int = 0
    sheet_every: int = 0
    report_every: int = 0
    num_buckets: int = 8
    draws_everywhere: bool = False

    @property
    def every(self) -> int:
        """How many steps lie between calls of `after`; 0 where there is nothing to do."""
        validate_every = 0 if self.plan is None else self.validate_every
        sheet_every = 0 if self.painter is None else self.sheet_every
        return math.gcd(validate_every, sheet_every, self.report_every)

    def after(self, step: int) -> Mapping[str, float]:
        """Do what is due after a step, with the weights that the model has now.

        Returns:
            Figures for the log.

        Raises:
            ImpromptError: A validation batch cannot be made. A sheet that cannot be drawn, or anything that cannot be
                written, is noted and stops nothing.
        """
        figures: Mapping[str, float] = {}
        if self.plan is not None and _is_due(step, self.validate_every):
            figures = named_figures(validate(self.task, self.plan, self.processes), self.num_buckets)
        is_drawn = self.painter is not None and _is_due(step, self.sheet_every)
        if self.painter is not None and is_drawn:
            draw = partial(self._draw, self.painter, step)
            _ = draw() if self.draws_everywhere else self.processes.on_main(draw)
        if figures or is_drawn or _is_due(step, self.report_every):
            self.processes.on_main(partial(self._report, step, figures))
        return figures

    def _draw(self, painter: SheetPainter, step: int) -> None:
        path = self.folder / SHEETS / f"step-{step:08d}.png"
        try:
            sheet = painter.draw(self.adapter)
        except (ImpromptError, RuntimeError) as error:  # too little memory is the latter; a run of days must go on
            reason = f"There is no contact sheet of step {step:,}: {first_line(error)}."
            logger.warning(reason)
            self._write(path.with_suffix(".txt"), lambda part: part.write_text(reason, encoding="utf-8"))
            return
        self._write(path, lambda part: sheet.save(part, format="PNG"))

    def _write(self, path: Path, write: Callable[[Path], Any]) -> None:
        if not self.processes.is_main:
            return
        with _noting(path), atomic_write(path) as part:
            write(part)

    def _report(self, step: int, figures: Mapping[str, float]) -> None:
        with _noting(self.folder / REPORT):
            write_report(self.folder, [{"step": step, **figures}])


@contextmanager
def _noting(path: Path) -> Iterator[None]:
    """Note that a file cannot be written; of a full disk, it is for the next checkpoint to stop the run."""
    try:
        yield
    except OSError as error:
        logger.warning("'%s' cannot be written: %s", path, first_line(error))


def named_figures(result: ValidationResult, num_buckets: int) -> dict[str, float]:
    """A validation's numbers as the log has them; parts of the schedule are counted from clean to noise."""
    figures: dict[str, float] = {}
    kinds = (
        (LOSS, result.loss, result.losses_by_bucket(num_buckets)),
        (GAIN, result.gain, result.gains_by_bucket(num_buckets)),
    )
    for name, whole, parts in kinds:
        figures.update(_figures(name, whole))
        for number, part in enumerate(parts, 1):
            figures.update(_figures(f"{name}/{number}of{num_buckets}", part))
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _figures(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.mean, f"{name}_error": found.error}


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
