"""Face embeddings from files as people have them: .npy, safetensors, or what torch.save made of tensor or array."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from imprompt.core.errors import first_line
from imprompt.training.errors import DataError

MAX_BYTES = 2**20  # an embedding has some kilobytes

# What an array in a pickle names; all of it makes arrays and nothing else.
_ARRAY_NAMES: list[Any] = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float16, np.float32, np.float64)),
    (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),  # pyright: ignore[reportAttributeAccessIssue]
    (np._core.multiarray._reconstruct, "numpy._core.multiarray._reconstruct"),  # pyright: ignore[reportAttributeAccessIssue]
]


def read_embed(path: Path) -> Float[Tensor, " dim"]:
    """Read one embedding, float32, whatever axes of length one it has; nothing in the file is run.

    Raises:
        DataError: The file is missing, damaged, larger than any embedding, or holds something else.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"'{path}' has {path.stat().st_size:,} bytes; a face embedding has some thousand.")
        values = _read(path)
    except DataError:
        raise
    except Exception as error:  # three formats, each with errors of a dozen kinds
        raise DataError(f"'{path}' is no face embedding that can be read ({first_line(error)}).") from error
    tensor = torch.as_tensor(values).squeeze()
    if tensor.ndim != 1 or not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
        raise DataError(
            f"'{path}' holds {tensor.dtype} of the shape {list(tensor.shape)}; expected [dim], finite floats."
        )
    return tensor.float()


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"\x93NUMPY"):
        return np.load(path, allow_pickle=False)
    if start[8:] == b"{":
        return _only(load_file(path), path)
    with warnings.catch_warnings(), torch.serialization.safe_globals(_ARRAY_NAMES):
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _only(tensors: dict[str, Tensor], path: Path) -> Tensor:
    if len(tensors) != 1:
        raise SafetensorError(f"{len(tensors)} tensors in '{path.name}'; expected one")
    return next(iter(tensors.values()))
