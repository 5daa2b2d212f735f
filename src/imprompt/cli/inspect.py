"""`imprompt inspect`: what an adapter file is, what it fits, and what no tensor can tell; or how a picture was made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from imprompt.adapter.checkpoint import Contents
    from imprompt.adapter.spec import AdapterSpec, FeatureSpec

COUNTS = ("bytes", "parameters")  # printed with separators
MIN_WIDTH = 96  # of the table, in letters, so that a hash stays in one piece

# By the names of `PROJECTOR_KINDS`.
PROJECTORS = {
    "linear": "global: one pooled feature becomes {tokens} tokens",
    "mlp": "full: each of {tokens} feature tokens becomes an image token",
    "resampler": "plus: a resampler of {depth} layers reads feature tokens into {tokens}",
    "pooled_mlp": "one vector becomes {tokens} tokens by two layers",
    "face_plus": "a face embedding becomes {tokens} tokens, which read the face's picture in {depth} layers",
    "time_resampler": "a resampler of {depth} layers that knows the timestep reads feature tokens into {tokens}",
    "tokens": "none: {tokens} tokens are made elsewhere",
}

NULL_IMAGES = {
    "zero_features": "zeros in place of the features",
    "zero_pixels": "zeros in place of the normalised pixels",
    "black_pixels": "a black picture",
    "none": "none: it was trained for guidance without a second half",
}

UNKNOWN_PICTURES = "which pictures and base it was trained on: the tensors are as wide whatever they were"
UNKNOWN_ENCODER = "the encoder itself: only the width of its features is in the tensors"


def inspect(
    file: Annotated[
        str,
        typer.Argument(
            help="An adapter: a file, a training run's folder, OWNER/REPOSITORY:FILE on the hub, or a published name; "
            "OWNER/REPOSITORY of published adapters, to list them; or a .png of ours."
        ),
    ],
    variant: Annotated[str | None, typer.Option(help="What it is, where its tensors do not tell.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Tell what an adapter file is and what it fits; of a picture that imprompt made, how it was made.

    Weights are not loaded, only shapes are read; a repository of published adapters is listed without a download.

    Examples:

    imprompt inspect ip-adapter-plus_sd15.safetensors

    imprompt inspect h94/IP-Adapter:sdxl_models/ip-adapter_sdxl.safetensors --json

    imprompt inspect h94/IP-Adapter

    imprompt inspect runs/checkpoint-2000
    """
    from imprompt.cli.repository import as_rows, repository_facts

    listed = repository_facts(file)
    if listed is not None:
        facts = listed if as_json else as_rows(listed)
    else:
        facts = facts_of(file, variant)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        print_table(facts)


def facts_of(file: str, variant: str | None = None) -> dict[str, Any]:
    """What is known of a picture or an adapter."""
    return picture_facts(Path(file)) if Path(file).suffix.lower() == ".png" else adapter_facts(file, variant)


def picture_facts(path: Path) -> dict[str, Any]:
    """How a picture was made."""
    from imprompt.generation.result import read_provenance

    return read_provenance(path)


def adapter_facts(source: str, variant: str | None = None) -> dict[str, Any]:
    """Everything that an adapter's file tells about it; of a file with several, about each.

    Raises:
        CheckpointError: the file cannot be read safely, or holds no adapter that imprompt knows.
    """
    from imprompt.adapter.checkpoint import parts_of, read_contents
    from imprompt.core.files import sha256_file

    parts = parts_of(source)
    contents = [read_contents(source, part=part, variant=variant) for part in parts or (None,)]
    path = contents[0].path
    file = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    if not parts:
        return file | contents_facts(contents[0])
    return file | {f"part_{part}": contents_facts(each) for part, each in zip(parts, contents, strict=True)}


def contents_facts(contents: "Contents") -> dict[str, Any]:
    """What one adapter is, needs and fits."""
    from imprompt.adapter.checkpoint.identify import BY_SPEC

    spec, recognition = contents.spec, contents.recognition
    declared = recognition.decided_by == BY_SPEC
    return {
        "layout": contents.layout.title,
        "variant": spec.name,
        "identified_by": recognition.decided_by,
        "same_shapes": list(recognition.others),
        "licence": _licence(spec.name),
        "projector": _projector(spec),
        "tokens": spec.num_tokens,
        "token_width": spec.cross_attention_dim,
        "encoder": encoder_facts(spec.features),
        "face_picture": None if spec.face_crop is None else encoder_facts(spec.face_crop),
        "null_image": NULL_IMAGES[spec.null_image],
        "sites": len(spec.site_indices),
        "lora": None if spec.lora is None else f"rank {spec.lora.rank}, in {len(spec.lora.indices)} attentions",
        "parameters": sum(value.numel() for value in contents.tensors.values()),
        "fits": _fits(spec),
        "left_aside": [f"{words} ({count} tensors)" for words, count in contents.aside.items()],
        "cannot_be_known": [] if declared else _unknowns(spec, recognition.others),
    }


def encoder_facts(features: "FeatureSpec") -> dict[str, Any]:
    """Which features of which encoder, and where that is to be had."""
    from imprompt.encoders.known import known_encoder

    known = known_encoder(features.encoder)
    pack = next((name for name in ("buffalo_l", "antelopev2") if name in features.encoder), None)
    facts: dict[str, Any] = {
        "name": features.encoder,
        "layer": features.layer,
        "index": features.index,
        "feature_width": features.width,
        "get_it_from": known.address if known else f"InsightFace's pack {pack!r}" if pack else None,
    }
    if features.layer == "face_embeds":
        facts["length"] = "brought to 1" if features.normalised else "as the network gives it"
    return facts


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
    from imprompt.adapter.spec import projector_kind

    projector = spec.projector
    words = PROJECTORS[projector_kind(projector)]
    return words.format(tokens=projector.num_tokens, depth=getattr(projector, "depth", None))


def _licence(name: str) -> str | None:
    from imprompt.core.published import PUBLISHED_ADAPTERS

    return next((adapter.licence for adapter in PUBLISHED_ADAPTERS if adapter.name == name), None)


def _fits(spec: "AdapterSpec") -> str:
    from imprompt.adapter.families import family_named

    shape = f"{len(spec.site_indices)} attentions of width {spec.cross_attention_dim}"
    return f"{family_named(spec.family).title} and its fine-tunes ({shape})"


def _unknowns(spec: "AdapterSpec", others: tuple[str, ...]) -> list[str]:
    """What other adapters share all keys and shapes with this one."""
    from imprompt.adapter.spec import FacePlusSpec, MLPSpec, NormedKVSpec

    unknowns = [UNKNOWN_PICTURES]
    if others:
        unknowns.append(f"whether it is one of {', '.join(others)}: the same network, trained or used in another way")
    match spec.projector:
        case MLPSpec():
            unknowns.append("whether no picture means zero pixels or zero features; published files mean pixels")
        case FacePlusSpec():
            unknowns.append("whether it is version 1 or 2: whether what is read is added to the identity (shortcut)")
    if spec.features.layer == "face_embeds":
        unknowns.append("whether face embeddings have length 1")
    if isinstance(spec.key_values, NormedKVSpec):
        unknowns.append("whether values are normalised as keys are; its authors' own code leaves them as they are")
    unknowns.append(UNKNOWN_ENCODER)
    return unknowns
