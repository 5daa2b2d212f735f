"""An arm: one way to draw from a reference. Every claim compares arms on the same references from the same noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from jaxtyping import UInt8
from torch import Tensor

from imprompt.recipes.emoji.evidence.references import Reference
from imprompt.recipes.emoji.evidence.settings import EvidenceSettings

Drawer: TypeAlias = Callable[[Sequence[Reference], Sequence[int]], UInt8[Tensor, "references 3 height width"]]
"""One picture for each reference, each from the noise of its own seed."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to draw from a reference.

    Attributes:
        name: Of its files: letters, digits and dashes.
        title: In tables.
        open: Loads what it draws with, once, and returns what draws. Called in the process that draws; it is a function
            of a module (or a `functools.partial` of one), so that it travels between processes.
        needs_training: Folders of the trainings that must be finished first, as `training.trained_folder` names them:
            by all that decides what they learn.
    """

    name: str
    title: str
    open: Callable[[EvidenceSettings], Drawer]
    needs_training: tuple[str, ...] = ()
