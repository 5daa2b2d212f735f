"""A checkpoint in any known layout, as an adapter's own tensors and its spec."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from imprompt.adapter.checkpoint import files
from imprompt.adapter.checkpoint.formats import (
    CSGO,
    CSGO_ASIDE,
    CSGO_BLOCKS,
    FORMATS,
    NATIVE,
    PROJECTORS,
    PULID,
    WRAPPERS,
    Format,
    diffusers_flux,
    diffusers_unet,
    marked,
    projector_kind,
)
from imprompt.adapter.checkpoint.identify import BY_SPEC, Hints, Recognition, check_asked, missing_message, recognise
from imprompt.adapter.checkpoint.paths import PATH, attention_paths, number_paths
from imprompt.adapter.checkpoint.source import checkpoint_files
from imprompt.adapter.checkpoint.templates import to_ours
from imprompt.adapter.spec import AdapterSpec, TokensSpec
from imprompt.core.errors import CheckpointError

SPEC_KEY = "imprompt_spec"  # in safetensors metadata; diffusers and ComfyUI ignore it

MAX_MESSAGE = 600  # letters of an error

_BARE = (  # beginnings that a module's names lose when it is saved on its own
    (re.compile(r"\d+\.to_k_ip\.weight"), "adapter_modules."),
    (re.compile(rf"{PATH}\.processor\.to_k_ip\.weight"), "unet."),
    (re.compile(r"(?:latents|proj\.weight|proj\.0\.weight)"), "image_proj_model."),
)


def part_key(part: str | None) -> str:
    """Where in the metadata the spec of one of several adapters is."""
    return f"{SPEC_KEY}.{part}"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What is in a file.

    Attributes:
        path: the file, or the first of several.
        layout: how its tensors are named there.
        tensors: by the adapter's own names.
        metadata: of the file.
        recognition: what adapter it is, and what told so.
        aside: what else is in it, in words, and how many tensors that is.
    """

    path: Path
    layout: Format
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    recognition: Recognition
    aside: dict[str, int] = field(default_factory=dict)

    @property
    def spec(self) -> AdapterSpec:
        """What adapter it is."""
        return self.recognition.spec


@dataclass(frozen=True, kw_only=True)
class _Raw:
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    paths: tuple[Path, ...]


def read_contents(
    source: str | Path,
    filename: str | None = None,
    *,
    part: str | None = None,
    variant: str | None = None,
    shortcut: bool | None = None,
    with_weights: bool = False,
) -> Contents:
    """Read an adapter's tensors, or with `with_weights=False` their shapes alone (on the meta device).

    Args:
        source: a file, a folder, or a place on the hub.
        filename: a file or folder inside it.
        part: which adapter, where a file holds several.
        variant: the published adapter that it is, where tensors do not tell.
        shortcut: whether FaceID-Plus is version 2.
        with_weights: read the numbers too.

    Raises:
        CheckpointError: it cannot be read safely, holds no adapter that imprompt knows, or lacks layers.
    """
    paths = checkpoint_files(source, filename)
    try:
        raw = _read(paths, [files.read_header(path) for path in paths])
        hints = Hints(variant=variant, shortcut=shortcut, part=part, name="/".join(paths[0].parts[-4:]))
        contents = _understand(raw, hints)
        if not with_weights:
            return contents
        mapped = bool(contents.aside)
        whole = _read(paths, [(files.read_tensors(path, mapped=mapped), {}) for path in paths])
        tensors, _ = _convert(whole, contents.layout)
        wanted = {key: value for key, value in tensors.items() if key in contents.tensors}
    except CheckpointError as error:
        raise type(error)(_sentence(paths[0], str(error))) from error
    files.check_finite(paths[0], wanted)
    return replace(contents, tensors=wanted)


def _sentence(path: Path, text: str) -> str:
    """What is wrong, with the file's name, and in a length that a file cannot drive up."""
    text = text if text.startswith(path.name) else f"{path.name}: {text}"
    text = " ".join(text.split())
    half = MAX_MESSAGE // 2
    return text if len(text) <= MAX_MESSAGE else f"{text[:half]} ... {text[-half:]}"


def parts_of(source: str | Path, filename: str | None = None) -> tuple[str, ...]:
    """The names of the adapters in a file that holds several; none if it holds one."""
    paths = checkpoint_files(source, filename)
    return _parts(_read(paths, [files.read_header(path) for path in paths]).tensors)


