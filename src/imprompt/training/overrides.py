"""Changing single fields of a configuration by `part.field=value`; an unknown name is told the nearest one."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from imprompt.core.errors import ImpromptError

Config = TypeVar("Config", bound=BaseModel)

NOTHING = ("none", "null")
"""How a command line says None."""


class ConfigError(ImpromptError):
    """A field that does not exist, or a value that it does not take."""


def override(config: Config, arguments: Iterable[str]) -> Config:
    """A configuration with some fields changed.

    Args:
        config: What is changed; it stays as it is.
        arguments: As `optimizer.learning_rate=1e-5`; the last of two for a field counts.

    Raises:
        ConfigError: An argument is no assignment, names no field, or has a value that the field does not take.
    """
    changed = config.model_dump()
    for argument in arguments:
        key, separator, text = argument.partition("=")
        if not separator:
            raise ConfigError(f"'{argument}' is no 'key=value'; write, say, 'optimizer.learning_rate=1e-5'")
        _assign(changed, config, key.strip(), parse_value(text))
    return validated(type(config), changed)


def parse_value(text: str) -> Any:
    """A value of the command line: None, JSON where it is some, else the text itself; pydantic makes the type of it."""
    if text.strip().lower() in NOTHING:
        return None
    if text.strip()[:1] in ("[", "{", '"'):
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text
    return text


def validated(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """A configuration of plain values.

    Raises:
        ConfigError: One sentence a field that is wrong.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentences(kind, error))) from error


def field_names(config: BaseModel, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields that hold values."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from field_names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that is most like another; a field is found by its last part too, where somebody forgot the first."""
    known = list(names)
    same_ending = [candidate for candidate in known if candidate.rpartition(".")[2] == name.rpartition(".")[2]]
    return next(iter((*same_ending, *difflib.get_close_matches(name, known, n=1, cutoff=0.5))), None)


def _assign(values: dict[str, Any], config: BaseModel, key: str, value: Any) -> None:
    known = list(field_names(config))
    if key not in known:
        like = nearest(key, known)
        parts = ", ".join(type(config).model_fields)
        raise ConfigError(
            f"no setting '{key}'; " + (f"did you mean '{like}'?" if like else f"settings begin with one of {parts}")
        )
    *path, name = key.split(".")
    for part in path:
        values = values[part]
    values[name] = _as_list(value, values[name])


def _as_list(value: Any, present: Any) -> Any:
    """`0,0.5,1` where a list stands."""
    if not isinstance(present, tuple | list) or not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


def _sentences(kind: type[BaseModel], error: ValidationError) -> Iterator[str]:
    for entry in error.errors():
        key = ".".join(str(part) for part in entry["loc"])
        if entry["type"] == "extra_forbidden":
            like = nearest(key.rpartition(".")[2], _all_names(kind))
            yield f"no setting '{key}'" + (f"; did you mean '{like}'?" if like else "")
        else:
            message = entry["msg"].removeprefix("Value error, ")
            yield f"{key or kind.__name__} is {entry['input']!r}: {message[:1].lower()}{message[1:]}"


def _all_names(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _all_names(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name
