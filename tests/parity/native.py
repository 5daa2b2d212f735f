"""diffusers' own IP-Adapter, fed with our weights in the official layout."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imprompt.adapter.adapter import Adapter
from tests import tiny


def official_state(adapter: Adapter) -> dict[str, dict[str, Tensor]]:
    """The two sections of a published file."""
    state: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in adapter.state_dict().items():
        section, name = key.split(".", 1)
        state[section][name] = value.clone()
    return state


def native_host(host: Any, *adapters: Adapter, scales: Sequence[Any] | None = None) -> Any:
    """A copy of a UNet with adapters loaded diffusers' way."""
    host = copy.deepcopy(host)
    host._load_ip_adapter_weights([official_state(adapter) for adapter in adapters])
    for processor in host.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = list(scales or [1.0] * len(adapters))
    return host.eval()


def native_call(
    host: Any, inputs: dict[str, Any], features: Sequence[Tensor], *, masks: Sequence[Tensor | None] | None = None
) -> Tensor:
    """One call of such a copy.

    Args:
        host: made by `native_host`.
        inputs: made by `tiny.host_inputs`.
        features: for each adapter [rows, images, ...].
        masks: for each adapter [1, images, height, width].
    """
    conditions = {**inputs.get("added_cond_kwargs", {}), "image_embeds": list(features)}
    more = {} if masks is None else {"cross_attention_kwargs": {"ip_adapter_masks": list(masks)}}
    return tiny.call(host, {**inputs, "added_cond_kwargs": conditions, **more})


def largest_difference(a: Tensor, b: Tensor) -> float:
    return float(torch.nan_to_num(a - b, nan=torch.inf).abs().max())
