"""LoRA files that belong to an adapter: FaceID's are published inside it and once more on their own.

Styles of names:

* kohya's, `lora_unet_down_blocks_0_..._attn1_to_q.lora_down.weight`, with or without `.alpha`: that of all of FaceID's
  files, whose sizes these keys fill to the byte (those for Stable Diffusion XL with an alpha of eight bytes a layer, as
  `convert_state_dict_to_kohya` of diffusers 0.42 writes it).
* diffusers' older one, `unet.down_blocks.0...attn1.processor.to_q_lora.down.weight`, which its `loaders/unet.py` makes
  of FaceID's, and its newer ones with `.lora.down.` or PEFT's `.lora_A.`: not met in a published FaceID file.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from imprompt.adapter.checkpoint import files
from imprompt.adapter.checkpoint.paths import PATH, attention_paths
from imprompt.adapter.checkpoint.shapes import read_lora
from imprompt.adapter.spec import AdapterSpec, LoraSpec
from imprompt.core.errors import CheckpointError

_LAYER = r"(?P<layer>to_[qkv]|to_out)(?:[._]0)?"
_KOHYA = rf"(?:lora_unet_)?(?P<path>\w+_attn[12])_{_LAYER}"
_DOTTED = rf"(?:base_model\.model\.)?(?:unet\.)?(?P<path>{PATH})"
_STYLES = tuple(
    re.compile(style)
    for style in (
        rf"{_KOHYA}\.(?:lora_(?P<half>down|up)\.weight|(?P<alpha>alpha))",
        rf"{_DOTTED}\.processor\.(?P<layer>to_[qkv]|to_out)_lora\.(?P<half>down|up)\.weight",
        rf"{_DOTTED}\.{_LAYER}\.(?:lora[._](?P<half>down|up|A|B)(?:\.\w+)?\.weight|(?P<alpha>alpha))",
    )
)
_HALVES = {"A": "down", "B": "up"}


def load_lora(path: Path, spec: AdapterSpec) -> tuple[dict[str, Tensor], LoraSpec]:
    """A LoRA by an adapter's own names, with every alpha multiplied into the weights, and its spec.

    Args:
        path: the file.
        spec: the adapter that it belongs to, which tells the numbers of the attentions.

    Raises:
        CheckpointError: it cannot be read safely, or changes something else than this base's attentions.
    """
    tensors, alphas = _sorted(path, files.read_tensors(path), attention_paths(spec.family))
    for name, alpha in alphas.items():
        up, down = tensors.get(f"{name}.up.weight"), tensors.get(f"{name}.down.weight")
        if up is not None and down is not None and alpha != down.shape[0]:
            tensors[f"{name}.up.weight"] = up * (alpha / down.shape[0])
    files.check_finite(path, tensors)
    try:
        lora = read_lora({key: tuple(value.shape) for key, value in tensors.items()})
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path.name}: the LoRA lacks {error}; get the whole file") from error
    if lora is None:
        raise CheckpointError(f"{path.name} holds no LoRA of attentions; expected keys like 'lora_unet_..._attn1_to_q'")
    return tensors, lora


def _sorted(
    path: Path, tensors: Mapping[str, Tensor], paths: Mapping[int, str]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Matrices by our names, and alphas by the layers they belong to."""
    numbers = {name.replace(".", "_"): number for number, name in paths.items()}
    ours: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for key, value in tensors.items():
        match = next((found for style in _STYLES if (found := style.fullmatch(key))), None)
        number = None if match is None else numbers.get(match["path"].replace(".", "_"))
        if match is None or number is None:
            raise CheckpointError(
                f"{path.name}: {key[:120]!r} changes nothing that this adapter's base has; expected its attentions, "
                "like 'lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight'"
            )
        name = f"ip_adapter.{number}.{match['layer']}_lora"
        if match.groupdict().get("alpha"):
            alphas[name] = float(value.to(torch.float32)) if value.numel() == 1 else 0.0
        else:
            half = match["half"]
            ours[f"{name}.{_HALVES.get(half, half)}.weight"] = value
    return ours, alphas
