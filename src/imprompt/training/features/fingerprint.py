"""What features are made of, as hashes that change when anything of it changes."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from imprompt.core.errors import CheckpointError, first_line
from imprompt.core.files import sha256_file
from imprompt.encoders.fingerprint import hash_weights

_WEIGHTS = "*.safetensors"
# What a hub's cache may hold beside them says nothing of the features.
_DESCRIPTIONS = ("config.json", "preprocessor_config.json", "processor_config.json")


def fingerprint_of_folder(folder: Path, variant: str | None = None) -> str:
    """Tell a model's files apart without loading them: what describes it whole, its weights by samples (ADR 0004).

    Args:
        folder: With weights in safetensors and their configuration.
        variant: Of the weights' files, such as "fp16"; others are left out.

    Raises:
        CheckpointError: There are no such weights, or they cannot be read.
    """
    files = weight_files(folder, variant)
    digest = hashlib.sha256()
    for path in (folder / name for name in _DESCRIPTIONS):
        digest.update(f"{path.name}:{sha256_file(path) if path.is_file() else ''}:".encode())
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:  # maps the file: only the pages of samples are read
                hash_weights(digest.update, ((name, file.get_tensor(name)) for name in sorted(file.keys())))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"'{path}' cannot be read ({first_line(error)}); get it again") from error
    return digest.hexdigest()


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors files of a model folder, those of one variant where several lie side by side.

    Raises:
        CheckpointError: There are none.
    """
    every = sorted(folder.glob(_WEIGHTS))
    chosen = [path for path in every if (variant or "") == _variant_of(path)]
    if not chosen:
        found = ", ".join(path.name for path in every) or "none"
        wanted = f" of the variant {variant!r}" if variant else ""
        raise CheckpointError(f"'{folder}' needs weights in safetensors{wanted}; there are: {found}")
    return chosen


def hash_of(ingredients: Mapping[str, str]) -> str:
    """Hash of named ingredients."""
    return hashlib.sha256(json.dumps(dict(ingredients), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class RowHashes:
    """Fingerprints of a whole store and of each of its shards."""

    whole: str
    shards: tuple[str, ...]


def hash_rows(recipe: str, shards: Iterable[Iterable[str]]) -> RowHashes:
    """Hash what the rows of a manifest are, shard by shard, together with how features are made.

    Args:
        recipe: `hash_of` the ingredients.
        shards: Of each shard a line a row: whatever of the row its features depend on.

    Returns:
        Of these, the whole one does not depend on the size of shards.
    """
    whole, each = hashlib.sha256(recipe.encode()), []
    for lines in shards:
        content = "".join(f"\n{line}" for line in lines).encode()
        whole.update(content)
        each.append(hashlib.sha256(recipe.encode() + content).hexdigest())
    return RowHashes(whole.hexdigest(), tuple(each))


def _variant_of(path: Path) -> str:
    """`fp16` of `model.fp16.safetensors` and of `model.fp16-00001-of-00002.safetensors`."""
    name = path.name.removesuffix(".safetensors").partition("-0")[0]
    return name.partition(".")[2]
