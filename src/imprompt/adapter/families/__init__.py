"""Families: what a kind of denoiser looks like to an adapter. One short file, or one row of one, for each.

A module of this folder may give a tuple `FAMILIES`; a new base is a new row, or a new file, and nothing else changes.
The first family that fits a host is its own; others (`flux-xlabs` beside `flux`) are chosen by an adapter's spec.
"""

import importlib
import pkgutil
from functools import lru_cache

from torch import nn

from imprompt.adapter.families.base import Family, HostCall
from imprompt.adapter.families.not_attachable import NOT_ATTACHABLE
from imprompt.core.errors import HostMismatch

__all__ = ["NOT_ATTACHABLE", "Family", "HostCall", "all_families", "family_named", "family_names", "family_of"]


@lru_cache(maxsize=1)
def all_families() -> dict[str, Family]:
    """Every family by its name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return {family.name: family for module in modules for family in getattr(module, "FAMILIES", ())}


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
    for kind in type(host).__mro__:  # a class that inherits from a known one may be known itself
        if kind.__name__ in NOT_ATTACHABLE:
            why = NOT_ATTACHABLE[kind.__name__]
            raise HostMismatch(f"{type(host).__name__} takes no image prompt: it {why}; attach to another denoiser")
        for family in all_families().values():
            if family.is_default and kind.__name__ in family.hosts and family.fits(host):
                return family
    known = sorted({name for family in all_families().values() for name in family.hosts})
    raise HostMismatch(f"{type(host).__name__} is no denoiser that imprompt knows; expected one of {', '.join(known)}")
