"""`imprompt doctor`: whether everything is in place, and whether an adapter, a base and an encoder belong together."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from imprompt.cli.words import as_options
from imprompt.core.errors import ImpromptError

if TYPE_CHECKING:
    from imprompt.adapter.spec import AdapterSpec, FeatureSpec

State = Literal["ok", "note", "wrong"]
COLOURS = {"ok": "green", "note": "yellow", "wrong": "bold red"}

OPTIONAL = {
    "accelerate": "loads large bases with less memory",
    "peft": "loads LoRA into a base",
    "onnxruntime": "runs face networks: pip install 'imprompt[face]'",
}


@dataclass(frozen=True)
class Finding:
    """One line of the answer.

    Attributes:
        check: what was looked at.
        state: how it is; "wrong" makes the command fail.
        found: what was found, in a sentence.
        remedy: what to do, where there is something to do.
    """

    check: str
    state: State
    found: str
    remedy: str | None = None


def doctor(
    adapter: Annotated[str | None, typer.Option(help="An adapter's file, folder or hub name.")] = None,
    base: Annotated[str | None, typer.Option(help="A base to hold it against: a diffusers folder or hub name.")] = None,
    encoder: Annotated[str | None, typer.Option(help="An image encoder to hold it against: a folder.")] = None,
    faces: Annotated[
        str | None, typer.Option(help="Folder of a face detector and embedder (ONNX), for adapters that read faces.")
    ] = None,
    part: Annotated[str | None, typer.Option(help="Which adapter, where a file holds several: content, style.")] = None,
    variant: Annotated[str | None, typer.Option(help="What the adapter is, where its tensors do not tell.")] = None,
    lora: Annotated[str | None, typer.Option(help="A LoRA file that belongs to the adapter.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check the installation, devices and encoders, and whether an adapter, a base and an encoder belong together.

    Exit status 1 if something is wrong. Nothing is downloaded but what --adapter, --base and --encoder name on the hub,
    of bases and encoders their configurations alone.

    Examples:

    imprompt doctor

    imprompt doctor --adapter ip-adapter-plus_sd15.safetensors --base ./sd15 --encoder ./image_encoder

    imprompt doctor --adapter ip-adapter-faceid-plusv2_sd15 --faces ./buffalo_l
    """
    findings = [*installation(), *devices(), *models()]
    findings += list(together(adapter, base=base, encoder=encoder, faces=faces, part=part, variant=variant, lora=lora))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        print_findings(findings)
    if any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(1)


