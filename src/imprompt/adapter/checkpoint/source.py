"""Which files make up a checkpoint: one, a folder that `accelerate` or DeepSpeed wrote, or a file on the hub."""

import re
from pathlib import Path

from imprompt.core.errors import CheckpointError, UnknownFormat
from imprompt.core.weights import resolve_file

# What trainers call the weights of a model, the first of its kind that a folder holds; `{}` stands for the further
# models and shards beside it (accelerate 1.15, `checkpointing.py`, `utils/constants.py`; DeepSpeed's `engine.py`).
WEIGHTS = (
    (r"model(?:_\d+)?\.safetensors", "model.safetensors"),
    (r"model-\d+-of-\d+\.safetensors", "model-00001-of-*.safetensors"),
    (r"pytorch_model(?:_\d+)?\.bin", "pytorch_model.bin"),
    (r"pytorch_model-\d+-of-\d+\.bin", "pytorch_model-00001-of-*.bin"),
    (r"pytorch_model_fsdp(?:_\d+)?\.bin", "pytorch_model_fsdp.bin"),
    (r"mp_rank_\d+_model_states\.pt", "mp_rank_00_model_states.pt"),
    (r"diffusion_pytorch_model\.safetensors", "diffusion_pytorch_model.safetensors"),
    (r"ip_adapter\.(?:safetensors|bin)", "ip_adapter.bin"),  # InvokeAI's, beside the name of the encoder
)
SHARDED = (
    (
        r"(?:bf16_|fp16_)?zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt",
        "ZeRO stage 3 cut the weights up over the processes; join them with "
        "`python zero_to_fp32.py . pytorch_model.bin`, which DeepSpeed put into that folder, and load it again",
    ),
    (
        r".*\.distcp",
        "FSDP left the weights in one piece a process; join them with `accelerate merge-weights`, and load what that "
        "wrote",
    ),
)
DEPTH = 2  # folders down: DeepSpeed's are in `pytorch_model/` or `global_step1000/`


def checkpoint_files(source: str | Path, filename: str | None = None) -> tuple[Path, ...]:
    """The files that hold an adapter, the one that gives it its name first.

    Args:
        source: a file, a folder, or a place on the hub.
        filename: a file or folder inside it.

    Raises:
        CheckpointError: a folder without weights, or with weights that another program has to join first.
        DownloadError: neither here nor reachable.
    """
    local = Path(source).expanduser()
    folder = local / filename if filename else local
    if folder.is_dir():
        return _files_of_folder(folder)
    return (resolve_file(source, filename),)


def _files_of_folder(folder: Path) -> tuple[Path, ...]:
    files = sorted(path for depth in range(DEPTH + 1) for path in folder.glob("*/" * depth + "*") if path.is_file())
    for pattern, remedy in SHARDED:
        shard = next((path for path in files if re.fullmatch(pattern, path.name)), None)
        if shard is not None:
            raise CheckpointError(f"{folder.name} holds no whole weights, but {shard.name!r}: {remedy}")
    for pattern, _ in WEIGHTS:
        found = [path for path in files if re.fullmatch(pattern, path.name)]
        nearest = [path for path in found if path.parent == _latest(found)]
        if nearest:
            return tuple(sorted(nearest, key=_number))
    names = ", ".join(path.name for path in files[:4]) or "nothing"
    wanted = ", ".join(name for _, name in WEIGHTS)
    raise UnknownFormat(
        f"{folder.name} is a folder with {names}{', ...' if len(files) > 4 else ''}; expected one of {wanted}, or the "
        "name of a file in it"
    )


def _latest(files: list[Path]) -> Path | None:
    """The folder with weights nearest to the top, and of several the one that was written last."""
    folders = {path.parent for path in files}
    return min(folders, key=lambda each: (len(each.parts), -each.stat().st_mtime), default=None)


def _number(path: Path) -> tuple[int, str]:
    """`model.safetensors` before `model_1.safetensors` before `model_10.safetensors`."""
    figures = re.findall(r"\d+", path.stem)
    return (int(figures[0]) if figures else -1), path.name
