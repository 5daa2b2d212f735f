"""Errors of an evaluation."""

from imprompt.core.errors import ImpromptError


class EvaluationError(ImpromptError):
    """Something cannot be measured: too few samples, features that do not belong together, a damaged result."""
