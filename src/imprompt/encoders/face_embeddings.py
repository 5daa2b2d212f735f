"""Embeddings of faces as values: brought to unit length, averaged, compared, saved and loaded."""

import json
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from imprompt.core.errors import CheckpointError, EncoderMismatch, FaceError
from imprompt.core.files import atomic_write
from imprompt.encoders.face_base import EmbedderSpec

_TENSOR = "face_embeds"
_ORIGIN = "imprompt.face"  # the one entry of the metadata: safetensors writes several in an order that changes


@dataclass(frozen=True, eq=False)
class FaceEmbeddings:
    """What a file of embeddings holds.

    Attributes:
        values: One embedding a row.
        embedder: Name of the network that made them.
        fingerprint: Hash of its weights.
        normalised: Whether each has unit length.
    """

    values: Float[Tensor, "faces width"]
    embedder: str
    fingerprint: str
    normalised: bool


def normalise(embeddings: Float[Tensor, "faces width"]) -> Float[Tensor, "faces width"]:
    """Bring each embedding to unit length.

    Raises:
        FaceError: One is zero or not finite.
    """
    lengths = embeddings.norm(dim=1, keepdim=True)
    if not bool((lengths.isfinite() & (lengths > 0)).all()):
        raise FaceError("A face embedding is zero or not finite; encode the picture again.")
    return embeddings / lengths


def average(embeddings: Float[Tensor, "faces width"]) -> Float[Tensor, "1 width"]:
    """Average embeddings of the same person: their mean direction at their mean length.

    A plain mean would be the shorter the more they differ, and adapters were trained on lengths as networks give them.

    Raises:
        FaceError: There is none, or they cancel each other.
    """
    if len(embeddings) == 0:
        raise FaceError("There is no face embedding to average; give at least one.")
    direction = normalise(embeddings).mean(dim=0, keepdim=True)
    return normalise(direction) * embeddings.norm(dim=1).mean()


def similarities(
    embeddings: Float[Tensor, "faces width"], reference: Float[Tensor, "references width"]
) -> Float[Tensor, " faces"]:
    """Cosine of each embedding with the average of a reference, -1 to 1: the same person's is the highest."""
    return normalise(embeddings) @ normalise(average(reference))[0]


def save_embeddings(
    path: str | Path, embeddings: Float[Tensor, "faces width"], embedder: EmbedderSpec, *, normalised: bool
) -> None:
    """Write embeddings as safetensors, with the network that made them.

    Args:
        path: The file; by custom it ends in .safetensors.
        embeddings: One a row.
        embedder: What made them.
        normalised: Whether each has unit length.

    Raises:
        EncoderMismatch: The embedder makes another width.
    """
    _check_width(embeddings.shape[1], embedder, "The embeddings")
    origin = {"embedder": embedder.name, "fingerprint": embedder.fingerprint, "normalised": normalised}
    values = embeddings.detach().float().cpu().contiguous()
    with atomic_write(path) as temporary:
        save_file({_TENSOR: values}, temporary, {_ORIGIN: json.dumps(origin)})


def load_embeddings(path: str | Path, embedder: EmbedderSpec, *, normalised: bool) -> Float[Tensor, "faces width"]:
    """Read embeddings back, for the network that made them and no other.

    Args:
        path: The file.
        embedder: What they are to be used with.
        normalised: Whether each is wanted at unit length. Raw ones are brought to it; the way back is lost.

    Raises:
        CheckpointError: The file is missing, damaged or holds no embeddings.
        EncoderMismatch: Another network made them, or they are normalised and wanted raw.
    """
    stored = read_embeddings(path)
    if stored.fingerprint != embedder.fingerprint:
        raise EncoderMismatch(
            f"'{path}' holds faces as {stored.embedder} embeds them ({stored.fingerprint[:12]}), which say nothing to "
            f"{embedder.name} ({embedder.fingerprint[:12]}); embed the pictures again, or load that network."
        )
    _check_width(stored.values.shape[1], embedder, f"'{path}'")
    if stored.normalised and not normalised:
        raise EncoderMismatch(
            f"'{path}' holds embeddings of unit length, and raw ones are wanted; embed the pictures again with "
            "normalised=False."
        )
    return normalise(stored.values) if normalised else stored.values


def read_embeddings(path: str | Path) -> FaceEmbeddings:
    """Read a file of embeddings, whoever made them.

    Raises:
        CheckpointError: The file is missing, damaged or holds no embeddings.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"There is no file '{path}'; give one that save_embeddings wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            origin, values = json.loads((file.metadata() or {})[_ORIGIN]), file.get_tensor(_TENSOR)
            found = FaceEmbeddings(
                values=_checked(values),
                embedder=str(origin["embedder"]),
                fingerprint=str(origin["fingerprint"]),
                normalised=bool(origin["normalised"]),
            )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"'{path}' holds no face embeddings that can be read ({error}); give a file that save_embeddings wrote."
        ) from error
    return found


def _checked(values: Tensor) -> Tensor:
    if values.ndim != 2 or values.numel() == 0 or not values.is_floating_point():
        raise ValueError(f"a tensor of {values.dtype} and shape {list(values.shape)}")
    if not bool(values.isfinite().all()):
        raise ValueError("NaN or infinite values")
    return values


def _check_width(width: int, embedder: EmbedderSpec, what: str) -> None:
    if width != embedder.width:
        raise EncoderMismatch(
            f"{what} have width {width}, and {embedder.name} makes {embedder.width}; they are not of this network."
        )
