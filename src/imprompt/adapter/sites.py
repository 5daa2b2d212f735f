"""Sites: the places of a host where image tokens are attended to, read off its module tree."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from imprompt.core.errors import HostMismatch

# Published checkpoints number the attentions of a UNet in the order in which its blocks were registered,
# which is not the order of the forward pass (tencent-ailab/IP-Adapter at 62e4af9, ip_adapter.py:137).
BLOCK_ORDER = ("down_blocks", "up_blocks", "mid_block")


@dataclass(frozen=True, kw_only=True)
class Site:
    """One cross-attention of a host.

    Attributes:
        name: the module's path in the host.
        index: its number in published checkpoints.
        block: the transformer it belongs to, e.g. `up_blocks.1.attentions.0`: the unit of per-block strengths.
        query_width: width of its queries, which is that of the adapter's keys and values.
        key_width: width of the tokens that it attends to.
        num_heads: number of heads.
    """

    name: str
    index: int
    block: str
    query_width: int
    key_width: int
    num_heads: int


def _attentions(host: nn.Module) -> Iterator[tuple[str, Any]]:
    for root in BLOCK_ORDER:
        block = getattr(host, root, None)
        if isinstance(block, nn.Module):
            for name, module in block.named_modules(prefix=root):
                if hasattr(module, "get_processor") and hasattr(module, "to_q"):
                    yield name, module


def find_sites(host: nn.Module) -> tuple[Site, ...]:
    """All sites of a UNet, in checkpoint order (down, up, mid).

    Raises:
        HostMismatch: the host has no cross-attention named `attn2`.
    """
    sites = tuple(
        Site(
            name=name,
            index=index,
            block=name.split(".transformer_blocks")[0],
            query_width=module.to_q.out_features,
            key_width=module.to_k.in_features,
            num_heads=module.heads,
        )
        for index, (name, module) in enumerate(_attentions(host))
        if name.endswith(".attn2")
    )
    if not sites:
        raise HostMismatch(
            f"{type(host).__name__} has no cross-attention to attach to: expected modules named 'attn2' in "
            f"{', '.join(BLOCK_ORDER)}. Pass a pipeline with a UNet2DConditionModel, or that UNet itself."
        )
    return sites
