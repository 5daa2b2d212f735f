"""`imprompt convert`: an adapter from one layout into another, checked before it replaces anything."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from imprompt.core.errors import PromptError

TARGETS = ("official", "diffusers", "comfy", "native")
DTYPES = {"keep": None, "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

Target = Enum("Target", {name: name for name in TARGETS}, type=str)
Dtype = Enum("Dtype", {name: name for name in DTYPES}, type=str)


def convert(
    source: Annotated[
        str, typer.Argument(help="What to convert: a file, a training run's folder, or OWNER/REPOSITORY:FILE.")
    ],
    target: Annotated[
        Path, typer.Argument(help="A .safetensors file, or a folder to put it in (official: or a .bin).")
    ],
    to: Annotated[Target, typer.Option("--to", help="The layout.")] = Target.native,  # pyright: ignore
    dtype: Annotated[Dtype, typer.Option(help="Number format.")] = Dtype.keep,  # pyright: ignore
    variant: Annotated[str | None, typer.Option(help="What it is, where its tensors do not tell.")] = None,
    part: Annotated[str | None, typer.Option(help="Which adapter, where a file holds several.")] = None,
    lora: Annotated[str | None, typer.Option(help="A LoRA file that belongs to it, to put inside.")] = None,
) -> None:
    """Write an adapter in another layout; the new file is loaded back and compared before it replaces anything.

    native: the official names for every variant, with all that imprompt knows of it in the file's header. official: as
    its authors publish it, with what else their file holds. comfy: as ComfyUI's nodes read it. diffusers: the state of
    a denoiser that has it loaded.

    Examples:

    imprompt convert runs/checkpoint-2000 my-adapter.safetensors

    imprompt convert InstantX/CSGO:csgo.bin csgo.safetensors --to official

    imprompt convert h94/IP-Adapter-FaceID:ip-adapter-faceid-plusv2_sd15.bin ComfyUI/models/ipadapter/ --to comfy
    """
    import torch

    from imprompt.adapter.checkpoint import load_adapter, parts_of, read_beside
    from imprompt.adapter.checkpoint.convert import comfy_notes, name_for, save_verified
    from imprompt.adapter.checkpoint.formats import CSGO

    if target.suffix not in ("", ".safetensors", ".bin"):
        raise PromptError(f"cannot write {target.name!r}; give a name that ends in .safetensors, or a folder")
    name = DTYPES[dtype.value]
    number_format = None if name is None else getattr(torch, name)
    beside = read_beside(source) if to.value == "official" else {}
    if part is None and to.value in ("native", "official") and parts_of(source) == tuple(CSGO):
        if lora is not None or variant is not None:
            raise PromptError("both parts are converted together, without --variant or --lora; or name one as --part")
        typer.echo(_convert_parts(source, target, number_format))
        return
    adapter = load_adapter(source, dtype=None, variant=variant, part=part, lora=lora)
    if not target.suffix or target.is_dir():
        target = target / name_for(adapter)
    save_verified(adapter, target, format=to.value, dtype=number_format, beside=beside)
    for note in comfy_notes(adapter, target) if to.value == "comfy" else ():
        typer.echo(f"note: {note}", err=True)
    typer.echo(target)


def _convert_parts(source: str, target: Path, dtype: Any) -> Path:
    """Both adapters of a file, and what is beside them, in one."""
    from imprompt.adapter.checkpoint import load_adapter, parts_of, read_beside
    from imprompt.adapter.checkpoint.convert import name_for_parts, save_parts_verified

    parts = {part: load_adapter(source, dtype=None, part=part) for part in parts_of(source)}
    if not target.suffix or target.is_dir():
        target = target / name_for_parts(parts)
    return save_parts_verified(parts, target, dtype=dtype, beside=read_beside(source))
