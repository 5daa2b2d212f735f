"""Errors of a training run."""

from imprompt.core.errors import ImpromptError


class TrainingDiverged(ImpromptError):
    """The loss stopped being a number."""


class DiskFull(ImpromptError):
    """A checkpoint does not fit; the ones before it stay."""


class OtherRun(ImpromptError):
    """A run folder holds a run that the present settings cannot go on with."""


class DataError(ImpromptError):
    """Training data that cannot be used, or too much of it that cannot be read."""
