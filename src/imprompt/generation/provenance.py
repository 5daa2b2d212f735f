"""Where a picture comes from: hashes of weights and references, versions and settings, as plain JSON."""

import hashlib
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from imprompt import __version__
from imprompt.adapter.adapter import Adapter
from imprompt.core.files import sha256_file
from imprompt.core.images import image_hash, load_image
from imprompt.prompts.image_prompt import FeatureOrigin, ImagePrompt
from imprompt.prompts.masks import Box, Polygon
from imprompt.prompts.noise import Noise
from imprompt.prompts.text_region import TextRegion

PACKAGES = ("torch", "diffusers", "transformers", "pillow")
PACKAGE = Path(__file__).resolve().parents[1]  # where the embedded model is
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def versions() -> dict[str, str]:
    """Versions of whatever had a part in the picture."""
    return {
        "imprompt": __version__,
        **{name: metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
    }


def describe_pipeline(pipe: Any) -> dict[str, Any]:
    """A pipeline: its class, its scheduler, its active LoRAs, and the hash of every weight file it was loaded from."""
    weights = {name: _component_files(part) for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    loras = pipe.get_active_adapters() if _has_lora(pipe) else []
    return {
        "pipeline": type(pipe).__name__,
        "name": _public_name(getattr(pipe, "name_or_path", None)),
        "scheduler": type(pipe.scheduler).__name__,
        "loras": list(loras),
        "sha256": {name: files for name, files in weights.items() if files},
    }


def describe_adapter(adapter: Adapter) -> dict[str, Any]:
    """An adapter: its name and the hash of its file, or of its tensors where it did not come from a file."""
    source = getattr(adapter, "source", None)
    if source is not None and Path(source).is_file():
        return {"name": adapter.spec.name, "file": Path(source).name, "sha256": file_hash(Path(source))}
    return {"name": adapter.spec.name, "sha256_tensors": hash_tensors(adapter.state_dict())}


def describe_prompt(prompt: ImagePrompt) -> dict[str, Any]:
    """An image prompt: every picture's hash and every number; what is not as usual alone, where it seldom is."""
    masks = [_describe_mask(mask) for mask in prompt.masks]
    return {
        "images": [describe_picture(source) for source in prompt.images],
        "features_sha256": None if prompt.features is None else hash_tensors({"features": prompt.features}),
        "mask": masks if prompt.has_mask_each else next(iter(masks), None),
        "weight": prompt.weight,
        "start": prompt.start,
        "end": prompt.end,
        "fit": prompt.fit,
        "adapter": prompt.adapter,
        **_describe_face(prompt),
        **_describe_composition(prompt),
    }


_COMPOSITION = (
    "blocks", "second_weight", "unit", "curve", "combine", "image_weights", "negative", "feather", "focus", "detail",
    "detail_weight", "attention", "origin", "subtract", "subtract_weight", "compat",
)  # fmt: skip


def _describe_composition(prompt: ImagePrompt) -> dict[str, Any]:
    usual = {field.name: field.default for field in fields(prompt)}
    said = {name: getattr(prompt, name) for name in _COMPOSITION}
    told = {name: _describe_setting(value) for name, value in said.items() if not _is_usual(value, usual[name])}
    if isinstance(prompt.negative, str):
        told["negative"] = describe_picture(prompt.negative)  # a path, of which the name alone is told
    return told


def _is_usual(value: Any, usual: Any) -> bool:
    return value is usual or (isinstance(value, str | int | float | tuple) and value == usual)


def _describe_setting(value: Any) -> Any:
    if callable(value):
        return {"function": [value(step / 10) for step in range(11)]}
    if isinstance(value, Noise | FeatureOrigin):
        return asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _describe_setting(part) for key, part in value.items()}
    if isinstance(value, Path | Image.Image | Tensor | np.ndarray):
        return describe_picture(value)
    return list(value) if isinstance(value, tuple) else value


def describe_region(region: TextRegion) -> dict[str, Any]:
    """A text's region: its text or the hash of its embeds, its mask, and every number that is not as usual."""
    embeds = {} if region.embeds is None else {"embeds_sha256": hash_tensors({"embeds": region.embeds})}
    numbers = ("weight", "feather", "start", "end", "unit", "curve")
    usual = {field.name: field.default for field in fields(region)}
    return {
        "text": region.text,
        **embeds,
        "mask": _describe_mask(region.mask),
        **{
            name: _describe_setting(getattr(region, name))
            for name in numbers
            if not _is_usual(getattr(region, name), usual[name])
        },
    }


def _describe_mask(mask: Any) -> dict[str, Any]:
    if isinstance(mask, Box | Polygon):
        return {type(mask).__name__.lower(): [list(corner) for corner in mask.corners]}
    return describe_picture(mask)


def _describe_face(prompt: ImagePrompt) -> dict[str, Any]:
    """What only prompts of faces say."""
    said: dict[str, Any] = {}
    if prompt.face is not None:
        said["face"] = hash_tensors({"face": prompt.face}) if isinstance(prompt.face, Tensor) else prompt.face
    if prompt.crop_features is not None:
        said["crop_features_sha256"] = hash_tensors({"crop_features": prompt.crop_features})
    if prompt.structure != 1.0:
        said["structure"] = prompt.structure
    return said


def describe_picture(source: Any) -> dict[str, str]:
    """A picture or mask: a file's name (never its folder) and hash, and the hash of the pixels."""
    if isinstance(source, str | Path):
        path, pixels = Path(source).expanduser(), image_hash(load_image(source))
        return {"file": path.name, "sha256": sha256_file(path), "sha256_pixels": pixels}
    if isinstance(source, Image.Image):
        return {"sha256_pixels": image_hash(load_image(source))}
    return {"sha256_numbers": hash_tensors({"picture": torch.as_tensor(source)})}


def describe_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """What else a pipeline was given: numbers and texts as they are, pictures and tensors as hashes."""
    return {name: _describe_option(value) for name, value in options.items()}


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a weight file, read once as long as it does not change.

    The hub's cache names a large file by its hash, so that one is not read at all.
    """
    real = path.resolve()
    if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name):
        return real.name
    status = real.stat()
    return _hash_once(real, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _hash_once(path: Path, _size: int, _modified: int) -> str:
    return sha256_file(path)


def _component_files(module: nn.Module) -> dict[str, str]:
    """Hashes of the weight files in the folder that a component was loaded from; none where that is not known."""
    config = getattr(module, "config", None)
    source = getattr(module, "name_or_path", None) or getattr(config, "_name_or_path", None)
    folder = Path(source) if source else None
    if folder is None or not folder.is_dir():
        return {}
    return {path.name: file_hash(path) for path in sorted(_weight_files(folder.iterdir()))}


def _weight_files(paths: Iterable[Path]) -> Iterable[Path]:
    return (path for path in paths if path.suffix in WEIGHT_SUFFIXES and path.is_file())


def _public_name(name: str | None) -> str | None:
    """A hub repository's name as it is; of a folder its own name alone, for pictures tell nothing of a disk."""
    if name is None or not Path(name).exists():
        return name
    path = Path(name).resolve()
    return "emoji" if path.is_relative_to(PACKAGE) else path.name


def _has_lora(pipe: Any) -> bool:
    return any(getattr(part, "peft_config", None) for part in pipe.components.values())


def _describe_option(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_describe_option(item) for item in value]
    if isinstance(value, Image.Image | Tensor | np.ndarray):
        return describe_picture(value)
    return type(value).__name__
