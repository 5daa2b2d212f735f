"""`imprompt inspect`: what an adapter file is, what it fits, and what no tensor can tell; or how a picture was made."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from imprompt.adapter.spec import AdapterSpec

FAMILIES = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "Stable Diffusion XL",
}
KOLORS = "Kolors"  # a UNet of SDXL's shape

COUNTS = ("bytes", "parameters")  # printed with separators
MIN_WIDTH = 96  # of the table, in letters, so that a hash stays in one piece

PROJECTORS = {
    "LinearSpec": "global: one pooled feature becomes {tokens} tokens",
    "MLPSpec": "full: each of {tokens} feature tokens becomes an image token",
    "ResamplerSpec": "plus: a resampler of {depth} layers reads feature tokens into {tokens}",
}

NULL_IMAGES = {
    "zero_features": "zeros in place of the features",
    "zero_pixels": "zeros in place of the normalised pixels",
}


def inspect(
    file: Annotated[
        str, typer.Argument(help="An adapter: a file, or OWNER/REPOSITORY/FILE on the hub; or a .png of ours.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Tell what an adapter file is and what it fits; of a picture that imprompt made, how it was made.

    Weights are not loaded, only the file's header is read (a .bin has to be loaded whole).

    Examples:

    imprompt inspect ip-adapter-plus_sd15.safetensors

    imprompt inspect h94/IP-Adapter/sdxl_models/ip-adapter_sdxl.safetensors --json
    """
    facts = picture_facts(Path(file)) if Path(file).suffix.lower() == ".png" else adapter_facts(file)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        print_table(facts)


def picture_facts(path: Path) -> dict[str, Any]:
    """How a picture was made."""
    from imprompt.generation.result import read_provenance

    return read_provenance(path)


def adapter_facts(source: str) -> dict[str, Any]:
    """Everything that an adapter's file tells about it.

    Raises:
        CheckpointError: the file cannot be read safely, or holds no adapter that imprompt knows.
    """
    from imprompt.adapter.checkpoint import SPEC_KEY, read_spec
    from imprompt.adapter.checkpoint.files import read_header
    from imprompt.core.files import sha256_file
    from imprompt.core.weights import resolve_file
    from imprompt.encoders.known import known_encoder

    path = resolve_file(source)
    shapes, metadata = read_header(path)
    spec = read_spec(path)
    declared = SPEC_KEY in metadata
    known = known_encoder(spec.features.encoder)
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
        "variant": spec.name,
        "identified_by": "the spec in its metadata" if declared else "the keys and shapes of its tensors",
        "projector": _projector(spec),
        "tokens": spec.num_tokens,
        "token_width": spec.cross_attention_dim,
        "encoder": {
            "name": spec.features.encoder,
            "layer": spec.features.layer,
            "index": spec.features.index,
            "feature_width": spec.features.width,
            "get_it_from": None if known is None else known.address,
        },
        "null_image": NULL_IMAGES[spec.null_image],
        "sites": len(spec.site_indices),
        "parameters": sum(prod(shape) for shape in shapes.values()),
        "fits": _fits(spec),
        "cannot_be_known": [] if declared else _unknowns(spec),
    }


def print_table(facts: Mapping[str, Any]) -> None:
    """Print facts, one a line; lists and groups below one another."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(_words(name), f"{value:,}" if name in COUNTS else _text(value))
    console = Console(highlight=False)
    console.width = max(console.width, MIN_WIDTH)
    console.print(table)


def _text(value: Any) -> str:
    from rich.markup import escape

    match value:
        case None:
            return "-"
        case dict() | list() if not value:
            return "-"
        case dict():
            return "\n".join(f"{_words(name)}: {_text(part)}" for name, part in value.items())
        case list():
            return "\n".join(_text(part) for part in value)
        case _:
            return escape(str(value))


def _words(name: str) -> str:
    """A field's name in words; a file's name as it is."""
    return name if "." in name else name.replace("_", " ")


def _projector(spec: "AdapterSpec") -> str:
    projector = spec.projector
    words = PROJECTORS[type(projector).__name__]
    return words.format(tokens=projector.num_tokens, depth=getattr(projector, "depth", None))


def _fits(spec: "AdapterSpec") -> str:
    shape = f"{len(spec.site_indices)} cross-attentions of width {spec.cross_attention_dim}"
    name = KOLORS if "kolors" in spec.name else FAMILIES.get(spec.family)
    return f"a UNet with {shape}" if name is None else f"{name} and its fine-tunes ({shape})"


def _unknowns(spec: "AdapterSpec") -> list[str]:
    """What other adapters share all keys and shapes with this one."""
    unknowns = ["which pictures and base it was trained on: 'light' and 'v11' files have the shapes of the first"]
    match type(spec.projector).__name__:
        case "ResamplerSpec":
            unknowns.append("whether it is a face version ('plus-face'): the same network, trained on faces")
        case "MLPSpec":
            unknowns.append("whether no picture means zero pixels or zero features; published files mean pixels")
    unknowns.append("the encoder itself: only the width of its features is in the tensors")
    return unknowns