def read_beside(source: str | Path, filename: str | None = None) -> dict[str, Tensor]:
    """What a file of CSGO or PuLID holds beside its adapters, by its own keys: a face encoder, a ControlNet's part.

    Of files in other layouts it is nothing: the base of a training run is no part of what is published.

    Raises:
        CheckpointError: it cannot be read safely.
    """
    paths = checkpoint_files(source, filename)
    keys = _read(paths, [files.read_header(path) for path in paths]).tensors
    wanted = _keys_beside(keys)
    if not wanted:
        return {}
    whole = _read(paths, [(files.read_tensors(path, mapped=True), {}) for path in paths]).tensors
    beside = {key: whole[key] for key in wanted}
    files.check_finite(paths[0], beside)
    return beside


def _keys_beside(keys: Mapping[str, Tensor]) -> list[str]:
    if marked(CSGO["content"], keys):
        taken = {key for blocks in CSGO_BLOCKS.values() for key in _acting_in(blocks, dict(keys))}
        return [key for key in keys if key not in taken or key.startswith(tuple(CSGO_ASIDE))]
    starts = next((tuple(each.aside) for each in PULID if marked(each, keys)), ())
    return [key for key in keys if key.startswith(starts)] if starts else []


def _read(paths: tuple[Path, ...], parts: Sequence[tuple[dict[str, Tensor], dict[str, str]]]) -> _Raw:
    """Several files as one: names that were saved without their module's get it back, and wrappers' names go."""
    tensors: dict[str, Tensor] = {}
    for content, _ in parts:
        content = _unwrap(content)
        bare = _bare(content) if len(parts) > 1 else ""
        for key, value in content.items():
            tensors.setdefault(f"{bare}{key}", value)
    return _Raw(tensors=tensors, metadata=parts[0][1], paths=paths)


