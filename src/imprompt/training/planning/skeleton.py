"""Models as shapes: a base and an encoder built from their configurations alone, on the device that has no memory."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from imprompt.core.errors import DownloadError, first_line
from imprompt.core.weights import resolve_folder
from imprompt.encoders.kinds import kind_of_type
from imprompt.encoders.vision import VisionEncoder, half_config
from imprompt.generation.pipelines import is_embedded
from imprompt.training.config import BaseModelConfig

META = torch.device("meta")
_CONFIGURATIONS = ("*.json", "*/*.json", "*/*.txt", "*/*.model")
_OPERATIONS = torch.ops.aten


def skeleton_pipeline(config: BaseModelConfig) -> Any:
    """A base's pipeline whose networks have shapes and no weights; tokenizers and scheduler are real.

    Args:
        config: Which base; of a repository, only configurations are fetched.

    Raises:
        DownloadError: It is neither here nor reachable, or a part of it has code of its own.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    folder = _folder_of(config)
    dtype = getattr(torch, config.dtype)
    try:
        parts = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        networks = {
            name: _network(folder / name, named[0], named[1], dtype)
            for name, named in parts.items()
            if isinstance(named, list) and named[0] in ("diffusers", "transformers") and _is_network(*named)
        }
        return DiffusionPipeline.from_pretrained(folder, local_files_only=True, **networks)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DownloadError(
            f"the base in '{folder}' cannot be planned for ({first_line(error)}); give a folder in diffusers' layout"
        ) from error


def skeleton_encoder(folder: Path, dtype: torch.dtype) -> VisionEncoder:
    """An image encoder that has shapes and no weights.

    Raises:
        DownloadError: The folder holds no configuration of one.
    """
    import transformers

    try:
        kind = kind_of_type(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
        assert kind is not None
        model_class = getattr(transformers, kind.model_class)
        with _as(dtype):
            return VisionEncoder(model_class(half_config(folder, model_class.config_class)))
    except (OSError, ValueError, KeyError, AssertionError) as error:
        raise DownloadError(f"'{folder}' holds no image encoder that can be planned for: {error!r}") from error


@contextmanager
def fused_attention() -> Iterator[None]:
    """Attention that keeps queries, keys, values and sums, as it does on an accelerator.

    On the device without memory torch would choose the formula that keeps the whole matrix. Recomputed layers look the
    function up again in another context, so it is exchanged and not intercepted.
    """
    usual = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = _fused  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = usual


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    if attn_mask is None:
        return _OPERATIONS._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )[0]
    bias = attn_mask.to(query.device, query.dtype).expand(*query.shape[:-1], key.shape[-2])
    return _OPERATIONS._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, dropout_p, is_causal, scale=scale
    )[0]


def _folder_of(config: BaseModelConfig) -> Path:
    if is_embedded(config.path):
        from imprompt.emoji.bundle import bundle_folder

        return bundle_folder()
    return resolve_folder(config.path, revision=config.revision, patterns=_CONFIGURATIONS)


def _class_of(library: str, name: str) -> Any:
    import diffusers
    import transformers

    return getattr({"diffusers": diffusers, "transformers": transformers}[library], name)


def _is_network(library: str | None, name: str | None) -> bool:
    kind = None if library is None or name is None else _class_of(library, name)
    return isinstance(kind, type) and issubclass(kind, nn.Module)


def _network(folder: Path, library: str, name: str, dtype: torch.dtype) -> nn.Module:
    kind = _class_of(library, name)
    with _as(dtype):
        if library == "diffusers":
            return kind.from_config(kind.load_config(folder))
        return kind(kind.config_class.from_pretrained(folder, local_files_only=True))


@contextmanager
def _as(dtype: torch.dtype) -> Iterator[None]:
    """New tensors are shapes of a number format."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with META:
            yield
    finally:
        torch.set_default_dtype(usual)
