"""From one layout to another, checked before anything is replaced."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.checkpoint import load_adapter, save_adapter, save_parts
from imprompt.core.errors import CheckpointError
from imprompt.core.files import atomic_write
from imprompt.core.published import PUBLISHED_ADAPTERS


def save_verified(
    adapter: Adapter,
    path: str | Path,
    *,
    format: str = "native",
    dtype: torch.dtype | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write an adapter, load it back, and only if every weight is what it was put the file in its place.

    Args:
        adapter: what to write.
        path: the file.
        format: as for `save_adapter`.
        dtype: number format in the file; None keeps the adapter's.
        beside: as for `save_adapter`.

    Raises:
        CheckpointError: the adapter cannot be written so, or what was read back differs; the old file is still there.
    """
    path = Path(path)
    with atomic_write(path) as temporary:
        save_adapter(adapter, temporary, format=format, dtype=dtype, beside=beside)
        _compare(adapter, temporary, dtype, path.name)
    return path


def save_parts_verified(
    parts: Mapping[str, Adapter],
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> Path:
    """As `save_verified`, for the adapters of one file by their parts' names."""
    path = Path(path)
    with atomic_write(path) as temporary:
        save_parts([*parts.values()], temporary, dtype=dtype, beside=beside)
        for part, adapter in parts.items():
            _compare(adapter, temporary, dtype, path.name, part)
    return path


def _compare(adapter: Adapter, written: Path, dtype: torch.dtype | None, name: str, part: str | None = None) -> None:
    shortcut = getattr(adapter.spec.projector, "shortcut", None)  # a pickle does not hold it
    again = load_adapter(written, dtype=None, shortcut=shortcut, part=part)
    before, after = adapter.state_dict(), again.state_dict()
    same = (adapter.spec.projector, adapter.spec.key_values) == (again.spec.projector, again.spec.key_values)
    if not same or before.keys() != after.keys():
        raise CheckpointError(f"{name} was not written: what was read back is another adapter; write it as 'native'")
    for key, value in before.items():
        if not torch.equal(value.to(dtype or value.dtype), after[key]):
            raise CheckpointError(f"{name} was not written: {key!r} came back with other numbers; write it as 'native'")


def name_for_parts(parts: Mapping[str, Adapter]) -> str:
    """The file name under which two adapters were published together: `csgo`, `csgo_4_32`."""
    return f"{parts['style'].spec.name.replace('-style', '')}.safetensors"


def name_for(adapter: Adapter) -> str:
    """The file name under which an adapter was published, by which ComfyUI's loader finds it and tells its kind."""
    published = next((each for each in PUBLISHED_ADAPTERS if each.name == adapter.spec.name), None)
    stem = adapter.spec.name if published is None else Path(published.files[0].path).stem
    return f"{stem}.safetensors"


def comfy_notes(adapter: Adapter, path: Path) -> list[str]:
    """What ComfyUI's nodes will not find out by themselves from a file of this name."""
    notes: list[str] = []
    wanted = name_for(adapter)
    if Path(wanted).stem not in path.stem:
        notes.append(f"ComfyUI's unified loader goes by names, and finds this one as {wanted}")
    published = next((each for each in PUBLISHED_ADAPTERS if each.name == adapter.spec.name), None)
    if published is not None and published.lora is not None:
        notes.append(f"ComfyUI loads its LoRA from a file of its own: {published.repository}:{published.lora.path}")
    return notes