def _unwrap(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if any(wrapper in key for key in tensors):
            if wrapper.startswith("_"):
                tensors = {key.replace(wrapper, ""): value for key, value in tensors.items()}
            elif all(key.startswith(wrapper) for key in tensors):
                tensors = {key.removeprefix(wrapper): value for key, value in tensors.items()}
    return dict(tensors)


def _bare(tensors: Mapping[str, Tensor]) -> str:
    return next((prefix for pattern, prefix in _BARE if any(pattern.fullmatch(key) for key in tensors)), "")


def _understand(raw: _Raw, hints: Hints) -> Contents:
    """Layout, tensors by our names, and spec."""
    layout = _layout(raw.tensors, hints.part)
    tensors, aside = _convert(raw, layout)
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    spec_key = part_key(hints.part) if layout in CSGO.values() else SPEC_KEY
    if spec_key in raw.metadata:
        spec = _declared(raw.metadata[spec_key])
        _check_spec_against(spec, shapes)
        check_asked(spec, hints)
        recognition = Recognition(spec=spec, decided_by=BY_SPEC)
    else:
        num_bytes = raw.paths[0].stat().st_size if len(raw.paths) == 1 else None
        part = hints.part if layout.name == "csgo" else None
        hints = replace(hints, num_bytes=num_bytes, layout=layout.name, part=part, tokens=tokens_aside(raw.tensors))
        recognition = recognise(shapes, hints)
    return Contents(
        path=raw.paths[0],
        layout=layout,
        tensors=tensors,
        metadata=raw.metadata,
        recognition=recognition,
        aside=aside,
    )


def _declared(text: str) -> AdapterSpec:
    try:
        return AdapterSpec.from_json(text)
    except (ArithmeticError, AttributeError, LookupError, RecursionError) as error:
        raise CheckpointError(
            f"the spec in the file's metadata is none ({error!r}); remove the metadata key {SPEC_KEY!r} to have the "
            "variant identified from its tensors"
        ) from error


def _check_spec_against(spec: AdapterSpec, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a spec of more layers than the file has before they are built; lost ones by their names."""
    sites = {int(found[1]) for key in shapes if (found := re.match(r"ip_adapter\.(\d{1,7})\.to_kv?", key))}
    paths = attention_paths(spec.family)
    missing = {index: paths.get(index, f"attention {index}") for index in spec.site_indices if index not in sites}
    if missing:
        raise CheckpointError(missing_message(missing, len(spec.site_indices)))
    lora = 0 if spec.lora is None else len(spec.lora.indices)
    if max(lora, getattr(spec.projector, "depth", 0)) > len(shapes):
        raise CheckpointError(f"its spec tells of more layers than its {len(shapes)} tensors make; get the file again")


def _parts(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    if marked(CSGO["content"], tensors):
        return tuple(CSGO)
    found = (re.match(r"encoder_hid_proj\.image_projection_layers\.(\d{1,4})\.", key) for key in tensors)
    numbers = sorted({int(match[1]) for match in found if match})
    return tuple(map(str, numbers)) if len(numbers) > 1 else ()


def _layout(tensors: Mapping[str, Tensor], part: str | None) -> Format:
    parts = _parts(tensors)
    if parts and part not in parts:
        said = "" if part is None else f"; got part={part!r}"
        raise CheckpointError(
            f"holds {len(parts)} adapters, one under {' and one under '.join(map(repr, parts))}; pass "
            f"part={parts[0]!r} or another of these, and load one after the other{said}"
        )
    if part is not None and not parts:
        raise CheckpointError(f"holds one adapter, and so no part={part!r}; leave it out")
    if part in CSGO:
        return CSGO[part]
    found = [each for each in FORMATS if marked(each, tensors)]
    if part is not None:
        return next(each for each in (diffusers_flux(int(part)), diffusers_unet(int(part))) if marked(each, tensors))
    return found[0] if found else NATIVE


def _convert(raw: _Raw, layout: Format) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Tensors by our names, and what is left aside."""
    numbers = number_paths(_paths(raw.tensors))
    tensors, unknown = to_ours(layout.rows, raw.tensors, numbers)
    aside: dict[str, int] = {}
    for key in unknown:
        words = next((words for start, words in layout.aside.items() if key.startswith(start)), None)
        if words is None:
            tensors[key] = raw.tensors[key]  # nobody's: refused by its name when the adapter is put together
        else:
            aside[words] = aside.get(words, 0) + 1
    if layout.renames_projector:
        tensors = _with_own_projector(tensors)
    if layout in CSGO.values():
        part = next(name for name, each in CSGO.items() if each is layout)
        tensors = _acting_in(CSGO_BLOCKS[part], tensors)
    return tensors, aside


def _paths(keys: Mapping[str, object]) -> list[str]:
    """The attentions that keys name, those without an adapter included, so that lost layers leave gaps."""
    found = (re.match(rf"(?:unet\.)?({PATH})\.", key) for key in keys)
    return [match[1] for match in found if match]


def _with_own_projector(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    theirs = {key[len("image_proj.") :]: value for key, value in tensors.items() if key.startswith("image_proj.")}
    kind = projector_kind({key: tuple(value.shape) for key, value in theirs.items()})
    if kind is None:
        return tensors
    ours, unknown = to_ours(PROJECTORS[kind], theirs)
    rest = {key: value for key, value in tensors.items() if not key.startswith("image_proj.")}
    ours |= {key: theirs[key] for key in unknown}
    return {**{f"image_proj.{key}": value for key, value in ours.items()}, **rest}


def _acting_in(blocks: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The keys and values of some blocks alone; those of the others belong to the other part."""
    paths = attention_paths("sdxl")
    found = {key: re.match(r"ip_adapter\.(\d+)\.", key) for key in tensors}
    return {
        key: value
        for key, value in tensors.items()
        if (match := found[key]) is None or paths.get(int(match[1]), blocks).startswith(blocks)
    }


def tokens_aside(tensors: Mapping[str, Tensor]) -> TokensSpec | None:
    """The tokens that PuLID's face encoder makes, which is left aside."""
    for prefix in ("id_adapter.", "pulid_encoder."):
        latents, out = tensors.get(f"{prefix}latents"), tensors.get(f"{prefix}proj_out")
        if latents is not None and out is not None and latents.ndim == 3 and out.ndim == 2:
            return TokensSpec(num_tokens=latents.shape[1], width=out.shape[1])
    body, last = tensors.get("id_adapter.body.6.weight"), tensors.get("id_adapter.mapping_0.6.weight")
    if body is None or last is None or not body.ndim or not last.ndim or not last.shape[0]:
        return None
    mappings = sum(re.fullmatch(r"id_adapter\.mapping_\d+\.6\.weight", key) is not None for key in tensors)
    return TokensSpec(num_tokens=body.shape[0] // last.shape[0] + mappings, width=last.shape[0])
