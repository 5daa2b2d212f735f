"""Tensors in and out of files, safely: safetensors as they are, pickles as bare tensors after a size check."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from imprompt.core.errors import CheckpointError, UnknownFormat
from imprompt.core.files import atomic_write

MAX_PICKLE_BYTES = 8 * 2**30  # four times the largest published adapter's file
SECTIONS = ("image_proj", "ip_adapter")


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Keys with shapes, and metadata, without reading tensors where the format allows it.

    Raises:
        CheckpointError: the file is missing, truncated or unsafe.
    """
    if _kind(path) == "pickle":
        return {key: tuple(tensor.shape) for key, tensor in _read_pickle(path).items()}, {}
    with _open_safetensors(path) as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
        return shapes, file.metadata() or {}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors under their flat keys, `image_proj.*` and `ip_adapter.*`.

    Raises:
        CheckpointError: the file is missing, truncated or unsafe, or a tensor has values that are not finite.
    """
    if _kind(path) == "pickle":
        tensors = _read_pickle(path)
    else:
        with _open_safetensors(path) as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    for key, tensor in tensors.items():
        comparable = tensor.float() if tensor.element_size() == 1 else tensor  # float8 has no isfinite of its own
        if not torch.isfinite(comparable).all():
            raise CheckpointError(
                f"{path.name}: {key!r} holds NaN or infinite weights; the file is damaged, get another"
            )
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write safetensors: all of it or nothing."""
    with atomic_write(path) as temporary:
        contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata={"format": "pt", **metadata})


def _kind(path: Path) -> str:
    if not path.is_file():
        raise CheckpointError(f"no file at {str(path)!r}; expected an adapter (.safetensors, or .bin)")
    match path.suffix.lower():
        case ".safetensors" | ".sft":
            return "safetensors"
        case ".bin" | ".pt" | ".pth" | ".ckpt":
            return "pickle"
        case other:
            raise UnknownFormat(f"{path.name} ends in {other!r}; expected .safetensors, or .bin")


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(
            f"{path.name} ({path.stat().st_size:,} bytes) is no complete safetensors file ({error}); get it again"
        ) from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        _check_size(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged or hostile pickle ends in any of a dozen kinds
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{path.name} is refused: it does not load as bare tensors ({reason[:200]}); "
            "a pickle may run code, so get the .safetensors file instead"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(content.get(section), dict) for section in SECTIONS):
        raise UnknownFormat(f"{path.name} is no adapter: expected a dictionary with 'image_proj' and 'ip_adapter'")
    tensors = {f"{section}.{key}": tensor for section in SECTIONS for key, tensor in content[section].items()}
    for key, tensor in tensors.items():
        if not _is_whole(tensor):
            raise CheckpointError(f"{path.name}: {key!r} is no ordinary tensor with all its numbers; get another file")
    return tensors


def _is_whole(tensor: Any) -> bool:
    """Whether a tensor's numbers are all there; one that claims more than its storage would fill memory when read."""
    return (
        isinstance(tensor, Tensor)
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _check_size(path: Path) -> None:
    """A pickle's archive is stored, not compressed: one that unpacks to more than its own size is a bomb."""
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > size:
            raise CheckpointError(f"{path.name} is refused: {size:,} bytes that unpack to {unpacked:,}")
    if size > MAX_PICKLE_BYTES:
        raise CheckpointError(f"{path.name} is refused: {size:,} bytes, more than {MAX_PICKLE_BYTES:,}")
