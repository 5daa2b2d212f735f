"""Adapters in files: read any known layout, write the official one with the spec in its metadata."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.checkpoint.files import write_pickle, write_tensors
from imprompt.adapter.checkpoint.lora import load_lora
from imprompt.adapter.checkpoint.reading import (
    SPEC_KEY,
    Contents,
    part_key,
    parts_of,
    read_beside,
    read_contents,
    tokens_aside,
)
from imprompt.adapter.checkpoint.writing import TARGETS, arrange, arrange_parts, check_beside
from imprompt.adapter.spec import AdapterSpec, TokensSpec
from imprompt.core.errors import CheckpointError, first_line
from imprompt.core.weights import resolve_file

__all__ = [
    "SPEC_KEY",
    "TARGETS",
    "Contents",
    "load_adapter",
    "parts_of",
    "read_beside",
    "read_contents",
    "read_spec",
    "save_adapter",
    "save_parts",
]


def read_spec(
    source: str | Path,
    filename: str | None = None,
    *,
    part: str | None = None,
    variant: str | None = None,
    shortcut: bool | None = None,
) -> AdapterSpec:
    """What adapter a file holds, without loading its weights. Arguments as for `load_adapter`.

    Raises:
        CheckpointError: the file cannot be read safely, or holds no adapter that imprompt knows.
    """
    return read_contents(source, filename, part=part, variant=variant, shortcut=shortcut).spec


def load_adapter(
    source: str | Path,
    filename: str | None = None,
    *,
    dtype: torch.dtype | None = torch.float32,
    part: str | None = None,
    variant: str | None = None,
    shortcut: bool | None = None,
    lora: str | Path | None = None,
) -> Adapter:
    """Load an adapter.

    Args:
        source: a file, a folder (of a training run, say), a place on the hub or the name of a published adapter.
        filename: the file inside a folder or repository, e.g. `models/ip-adapter_sd15.safetensors`.
        dtype: number format of its weights. Keys and values are computed once per prompt, so float32 costs next to
            nothing; None keeps the file's and so half the memory.
        part: which adapter, where a file holds several: "content" or "style" of CSGO, "0" or "1" of a denoiser's state.
        variant: the published adapter that it is, where no tensor tells: `ip-adapter-faceid-plusv2_sd15`.
        shortcut: whether a FaceID-Plus of one's own is version 2 (True) or 1.
        lora: a LoRA file that belongs to it; takes the place of one inside.

    Raises:
        CheckpointError: the file cannot be read safely, holds no adapter that imprompt knows, or lacks tensors.
    """
    contents = read_contents(source, filename, part=part, variant=variant, shortcut=shortcut, with_weights=True)
    spec, tensors = contents.spec, contents.tensors
    if lora is not None:
        changes, lora_spec = load_lora(resolve_file(lora), spec)
        tensors = {**{key: value for key, value in tensors.items() if "_lora." not in key}, **changes}
        spec = replace(spec, lora=lora_spec)
    adapter = _empty_adapter(contents.path, spec)
    _check_tensors(contents.path, {key: tuple(value.shape) for key, value in adapter.state_dict().items()}, tensors)
    # Copied: the file may change while the adapter lives, and its tensors lie where no kernel expects them.
    copies = {key: value.detach().to(dtype or value.dtype, copy=True) for key, value in tensors.items()}
    adapter.load_state_dict(copies, assign=True)
    adapter.source = contents.path
    return adapter.eval().requires_grad_(False)


def save_adapter(
    adapter: Adapter,
    path: str | Path,
    *,
    format: str = "native",
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    host: nn.Module | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write an adapter, by default in the official layout, which diffusers and ComfyUI read too, with its spec inside.

    Args:
        adapter: what to write.
        path: a file that ends in `.safetensors`; with `format="official"` also a pickle, `.bin`, which holds no spec.
            It appears complete or not at all.
        format: "native", "official" (as its authors publish it), "diffusers" (the state of a denoiser that has it
            loaded) or "comfy".
        dtype: number format in the file; None keeps the adapter's.
        metadata: further texts for the file's header.
        host: the UNet, for `format="diffusers"` where that is of a shape of its own.
        beside: what else the published file of PuLID holds, as `read_beside` gives it, for `format="official"`.

    Raises:
        CheckpointError: the path has another suffix, or the adapter cannot be written so.
    """
    path, beside = Path(path), beside or {}
    if path.suffix != ".safetensors" and not (path.suffix == ".bin" and format == "official"):
        raise CheckpointError(f"cannot save an adapter as {path.name!r}; give a name that ends in .safetensors")
    if path.suffix == ".bin" and isinstance(adapter.spec.projector, TokensSpec) and tokens_aside(beside) is None:
        raise CheckpointError(
            f"cannot save {adapter.spec.name!r} as {path.name!r}: only its face encoder tells how many tokens it takes"
            "; give a name that ends in .safetensors, or the face encoder as beside="
        )
    tensors = arrange(adapter.state_dict(), adapter.spec, format, host)
    check_beside(beside, adapter.spec, format)
    _write(path, {**beside, **tensors}, dtype, {SPEC_KEY: adapter.spec.to_json(), **(metadata or {})})
    return path


def save_parts(
    parts: Sequence[Adapter],
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the two adapters of CSGO into one file, as they are published; `load_adapter` reads each by its `part`.

    Args:
        parts: content and style, in any order.
        path: a file that ends in `.safetensors`, or a pickle, `.bin`, which holds no specs.
        dtype: number format in the file; None keeps the adapters'.
        metadata: further texts for the file's header.
        beside: what else the published file holds, as `read_beside` gives it.

    Raises:
        CheckpointError: the path has another suffix, or these are not two such adapters.
    """
    path, beside = Path(path), beside or {}
    if path.suffix not in (".safetensors", ".bin"):
        raise CheckpointError(f"cannot save adapters as {path.name!r}; give a name that ends in .safetensors")
    tensors, specs = arrange_parts([(adapter.spec, adapter.state_dict()) for adapter in parts])
    for spec in specs.values():
        check_beside(beside, spec)
    texts = {part_key(part): spec.to_json() for part, spec in specs.items()}
    _write(path, {**beside, **tensors}, dtype, {**texts, **(metadata or {})})
    return path


def _write(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None, metadata: Mapping[str, str]) -> None:
    tensors = {key: value.to(dtype or value.dtype) for key, value in tensors.items()}
    if path.suffix == ".bin":
        write_pickle(path, tensors)
    else:
        write_tensors(path, tensors, metadata)


def _empty_adapter(path: Path, spec: AdapterSpec) -> Adapter:
    """An adapter whose weights take no memory yet."""
    try:
        with torch.device("meta"):
            return Adapter(spec)
    except (RuntimeError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path.name}: no adapter is as its spec says ({first_line(error)}); get the file again"
        ) from error


def _check_tensors(path: Path, wanted: dict[str, tuple[int, ...]], found: Mapping[str, Tensor]) -> None:
    missing, foreign = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or foreign:
        problem = f"lacks {missing[0]!r}" if missing else f"has {foreign[0][:120]!r}, which its variant does not"
        raise CheckpointError(
            f"{path.name} {problem} ({len(missing)} missing, {len(foreign)} foreign tensors); get the whole file again"
        )
    for key, shape in wanted.items():
        if tuple(found[key].shape) != shape:
            raise CheckpointError(f"{path.name}: {key!r} has shape {tuple(found[key].shape)}, expected {shape}")
