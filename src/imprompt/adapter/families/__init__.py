"""Families: what a kind of denoiser looks like to an adapter. One short file, or one row of one, for each.

Every module of this folder gives a tuple `FAMILIES`; a new base is a new row, or a new file, and nothing else changes.
The first family that fits a host is its own; others (`flux-xlabs` beside `flux`) are chosen by an adapter's spec.
"""

import importlib
import pkgutil
from functools import lru_cache

from torch import nn

from imprompt.adapter.families.base import Family, HostCall
from imprompt.core.errors import HostMismatch

__all__ = ["Family", "HostCall", "all_families", "family_named", "family_names", "family_of"]


@lru_cache(maxsize=1)
def all_families() -> dict[str, Family]:
    """Every family by its name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return {family.name: family for module in modules for family in module.FAMILIES}


def family_names() -> tuple[str, ...]:
    """The names, which are what a spec may say."""
    return tuple(all_families())


def family_named(name: str) -> Family:
    """The family of a name.

    Raises:
        HostMismatch: there is none.
    """
    if name not in all_families():
        raise HostMismatch(f"no family {name!r}; this version knows {', '.join(family_names())}")
    return all_families()[name]


def family_of(host: nn.Module) -> Family:
    """The family that a fresh adapter for a host belongs to.

    Raises:
        HostMismatch: the host is of no family.
    """
    fitting = [family for family in all_families().values() if family.is_default and family.fits(host)]
    if not fitting:
        known = sorted({name for family in all_families().values() for name in family.hosts})
        raise HostMismatch(
            f"{type(host).__name__} is a denoiser that imprompt cannot attach to; expected one of {', '.join(known)}"
        )
    return fitting[0]
