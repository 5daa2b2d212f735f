"""`imprompt report`: the page of a training run, written anew."""

from pathlib import Path
from typing import Annotated

import typer


def report(folder: Annotated[Path, typer.Argument(help="The output folder of a run.")]) -> None:
    """Write report.html of a training run: curves, contact sheets, settings; also while it goes on.

    Example:

    imprompt report runs/plus
    """
    from imprompt.training.feedback.report import write_report

    typer.echo(str(write_report(folder)))
