"""Tensors in and out of files, safely: safetensors as they are, pickles as bare tensors after a look at what they do.

What a file can cost is bounded by what it is: its header by `MAX_HEADER_BYTES` or `MAX_STREAM_BYTES` of text, which are
some forty times that as Python objects; its tensors by twice the file's size, and `load_adapter`'s copies.
"""

import itertools
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from imprompt.adapter.checkpoint import pickles
from imprompt.adapter.checkpoint.pickles import MAX_TENSORS
from imprompt.core.errors import CheckpointError, UnknownFormat, first_line
from imprompt.core.files import atomic_write

MAX_HEADER_BYTES = 4 * 2**20  # of safetensors: a training checkpoint of Stable Diffusion XL has 0.7 million
MAX_DIMENSIONS = 8
MAX_KEY_LENGTH = 512
MAX_DEPTH = 4  # of dictionaries in dictionaries

# Under what trainers put a model's state in a file of more: DeepSpeed, Lightning.
STATES = ("module", "state_dict")


def read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors without numbers (on the meta device), and metadata.

    Raises:
        CheckpointError: the file is missing, truncated or unsafe.
    """
    if _kind(path) == "pickle":
        tensors = _read_pickle(path, mmap=True)
        return {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors.items()}, {}
    with _open_safetensors(path) as file:
        return {key: _empty(path, key, file.get_slice(key)) for key in file.keys()}, file.metadata() or {}


def read_tensors(path: Path, *, mapped: bool = False) -> dict[str, Tensor]:
    """All tensors by their keys, those in nested dictionaries with dots in between.

    Args:
        path: the file.
        mapped: leave the numbers of a pickle in the file until they are asked for, without checking their sums: for
            checkpoints of which an adapter is a small part. Those of safetensors always stay there.

    Raises:
        CheckpointError: the file is missing, truncated or unsafe.
    """
    if _kind(path) == "pickle":
        return _read_pickle(path, mmap=mapped)
    with _open_safetensors(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that are no numbers.

    Raises:
        CheckpointError: it names the file and the tensor.
    """
    for key, tensor in tensors.items():
        comparable = tensor.float() if tensor.element_size() == 1 else tensor  # float8 has no isfinite of its own
        if not torch.isfinite(comparable).all():
            raise CheckpointError(
                f"{path.name}: {key!r} holds NaN or infinite weights; the file is damaged, get another"
            )


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write safetensors: all of it or nothing."""
    with atomic_write(path) as temporary:
        contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata={"format": "pt", **metadata})


def write_pickle(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a pickle of one dictionary for each first word of the keys: all of it or nothing."""
    sections: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = tensor.detach().cpu().contiguous().clone()
    with atomic_write(path) as temporary:
        torch.save(sections, temporary)


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
    with path.open("rb") as file:
        start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if MAX_HEADER_BYTES < length <= path.stat().st_size:
        raise CheckpointError(
            f"{path.name} is refused: a header of {length:,} bytes, more than {MAX_HEADER_BYTES:,}; no adapter has that"
        )
    try:
        opened = safe_open(path, framework="pt")
    except (SafetensorError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path.name} ({path.stat().st_size:,} bytes) is no complete safetensors file "
            f"({first_line(error)}); get it again"
        ) from error
    _check_keys(path, opened.keys())
    return opened


def _empty(path: Path, key: str, part: Any) -> Tensor:
    """A tensor of the shape and format that a header says."""
    shape, name = part.get_shape(), part.get_dtype()
    dtype = _DTYPES.get(name)
    if dtype is None or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(
            f"{path.name}: {key!r} is a tensor of format {name} with {len(shape)} dimensions; expected a known format "
            f"and at most {MAX_DIMENSIONS}; get another file"
        )
    try:
        return torch.empty(shape, dtype=dtype, device="meta")
    except (RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path.name}: {key!r} has an impossible shape; get another file") from error


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def _read_pickle(path: Path, *, mmap: bool) -> dict[str, Tensor]:
    pickles.check_pickle(path)
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except RuntimeError:
            if not mmap:
                raise
            content = torch.load(path, map_location="cpu", weights_only=True)  # the old format cannot be mapped
    except Exception as error:  # a damaged or hostile pickle ends in any of a dozen kinds
        raise CheckpointError(
            f"{path.name} is refused: it does not load as bare tensors ({first_line(error)}); "
            "a pickle may run code, so get the .safetensors file instead"
        ) from error
    if not isinstance(content, dict):
        raise UnknownFormat(f"{path.name} is no adapter: it holds no dictionary, but a {type(content).__name__}")
    state = next((content[name] for name in STATES if isinstance(content.get(name), dict)), content)
    tensors = dict(_flatten(path, state))
    _check_keys(path, tensors)
    return tensors


def _flatten(path: Path, state: dict[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    """Nested dictionaries as one; what is no tensor is refused by its name, but for plain data beside the sections."""
    waiting: list[tuple[str, int, Any]] = [("", 0, state)]
    for visited in itertools.count():
        if not waiting:
            return
        key, depth, value = waiting.pop()
        if isinstance(value, dict) and depth <= MAX_DEPTH:
            _check_count(path, visited + len(waiting) + len(value))
            waiting += [(_join(path, key, name), depth + 1, part) for name, part in reversed(value.items())]
        elif isinstance(value, Tensor) and _is_whole(value):
            yield key, value
        elif depth != 1 or not isinstance(value, int | float | str | None):
            raise CheckpointError(
                f"{path.name}: {key[:120]!r} is no ordinary tensor with all its numbers; get another file"
            )


def _join(path: Path, key: str, name: Any) -> str:
    if not isinstance(name, str):
        raise CheckpointError(f"{path.name}: {key[:80]!r} holds something under {name!r:.40}, which is no text")
    return f"{key}.{name}" if key else name


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are all there; one that claims more than its storage would fill memory when read."""
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.ndim <= MAX_DIMENSIONS
        and not tensor.is_quantized
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _check_keys(path: Path, keys: Any) -> None:
    _check_count(path, len(keys))
    long = [key for key in keys if len(key) > MAX_KEY_LENGTH]
    if long:
        raise CheckpointError(
            f"{path.name} is refused: a key of {len(long[0]):,} letters ({long[0][:40]!r}...); no adapter has such"
        )


def _check_count(path: Path, count: int) -> None:
    if count > MAX_TENSORS:
        raise CheckpointError(f"{path.name} is refused: more than {MAX_TENSORS:,} tensors; no adapter has so many")
