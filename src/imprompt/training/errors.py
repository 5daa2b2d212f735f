"""Errors of a training run."""

from imprompt.core.errors import ImpromptError


class TrainingDiverged(ImpromptError):
    """The loss stopped being a number."""