def print_findings(findings: Iterable[Finding]) -> None:
    """Print one finding a line, the remedy below it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        remedy = f"\n[dim]{escape(finding.remedy)}[/dim]" if finding.remedy else ""
        state = f"[{COLOURS[finding.state]}]{finding.state}[/]"
        table.add_row(escape(finding.check), state, escape(finding.found) + remedy)
    console = Console(highlight=False)
    console.width = max(console.width, 80)
    console.print(table)


# What is installed ---------------------------------------------------------------------------------------------------


def installation() -> Iterator[Finding]:
    """Python, and every package at the version that imprompt asks for."""
    from importlib.metadata import PackageNotFoundError, requires, version

    yield Finding("python", "ok", f"{sys.version.split()[0]} at {sys.executable}")
    for requirement in requires("imprompt") or ():
        match = re.fullmatch(r"([\w.-]+)(?:\[\w+\])?>=([\d.]+)", requirement.strip())
        if match is None:  # one of an extra
            continue
        name, wanted = match.groups()
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, "wrong", f"missing; {wanted} or newer is wanted", f"pip install '{name}>={wanted}'")
            continue
        is_enough = _numbers(found) >= _numbers(wanted)
        remedy = None if is_enough else f"pip install '{name}>={wanted}'"
        yield Finding(name, "ok" if is_enough else "wrong", f"{found}; {wanted} or newer is wanted", remedy)
    for name, purpose in OPTIONAL.items():
        try:
            yield Finding(name, "ok", version(name))
        except PackageNotFoundError:
            yield Finding(name, "note", f"not installed, which is fine; it {purpose}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])


def devices() -> Iterator[Finding]:
    """Every device that torch sees, tried with a small sum."""
    import torch

    from imprompt.generation.pipelines import default_device, default_dtype

    names = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    names += ["mps"] if torch.backends.mps.is_available() else []
    for name in names:
        yield _checked(name, lambda name=name: _try_device(name))
    device = default_device()
    dtype = str(default_dtype(device)).removeprefix("torch.")
    note = None if device.type != "cpu" else "pictures of large bases take minutes without an accelerator"
    yield Finding("default", "ok", f"pictures are made on {device} in {dtype}", note)


def _try_device(name: str) -> str:
    import torch

    total = float((torch.ones(64, 64, device=name) @ torch.ones(64, 64, device=name)).sum())
    if total != 64**3:
        raise ImpromptError(f"a sum on {name} gave {total}, expected {64**3}; its driver or memory is broken")
    if not name.startswith("cuda"):
        return f"works, {torch.get_num_threads()} threads" if name == "cpu" else "works"
    properties = torch.cuda.get_device_properties(name)
    free, _ = torch.cuda.mem_get_info(name)
    return f"{properties.name}, {free / 2**30:.1f} of {properties.total_memory / 2**30:.1f} GiB free"


def _checked(check: str, look: Callable[[], str]) -> Finding:
    """A finding of what a function says, or of the error it raises."""
    try:
        return Finding(check, "ok", look())
    except (ImpromptError, RuntimeError, OSError) as error:
        return Finding(check, "wrong", as_options(" ".join(str(error).split())))


# What is here of models ----------------------------------------------------------------------------------------------


def models() -> Iterator[Finding]:
    """The embedded model, and which encoders of published adapters are on this machine."""
    from imprompt.emoji.bundle import ADAPTER_FILES, adapter_file
    from imprompt.encoders.known import KNOWN_ENCODERS

    for name in ADAPTER_FILES:
        yield _checked(f"emoji {name}", lambda name=name: f"the embedded adapter is whole: {adapter_file(name).name}")
    for encoder in KNOWN_ENCODERS:
        if encoder.read_by_published:
            place = _on_this_machine(encoder.repository, encoder.subfolder, encoder.revision)
            found = f"here: {place}" if place else f"not here; it is downloaded from {encoder.address} when wanted"
            yield Finding(encoder.name, "ok" if place else "note", found)


def _on_this_machine(repository: str, subfolder: str | None, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    from imprompt.core.weights import in_models_root

    kept = in_models_root(repository, subfolder or "")
    if kept is not None and (kept / "config.json").is_file():
        return kept
    name = f"{subfolder}/config.json" if subfolder else "config.json"
    cached = try_to_load_from_cache(repository, name, revision=revision)
    return Path(cached).parent if isinstance(cached, str) else None


# Whether they belong together ----------------------------------------------------------------------------------------


def together(
    adapter: str | None,
    *,
    base: str | None = None,
    encoder: str | None = None,
    faces: str | None = None,
    part: str | None = None,
    variant: str | None = None,
    lora: str | None = None,
) -> Iterator[Finding]:
    """An adapter by itself, against a base, and against encoders of pictures and faces."""
    if adapter is None:
        others = {"base": base, "encoder": encoder, "faces": faces, "part": part, "variant": variant, "lora": lora}
        yield from _without_adapter([f"--{name}" for name, value in others.items() if value is not None])
        return
    from imprompt.adapter.checkpoint import read_contents

    try:
        contents = read_contents(adapter, part=part, variant=variant)
    except (ImpromptError, OSError) as error:
        yield Finding("adapter", "wrong", as_options(str(error)))
        return
    spec = contents.spec
    told = contents.recognition.decided_by
    yield Finding("adapter", "ok", f"{spec.name}, {spec.num_tokens} tokens, told by {told}")
    if lora is not None:
        try:
            spec = _with_lora(spec, lora)
        except (ImpromptError, OSError) as error:
            yield Finding("lora", "wrong", as_options(str(error)))
        else:
            yield Finding("lora", "ok", f"{Path(lora).name} changes attentions of the base that {spec.name} is for")
    if base is not None:
        yield _checked("base", lambda: _fit_of(spec, base))
    if faces is not None or spec.features.layer == "face_embeds":
        yield _faces_of(spec, faces)
    if encoder is not None:
        yield _checked("encoder", lambda: _encoder_fit(spec, encoder))
    elif spec.face_crop is not None or spec.features.layer in ("image_embeds", "hidden_states"):
        yield _wanted_encoder(spec)


def _without_adapter(given: list[str]) -> Iterator[Finding]:
    if given:
        found = f"{' and '.join(given)} {'says' if len(given) == 1 else 'say'} something of one"
        yield Finding("adapter", "wrong", found, "give --adapter FILE")


def _with_lora(spec: "AdapterSpec", lora: str) -> "AdapterSpec":
    from imprompt.adapter.checkpoint.lora import load_lora
    from imprompt.core.weights import resolve_file

    return replace(spec, lora=load_lora(resolve_file(lora), spec)[1])


def _faces_of(spec: "AdapterSpec", folder: str | None) -> Finding:
    """Which face network an adapter reads, and whether that of a folder is it."""
    from imprompt.encoders.face import FaceEncoder

    need = spec.features
    if folder is None:
        return Finding("faces", "note", f"it wants {need.encoder}; none is given", "hold one against it with --faces")
    if need.layer != "face_embeds":
        return Finding("faces", "wrong", f"{spec.name} reads no faces", "leave --faces out")
    try:
        embedder = FaceEncoder.from_folder(folder).embedder.spec
    except (ImpromptError, OSError) as error:
        return Finding("faces", "wrong", " ".join(str(error).split()))
    if embedder.width != need.width:
        found = f"{spec.name} wants embeddings of width {need.width} ({need.encoder}); {embedder.name} gives"
        return Finding("faces", "wrong", f"{found} {embedder.width}", f"give the folder of {need.encoder}")
    if embedder.name != need.encoder:
        found = f"{spec.name} was trained on {need.encoder}; {embedder.name} has the same width but may tell faces"
        return Finding("faces", "note", f"{found} otherwise", f"give the folder of {need.encoder}")
    return Finding("faces", "ok", f"{embedder.name}, as {spec.name} wants")


def _wanted_encoder(spec: "AdapterSpec") -> Finding:
    from imprompt.encoders.known import known_encoder

    name = (spec.face_crop or spec.features).encoder
    known = known_encoder(name)
    purpose = " for the aligned face" if spec.face_crop is not None else ""
    found = f"it wants {name}{purpose}; none is given" + (f", and {known.address} would be loaded" if known else "")
    return Finding("encoder", "note", found, "hold one against it with --encoder")


def _fit_of(spec: "AdapterSpec", base: str) -> str:
    """Build the base's denoiser without weights, and attach in thought."""
    import torch

    from imprompt.adapter.adapter import Adapter
    from imprompt.adapter.families import family_named
    from imprompt.adapter.fit import check_fit, sites_of

    host = _empty_denoiser(base)
    family = family_named(spec.family)
    with torch.device("meta"):
        adapter = Adapter(spec)
    check_fit(adapter, sites_of(family, host), host)
    return f"{type(host).__name__} has all {len(spec.site_indices)} places that {spec.name} wants ({family.title})"


