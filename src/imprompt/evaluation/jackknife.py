"""Intervals of values of whole sets by the jackknife: how a value changes as subjects are left out, some at a time.

The bootstrap would draw some pictures twice. A distance between sets takes those for a set of less variety, so that its
resampled values lie far above the value itself (docs/adr/0028). Leaving out repeats nothing, and Efron and Stein (1981)
show that it errs on the wide side.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from imprompt.evaluation.intervals import Interval

NUM_GROUPS = 30
"""Most groups that are left out in turn; fewer subjects are left out one by one."""

LEAST_SUBJECTS = 5
"""Fewer subjects tell nothing of others."""

_NORMAL = 1.959964  # 97.5 % of the normal distribution


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What a value becomes without each group of subjects.

    Attributes:
        whole: with all of them.
        values: without each.
        sizes: subjects of each.
        noise: standard error that comes from elsewhere, as from subsets drawn at random.
    """

    whole: float
    values: tuple[float, ...]
    sizes: tuple[int, ...]
    noise: float = 0.0

    @property
    def standard_error(self) -> float:
        """The jackknife's for groups of unequal sizes (Busing, Meijer and van der Leeden 1999), and the noise."""
        values, shares = np.array(self.values), np.array(self.sizes) / sum(self.sizes)
        mean = len(values) * self.whole - ((1 - shares) * values).sum()
        pseudo = self.whole / shares - (1 / shares - 1) * values
        variance = ((pseudo - mean) ** 2 / (1 / shares - 1)).mean()
        return float(np.sqrt(variance + self.noise**2))

    def around(self, value: float, num_values: int) -> Interval:
        """The 95 % interval of a value: Student's, with a degree of freedom less than there are groups.

        Args:
            value: Its centre.
            num_values: Pictures behind it.
        """
        half = student(len(self.values) - 1) * self.standard_error
        return Interval(value, value - half, value + half, num_values, sum(self.sizes))

    def less(self, other: "LeftOut") -> "LeftOut":
        """What the difference to another becomes, without the same groups."""
        values = tuple(one - two for one, two in zip(self.values, other.values, strict=True))
        noise = float(np.hypot(self.noise, other.noise))
        return LeftOut(whole=self.whole - other.whole, values=values, sizes=self.sizes, noise=noise)


def groups_of(subjects: Iterable[str]) -> dict[str, int]:
    """Number of the group that each subject is left out with, which depends on nothing but all their names.

    Args:
        subjects: Their names; the same may come again.
    """
    distinct = sorted(set(subjects), key=lambda name: hashlib.sha256(name.encode()).digest())
    return {name: index % NUM_GROUPS for index, name in enumerate(distinct)}


def group_sizes(groups: dict[str, int]) -> tuple[int, ...]:
    """Subjects of each group."""
    return tuple(np.bincount(list(groups.values())).tolist())


def student(freedom: int) -> float:
    """97.5 % of Student's distribution by Cornish and Fisher's expansion: within 0.3 % from 4 degrees of freedom on."""
    z, n = _NORMAL, freedom
    terms: Sequence[float] = (
        z,
        (z**3 + z) / (4 * n),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3),
    )
    return sum(terms)
