"""Telling weights apart by samples of them; see `docs/adr/0004-fingerprints-by-sample.md`."""

from collections.abc import Callable, Iterable

from torch import Tensor

_NUM_SAMPLES = 256


def hash_weights(update: Callable[[bytes], object], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Give a hash name, shape, dtype and some 256 values, spread over it, of each tensor; a meta tensor has no values.

    Args:
        update: Of a running hash.
        tensors: By name.
    """
    for name, tensor in tensors:
        update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}:".encode())
        if not tensor.is_meta:
            values = tensor.detach().flatten()
            update(values[:: max(1, values.numel() // _NUM_SAMPLES)].float().cpu().numpy().tobytes())