def _empty_denoiser(base: str) -> Any:
    import diffusers
    import torch
    from diffusers.models.modeling_utils import ModelMixin

    from imprompt.generation.quiet import quiet_libraries

    quiet_libraries()
    config = _denoiser_config(base)
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if not (isinstance(kind, type) and issubclass(kind, ModelMixin)):
        raise ImpromptError(f"{base} has a denoiser of class {config.get('_class_name')!r}, which diffusers has not")
    with torch.device("meta"):
        return kind.from_config(config)  # pyright: ignore[reportAttributeAccessIssue]


def _denoiser_config(base: str) -> dict[str, Any]:
    from imprompt.adapter.fit import DENOISERS
    from imprompt.core.weights import resolve_folder
    from imprompt.emoji.bundle import bundle_folder

    patterns = [*(f"{name}/config.json" for name in DENOISERS), "config.json"]
    folder = bundle_folder() if base == "emoji" else resolve_folder(base, patterns=patterns)
    path = next((folder / name for name in patterns if (folder / name).is_file()), None)
    if path is None:
        raise ImpromptError(f"{base} holds no denoiser; expected one of {', '.join(patterns)} in it")
    return _read_json(path)


def _encoder_fit(spec: "AdapterSpec", encoder: str) -> str:
    from imprompt.core.weights import resolve_folder
    from imprompt.encoders.kinds import kind_of_type

    need = spec.face_crop or spec.features
    if need.layer not in ("image_embeds", "hidden_states"):
        raise ImpromptError(f"{spec.name} reads {need.encoder}, which is no image encoder; leave --encoder out")
    path = resolve_folder(encoder, patterns=["config.json"]) / "config.json"
    if not path.is_file():
        raise ImpromptError(f"{encoder} holds no config.json, and so no image encoder; give the folder of one")
    config = _read_json(path)
    config = {**config, **(config.get("vision_config") or {})}
    kind = kind_of_type(str(config.get("model_type")))
    if kind is None:
        raise ImpromptError(
            f"{encoder} is a {config.get('model_type')!r}, which is no image encoder that imprompt knows"
        )
    width = config.get("hidden_size")
    if need.layer == "image_embeds" and kind.pooled == "image_embeds":
        width = config.get("projection_dim", 512)
    return _compare_widths(spec, need, width, encoder)


def _compare_widths(spec: "AdapterSpec", need: "FeatureSpec", width: Any, encoder: str) -> str:
    from imprompt.encoders.known import encoders_of_width, known_encoder

    if width == need.width:
        return f"{encoder} gives {need.layer} of width {width}, as {spec.name} wants"
    layer: Any = need.layer
    others = encoders_of_width(width, layer) if isinstance(width, int) else ()
    looks = f", which is {others[0].name}" if others else ""
    known = known_encoder(need.encoder)
    load = f"{need.encoder}, {known.address}" if known else f"another ({need.encoder})"
    raise ImpromptError(
        f"{spec.name} wants {need.layer} of width {need.width} ({need.encoder}); {encoder} gives {width}{looks}. "
        f"Load {load}."
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ImpromptError(f"{path} is no JSON ({error}); get it again") from error
    if not isinstance(content, dict):
        raise ImpromptError(f"{path} holds no configuration; get it again")
    return content
