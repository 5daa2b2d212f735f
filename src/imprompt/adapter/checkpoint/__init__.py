"""Adapters in files: read any known layout, write the official one with the spec in its metadata."""

from collections.abc import Mapping
from pathlib import Path

import torch

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.checkpoint.files import read_header, read_tensors, write_tensors
from imprompt.adapter.checkpoint.identify import identify
from imprompt.adapter.spec import AdapterSpec
from imprompt.core.errors import CheckpointError
from imprompt.core.weights import resolve_file

SPEC_KEY = "imprompt_spec"  # in safetensors metadata; diffusers and ComfyUI ignore it

__all__ = ["load_adapter", "read_spec", "save_adapter"]


def read_spec(source: str | Path, filename: str | None = None) -> AdapterSpec:
    """What adapter a file holds, without loading its weights (a pickle has to be loaded for that).

    Args:
        source: a file, a folder, or a hub repository.
        filename: the file inside a folder or repository, e.g. `models/ip-adapter_sd15.safetensors`.

    Raises:
        CheckpointError: the file cannot be read safely, or holds no adapter that imprompt knows.
    """
    return _spec_of(resolve_file(source, filename))


def load_adapter(
    source: str | Path, filename: str | None = None, *, dtype: torch.dtype | None = torch.float32
) -> Adapter:
    """Load an adapter.

    Args:
        source: a file, a folder, or a hub repository.
        filename: the file inside a folder or repository, e.g. `models/ip-adapter_sd15.safetensors`.
        dtype: number format of its weights. Keys and values are computed once per prompt, so float32 costs next to
            nothing; None keeps the file's and so half the memory.

    Raises:
        CheckpointError: the file cannot be read safely, holds no adapter that imprompt knows, or lacks tensors.
    """
    path = resolve_file(source, filename)
    spec = _spec_of(path)
    tensors = read_tensors(path)
    with torch.device("meta"):
        adapter = Adapter(spec)
    _check_tensors(path, {key: tuple(value.shape) for key, value in adapter.state_dict().items()}, tensors)
    # Copied: the file may change while the adapter lives, and its tensors lie where no kernel expects them.
    copies = {key: value.to(dtype or value.dtype, copy=True) for key, value in tensors.items()}
    adapter.load_state_dict(copies, assign=True)
    adapter.source = path
    return adapter.eval().requires_grad_(False)


def save_adapter(
    adapter: Adapter,
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write an adapter in the official layout, which diffusers and ComfyUI read too, with its spec in the metadata.

    Args:
        adapter: what to write.
        path: a file that ends in `.safetensors`; it appears complete or not at all.
        dtype: number format in the file; None keeps the adapter's.
        metadata: further texts for the file's header.

    Raises:
        CheckpointError: the path does not end in `.safetensors`.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"cannot save an adapter as {path.name!r}; give a name that ends in .safetensors")
    tensors = {key: value.to(dtype or value.dtype) for key, value in adapter.state_dict().items()}
    write_tensors(path, tensors, {SPEC_KEY: adapter.spec.to_json(), **(metadata or {})})
    return path


def _spec_of(path: Path) -> AdapterSpec:
    shapes, metadata = read_header(path)
    try:
        return AdapterSpec.from_json(metadata[SPEC_KEY]) if SPEC_KEY in metadata else identify(shapes)
    except CheckpointError as error:
        raise type(error)(f"{path.name}: {error}") from error


def _check_tensors(path: Path, wanted: dict[str, tuple[int, ...]], found: Mapping[str, torch.Tensor]) -> None:
    missing, foreign = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or foreign:
        problem = f"lacks {missing[0]!r}" if missing else f"has {foreign[0]!r}, which its variant does not"
        raise CheckpointError(
            f"{path.name} {problem} ({len(missing)} missing, {len(foreign)} foreign tensors); get the whole file again"
        )
    for key, shape in wanted.items():
        if tuple(found[key].shape) != shape:
            raise CheckpointError(f"{path.name}: {key!r} has shape {tuple(found[key].shape)}, expected {shape}")
