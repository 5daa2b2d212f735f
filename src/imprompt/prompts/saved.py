"""Encoded prompts in files: features with everything said about them, and what made them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from imprompt.core.errors import CheckpointError, PromptError
from imprompt.core.files import atomic_write
from imprompt.core.images import load_image, load_mask
from imprompt.prompts.image_prompt import FeatureOrigin, ImagePrompt
from imprompt.prompts.masks import Box, Mask, Polygon
from imprompt.prompts.noise import Noise

KEY = "imprompt_prompt"  # of the metadata, which holds everything that is no tensor

_TENSORS = ("features", "crop_features", "face")
_PICTURES = ("image", "mask", "negative")  # kept as numbers, so that a file is whole by itself


def save_prompt(prompt: ImagePrompt, path: str | Path) -> Path:
    """Write an encoded prompt as safetensors; the file appears whole or not at all.

    Args:
        prompt: with features, as `PipelineAttachment.encode` makes them of pictures.
        path: the file, whose name ends in `.safetensors`.

    Raises:
        PromptError: it holds pictures in place of features, or something that no file can hold.
    """
    path = Path(path)
    if prompt.features is None:
        raise PromptError("only encoded prompts are saved; encode it first: attachment.encode(prompt).")
    if path.suffix != ".safetensors":
        raise PromptError(f"cannot save a prompt as {path.name!r}; give a name that ends in .safetensors.")
    if callable(prompt.curve):
        raise PromptError("a curve that is a function cannot be saved; give its factors as a list.")
    tensors = {name: getattr(prompt, name) for name in _TENSORS if isinstance(getattr(prompt, name), Tensor)}
    masks = [_plain_mask(mask, number, tensors) for number, mask in enumerate(prompt.masks)]
    if prompt.negative is not None and not isinstance(prompt.negative, Noise):
        tensors["negative"] = torch.tensor(np.asarray(load_image(prompt.negative)))
    said = {
        field.name: getattr(prompt, field.name)
        for field in fields(prompt)
        if field.name not in (*_PICTURES, *tensors, "_", "origin")
    }
    said["mask"] = masks if prompt.has_mask_each else next(iter(masks), None)
    said["origin"] = None if prompt.origin is None else asdict(prompt.origin)
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(ready, temporary, {KEY: json.dumps(said)})
    return path


def load_prompt(path: str | Path) -> ImagePrompt:
    """Read a prompt that `save_prompt` wrote; adapters of another encoder refuse it.

    Raises:
        CheckpointError: it is not there, damaged, or something else.
        PromptError: it holds values that make no sense.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file '{path}'; give a prompt that imprompt saved.")
    try:
        opened: Any = safe_open(path, framework="pt")
        with opened as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}
        if KEY not in metadata:
            raise CheckpointError(f"'{path.name}' holds no saved prompt; give a file that imprompt saved.")
        return _made(json.loads(metadata[KEY]), tensors)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"'{path.name}' cannot be read as a saved prompt ({error}); save it again.") from error


def _made(said: dict[str, Any], tensors: dict[str, Tensor]) -> ImagePrompt:
    origin, mask = said.pop("origin", None), said.pop("mask", None)
    for name in ("focus", "image_weights"):
        if said.get(name) is not None:
            said[name] = tuple(said[name])
    if mask is not None:
        said["mask"] = [_mask(each, tensors) for each in mask] if isinstance(mask, list) else _mask(mask, tensors)  # pyright: ignore
    said |= {name: tensors[name] for name in _TENSORS if name in tensors}
    if "negative" in tensors:
        said["negative"] = tensors["negative"].numpy()
    return ImagePrompt(origin=None if origin is None else FeatureOrigin(**origin), **said)


def _plain_mask(mask: Mask, number: int, tensors: dict[str, Any]) -> dict[str, Any]:
    """A shape in words; of a picture its name among the tensors."""
    if isinstance(mask, Box):
        return {"box": [mask.left, mask.top, mask.right, mask.bottom]}
    if isinstance(mask, Polygon):
        return {"polygon": [list(point) for point in mask.points]}
    tensors[f"mask.{number}"] = load_mask(mask)
    return {"tensor": f"mask.{number}"}


def _mask(said: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Mask:
    ((kind, value),) = said.items()
    if kind == "box":
        return Box(*value)
    if kind == "polygon":
        return Polygon([cast(tuple[float, float], tuple(point)) for point in value])
    return tensors[value]
