"""Tables of templated keys: one row says what a tensor is called here and there, and is read in both directions.

A template holds figures in braces: `{n}` the number of an attention, `{i}` another number, `{path}` the path of a
UNet's attention, which stands for its number, `{rest}` whatever follows.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from imprompt.adapter.checkpoint.paths import PATH

_PATTERNS = {"n": r"\d{1,6}", "i": r"\d{1,6}", "path": PATH, "rest": r".+"}


@dataclass(frozen=True)
class Row:
    """One kind of tensor.

    Attributes:
        there: its template in the foreign layout; two if it is in two halves there, the upper and the lower rows.
        here: its template in ours.
    """

    there: str | tuple[str, str]
    here: str

    @property
    def halves(self) -> tuple[str, ...]:
        """The foreign templates, one or two."""
        return (self.there,) if isinstance(self.there, str) else self.there


@lru_cache(maxsize=1024)
def pattern_of(template: str) -> re.Pattern[str]:
    """What a template matches, a named group for every figure."""
    parts = re.split(r"\{(\w+)\}", template)
    texts = (re.escape(part) if at % 2 == 0 else f"(?P<{part}>{_PATTERNS[part]})" for at, part in enumerate(parts))
    return re.compile("".join(texts))


def matching(template: str, keys: Iterable[str]) -> list[str]:
    """The keys that a template matches."""
    pattern = pattern_of(template)
    return [key for key in keys if pattern.fullmatch(key)]


def to_ours(
    rows: Sequence[Row], tensors: Mapping[str, Tensor], numbers: Mapping[str, int] | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename foreign tensors, and join those that come in halves.

    Args:
        rows: the table; the first row that matches counts.
        tensors: by foreign keys.
        numbers: of the attentions by their paths.

    Returns:
        By our keys; and the foreign keys that no row knows.
    """
    ours: dict[str, Tensor] = {}
    halves: dict[str, dict[int, Tensor]] = {}
    unknown: list[str] = []
    for key, value in tensors.items():
        found = _find(rows, key, numbers or {})
        if found is None:
            unknown.append(key)
        elif isinstance(found[0].there, str):
            ours.setdefault(found[1], value)
        else:
            halves.setdefault(found[1], {})[found[2]] = value
    for key, parts in halves.items():
        if len(parts) == 2 and parts[0].shape[1:] == parts[1].shape[1:] and parts[0].ndim:
            ours[key] = torch.cat([parts[0], parts[1]])
    return ours, unknown


def to_theirs(
    rows: Sequence[Row], tensors: Mapping[str, Tensor], paths: Mapping[int, str] | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """The inverse of `to_ours`: rename our tensors, and cut those that come in halves there.

    Returns:
        By foreign keys; and our keys that no row knows.
    """
    theirs: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, value in tensors.items():
        for row in rows:
            match = pattern_of(row.here).fullmatch(key)
            names = None if match is None else _named(match.groupdict(), paths or {})
            if names is not None and not ("{path}" in row.halves[0] and "path" not in names):
                cut = value.chunk(2) if len(row.halves) == 2 else (value,)
                theirs |= {half.format(**names): part for half, part in zip(row.halves, cut, strict=True)}
                break
        else:
            unknown.append(key)
    return theirs, unknown


def _find(rows: Sequence[Row], key: str, numbers: Mapping[str, int]) -> tuple[Row, str, int] | None:
    """The row of a foreign key, our key for it, and which half it is."""
    for row in rows:
        for half, template in enumerate(row.halves):
            match = pattern_of(template).fullmatch(key)
            if match is None:
                continue
            names: dict[str, Any] = match.groupdict()
            if "path" in names:
                names["n"] = numbers[names["path"]]
            elif "n" in names:
                names["n"] = int(names["n"])
            return row, row.here.format(**names), half
    return None


def _named(names: dict[str, Any], paths: Mapping[int, str]) -> dict[str, Any]:
    number = names.get("n")
    return {**names, "path": paths[int(number)]} if number is not None and int(number) in paths else names
