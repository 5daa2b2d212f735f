"""Complete training recipes: functions that return one configuration each, and commands that run it."""

import json
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

from imprompt.core.errors import first_line
from imprompt.training.config import AdapterKind, TrainConfig
from imprompt.training.overrides import ConfigError, nearest, validated

KINDS: tuple[AdapterKind, ...] = get_args(AdapterKind)


def recipes() -> dict[str, Callable[[], TrainConfig]]:
    """Every recipe by its name: base, and kind of adapter."""
    from imprompt.recipes import flux, generic, sd3, sd15, sdxl
    from imprompt.recipes.emoji import recipe as emoji

    bases: dict[str, Callable[[AdapterKind], TrainConfig]] = {
        "emoji": emoji.recipe,
        "sd15": sd15.recipe,
        "sdxl": sdxl.recipe,
        "sdxl-1024": sdxl.second_recipe,
        "sd3": sd3.recipe,
        "flux": flux.recipe,
        "generic": generic.recipe,
    }
    return {f"{name}-{kind}": partial(recipe, kind) for name, recipe in bases.items() for kind in KINDS}


def config_named(name: str) -> TrainConfig:
    """The configuration of a recipe, or one that a run has saved.

    Args:
        name: Of a recipe, or the path of a JSON or TOML file.

    Raises:
        ConfigError: There is neither.
    """
    known = recipes()
    if name in known:
        return known[name]()
    path = Path(name)
    if path.suffix in (".json", ".toml"):
        return read_config(path)
    like = nearest(name, known)
    raise ConfigError(
        f"no recipe '{name}'; " + (f"did you mean '{like}'?" if like else f"there are {', '.join(sorted(known))}")
    )


def read_config(path: Path) -> TrainConfig:
    """A configuration in a file, such as the `config.json` of a run.

    Raises:
        ConfigError: It cannot be read, or is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{path}' is no configuration that can be read ({first_line(error)})") from error
    return validated(TrainConfig, values)
