"""Image prompts from plain mappings: request files, HTTP bodies and nodes all come through here.

Paths are relative to where the mapping stood, unknown keys are refused with the nearest known one.
"""

import difflib
import json
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

from imprompt.core.errors import PromptError
from imprompt.core.images import ImageSource
from imprompt.prompts.image_prompt import ImagePrompt
from imprompt.prompts.masks import Box, Mask, Polygon
from imprompt.prompts.noise import Noise
from imprompt.prompts.saved import load_prompt
from imprompt.prompts.text_region import TextRegion

Parsed = TypeVar("Parsed")

SUFFIXES = (".toml", ".yaml", ".yml", ".json")
MAX_BYTES = 1_000_000  # of a request file; a larger one is none

_FROM_CODE = ("features", "crop_features", "origin")  # tensors, which a text cannot hold
_NUMBERS = ("weight", "start", "end", "second_weight", "feather", "detail_weight", "structure", "subtract_weight")
_PROMPT_KEYS = (*(field.name for field in fields(ImagePrompt) if field.name not in (*_FROM_CODE, "_")), "saved")
_REGION_KEYS = tuple(field.name for field in fields(TextRegion) if field.name not in ("embeds", "_"))


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The content of a TOML, YAML or JSON file, told by its suffix.

    Raises:
        PromptError: it is not there, is of another kind, or cannot be read; the message says where.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise PromptError(f"'{path.name}' is no request file; its name must end in one of {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise PromptError(f"there is no request file '{path}'.")
    if path.stat().st_size > MAX_BYTES:
        raise PromptError(f"'{path.name}' has {path.stat().st_size} bytes; a request file has at most {MAX_BYTES}.")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".toml":
            read: object = tomllib.loads(text)
        else:
            read = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise PromptError(f"'{path.name}' cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(read, dict):
        raise PromptError(f"'{path.name}' must hold names and values, as prompt = \"a cat\"; it holds {read!r:.40}.")
    return cast(dict[str, Any], read)


def check_keys(given: Mapping[str, Any], known: Collection[str], what: str) -> None:
    """Refuse keys that nothing would read.

    Raises:
        PromptError: there is one; the message names the nearest known key.
    """
    for key in given:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise PromptError(f"{what} has no {key!r}; did you mean {nearest!r}? It knows {', '.join(known)}.")


def parse_prompt(given: Mapping[str, Any] | str, folder: str | Path = ".") -> ImagePrompt:
    """An image prompt of a mapping; of a text alone, which is a picture's path, with everything by default.

    Args:
        given: `ImagePrompt`'s fields. A mask may be a path, `{"box": [left, top, right, bottom]}`,
            `{"polygon": [[x, y], ...]}` or a list of these; a negative a path or `{"noise": "fade", "strength": 0.5}`;
            `saved` is the path of a saved prompt, over which the other fields go.
        folder: what paths are relative to.

    Raises:
        PromptError: a key is unknown, or a value makes no sense.
    """
    if isinstance(given, str):
        given = {"image": given}
    if not isinstance(cast(object, given), Mapping):
        raise PromptError(f"an image prompt must be a path or names and values; got {given!r:.60}.")
    check_keys(given, _PROMPT_KEYS, "an image prompt")
    values: dict[str, Any] = {key: _value(key, value, Path(folder)) for key, value in given.items()}
    saved = values.pop("saved", None)
    if saved is None:
        return _made(values)
    if "image" in values:
        raise PromptError("an image prompt has both image and saved; give one of them.")
    loaded = load_prompt(saved)
    return _made({field.name: getattr(loaded, field.name) for field in fields(loaded) if field.name != "_"} | values)


def _made(values: dict[str, Any]) -> ImagePrompt:
    return ImagePrompt(values.pop("image", None), **values)


def _value(key: str, value: Any, folder: Path) -> Any:
    if key in _NUMBERS and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    match key:
        case "image":
            return [_path(each, folder) for each in value] if isinstance(value, list) else _path(value, folder)  # pyright: ignore
        case "saved":
            return _path(value, folder)
        case "mask":
            if isinstance(value, list):
                return [_mask(each, folder) for each in cast(list[Any], value)]
            return _mask(value, folder)
        case "negative":
            return _negative(value, folder)
        case "focus" | "image_weights" | "curve" if isinstance(value, list):
            return tuple(float(each) if isinstance(each, int) else each for each in cast(list[Any], value))
        case _:
            return value


def _path(value: Any, folder: Path) -> Path:
    if not isinstance(value, str) or not value:
        raise PromptError(f"a picture must be given by its path; got {value!r:.60}.")
    return folder / Path(value).expanduser()


def _mask(value: Any, folder: Path) -> Mask:
    if not isinstance(value, Mapping):
        return _path(value, folder)
    shape = cast(Mapping[str, Any], value)
    check_keys(shape, ("box", "polygon"), "a mask")
    if len(shape) != 1:
        raise PromptError("a mask is a path, a box or a polygon; give one of them.")
    ((kind, numbers),) = shape.items()
    try:
        if kind == "box":
            left, top, right, bottom = (_number(each) for each in numbers)
            return Box(left, top, right, bottom)
        return Polygon([(_number(x), _number(y)) for x, y in numbers])
    except (TypeError, ValueError) as error:
        wanted = "[left, top, right, bottom]" if kind == "box" else "[[x, y], [x, y], [x, y], ...]"
        raise PromptError(f"a {kind} must be {wanted} in fractions of the picture; got {numbers!r:.60}.") from error


def _negative(value: Any, folder: Path) -> ImageSource | Noise:
    if not isinstance(value, Mapping):
        return _path(value, folder)
    given = cast(Mapping[str, Any], value)
    check_keys(given, ("noise", "strength", "blur", "seed"), "a negative of noise")
    if not isinstance(given.get("seed", 0), int):
        raise PromptError(f"the seed of noise must be a whole number from 0 up; got {given['seed']!r}.")
    numbers = {key: _number(given[key]) for key in ("strength", "blur") if key in given}
    return Noise(kind=given.get("noise", "fade"), seed=given.get("seed", 0), **numbers)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PromptError(f"expected a number; got {value!r:.40}.")
    return float(value)


def parse_prompts(given: object, folder: str | Path = ".") -> list[ImagePrompt]:
    """Image prompts of a list of mappings or paths.

    Raises:
        PromptError: it is no list, or one of them makes no sense; the message says which.
    """
    return _parse_each(given, "image_prompts", lambda each: parse_prompt(each, folder))


def parse_region(given: Mapping[str, Any], folder: str | Path = ".") -> TextRegion:
    """A text's region of a mapping.

    Args:
        given: names and values of `TextRegion`'s fields; the mask as that of an image prompt.
        folder: what paths are relative to.

    Raises:
        PromptError: a key is unknown, or a value makes no sense.
    """
    if not isinstance(cast(object, given), Mapping):
        raise PromptError(f"a region must be names and values, as text and mask; got {given!r:.60}.")
    check_keys(given, _REGION_KEYS, "a region")
    values = {key: _value(key, value, Path(folder)) for key, value in given.items()}
    if isinstance(values.get("mask"), list):
        raise PromptError("a region has one mask; write a region for each of several.")
    return TextRegion(**values)


def parse_regions(given: object, folder: str | Path = ".") -> list[TextRegion]:
    """Texts' regions of a list of mappings.

    Raises:
        PromptError: it is no list, or one of them makes no sense; the message says which.
    """
    return _parse_each(given, "regions", lambda each: parse_region(each, folder))


def _parse_each(given: object, name: str, parse: Callable[[Any], Parsed]) -> list[Parsed]:
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise PromptError(f"{name} must be a list; got {given!r:.60}.")
    parsed: list[Parsed] = []
    for number, each in enumerate(cast(Sequence[Any], given)):
        try:
            parsed.append(parse(each))
        except PromptError as error:
            raise PromptError(f"{name}[{number}]: {error}") from error
    return parsed
