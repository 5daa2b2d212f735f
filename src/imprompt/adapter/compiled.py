"""What a compiled graph asks of an attachment while it runs: custom operators, opaque to the compiler."""

import itertools
import weakref
from typing import Any

import torch
from torch import Tensor

from imprompt.adapter.bound import place_regions

_live: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_handles = itertools.count()


def register(attachment: Any) -> int:
    """The number by which the operators find an attachment, for as long as it lives."""
    handle = next(_handles)
    _live[handle] = attachment
    return handle


@torch.library.custom_op("imprompt::rows_and_scales", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def rows_and_scales(timestep: Tensor, handle: int, batch: int, part: str) -> tuple[Tensor, Tensor]:
    """What a compiled graph asks for at every call: rows of the banks [batch], scales [branches, sites, batch].

    Opaque to the compiler, so guidance, prompts, weights and schedules can change under a graph without a new one.
    """
    attachment = _live[handle]
    attachment._refresh_taps()
    rows = attachment.bank_rows(batch, part or None)
    index = torch.tensor(rows, device=timestep.device)
    if all(bank.schedule is None for bank in attachment._banks):
        return index, timestep.new_zeros((attachment._num_scales, len(attachment.sites), batch), dtype=torch.float32)
    return index, attachment.scales_at(timestep, rows).to(timestep.device, torch.float32).contiguous()


@rows_and_scales.register_fake
def _(timestep: Tensor, handle: int, batch: int, part: str) -> tuple[Tensor, Tensor]:
    attachment = _live[handle]
    attachment._refresh_taps()  # at tracing, and so before the sites are traced: a LoRA may have come since
    shape = (attachment._num_scales, len(attachment.sites), batch)
    return timestep.new_empty((batch,), dtype=torch.int64), timestep.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("imprompt::placed_regions", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def placed_regions(positions: Tensor, rows: Tensor, handle: int, num_queries: int) -> Tensor:
    """Factor of each of the picture's tokens [branches, batch, tokens], where only numbers on the device tell its size.

    As opaque to the compiler as `rows_and_scales`: sizes are read there, and no graph depends on them.
    """
    attachment = _live[handle]
    assert attachment.family.measure is not None
    size = attachment.family.measure(positions)
    regions = [None if bank.region is None else bank.region.to(rows.device)[rows] for bank in attachment._banks]
    dtype = next(region.dtype for region in regions if region is not None)
    everywhere = torch.ones(rows.shape[0], num_queries, device=rows.device, dtype=dtype)
    return torch.stack(
        [everywhere if region is None else place_regions(region, size, num_queries)[:, 0, :, 0] for region in regions]
    )


@placed_regions.register_fake
def _(positions: Tensor, rows: Tensor, handle: int, num_queries: int) -> Tensor:
    banks = _live[handle]._banks
    dtype = next(bank.region.dtype for bank in banks if bank.region is not None)
    return positions.new_empty((len(banks), rows.shape[0], num_queries), dtype=dtype)
