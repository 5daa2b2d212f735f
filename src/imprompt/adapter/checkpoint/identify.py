"""Which adapter is this? Answered from keys and shapes; what no tensor tells, by whoever says it most reliably.

That is, in this order: the caller, the size of the file, which for a published one is known to the byte, and its name.
(The spec in a file's metadata comes before all of these and needs none of them.)
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from imprompt.adapter.checkpoint.paths import family_of_shape, missing_sites
from imprompt.adapter.checkpoint.shapes import Shapes, Sites, normed, read_lora, read_projector, read_sites
from imprompt.adapter.checkpoint.variants import Variant, features_of, variant_names, variants_of
from imprompt.adapter.spec import (
    AdapterSpec,
    FacePlusSpec,
    LinearKVSpec,
    NullImage,
    PerceiverKVSpec,
    PooledMLPSpec,
    ProjectorSpec,
    TimedKVSpec,
    TokensSpec,
    check_spec,
)
from imprompt.core.errors import CheckpointError, UnknownFormat
from imprompt.core.published import PUBLISHED_ADAPTERS

logger = logging.getLogger(__name__)

BY_SHAPES = "the keys and shapes of its tensors"
BY_SPEC = "the spec in its metadata"
BY_CALLER = "what was asked for"
BY_SIZE = "its size, which is that of the published file"
BY_NAME = "its name"

NULL_IMAGES: dict[str, NullImage] = {
    "flux-xlabs": "black_pixels",
    "flux-instantx": "none",
    "sd3-instantx": "zero_features",
}
UNNAMED = "ip-adapter"


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What is known of a file beside its tensors.

    Attributes:
        variant: what the caller says it is.
        shortcut: what the caller says of FaceID-Plus: version 2 (True) or 1 (False).
        num_bytes: size of the file, where it is as published.
        name: names of the file and of the folders that it lies in.
        layout: the format that it was found in.
        part: which of several adapters in it.
        tokens: the tokens of a projector that was left aside.
    """

    variant: str | None = None
    shortcut: bool | None = None
    num_bytes: int | None = None
    name: str = ""
    layout: str = "native"
    part: str | None = None
    tokens: TokensSpec | None = None


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """An adapter, and how sure that is.

    Attributes:
        spec: what it is.
        decided_by: what told it from others of the same shapes.
        others: published adapters with the same keys and shapes.
    """

    spec: AdapterSpec
    decided_by: str
    others: tuple[str, ...] = ()


def identify(shapes: Shapes, hints: Hints | None = None) -> AdapterSpec:
    """The spec of an adapter whose tensors have these keys and shapes, in the official flat layout.

    Raises:
        UnknownFormat: no adapter of a kind that imprompt knows.
        CheckpointError: an adapter with parts missing.
    """
    return recognise(shapes, hints).spec


def recognise(shapes: Shapes, hints: Hints | None = None) -> Recognition:
    """As `identify`, and what decided; see there."""
    hints = hints or Hints()
    try:
        spec = _spec(shapes, hints)
        chosen, decided_by, others = _choose(variants_of(spec.family, spec.projector), spec, hints)
        spec = _as_variant(spec, chosen, hints)
        check_spec(spec)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"an adapter whose tensors have shapes that no adapter has ({error}); get the file again"
        ) from error
    return Recognition(spec=spec, decided_by=decided_by, others=others)


def _spec(shapes: Shapes, hints: Hints) -> AdapterSpec:
    """What shapes alone tell."""
    sites = read_sites(shapes)
    projector: ProjectorSpec = hints.tokens or read_projector(shapes)
    family = _family(sites, projector, hints)
    sites = normed(sites) if family == "flux-instantx" else sites
    if projector.width != sites.token_width and family != "kolors-text":
        raise CheckpointError(
            f"the projector makes tokens of width {projector.width}, but the keys and values read {sites.token_width}; "
            "the file joins halves of two adapters"
        )
    features, crop = features_of(projector)
    is_pooled = features.layer != "hidden_states" or hints.part in ("content", "style")
    return AdapterSpec(
        name=UNNAMED,
        family=family,
        projector=projector,
        features=features,
        null_image=NULL_IMAGES.get(family, "zero_features" if is_pooled else "zero_pixels"),
        cross_attention_dim=sites.token_width,
        site_indices=tuple(sites.widths),
        site_widths=tuple(sites.widths.values()),
        key_values=sites.key_values,
        face_crop=crop,
        null_crop="zero_features" if family == "kolors-text" else "zero_pixels",
        lora=read_lora(shapes),
        is_partial=hints.part in ("content", "style"),
    )


def _family(sites: Sites, projector: ProjectorSpec, hints: Hints) -> str:
    match sites.key_values:
        case PerceiverKVSpec():
            return "flux-pulid"
        case TimedKVSpec():
            return "sd3-instantx"
        case LinearKVSpec(bias=True):
            return "flux-xlabs"
    if sites.is_counted:
        if isinstance(projector, PooledMLPSpec):
            return "flux-instantx"
        if {*sites.widths.values()} == {3072}:
            return "flux"
        raise UnknownFormat(
            f"an adapter for {len(sites.widths)} blocks of a transformer ('ip_adapter.0.to_k_ip.weight', ...), which "
            "shapes alone do not name; save it with imprompt, which writes the spec into the file"
        )
    if hints.part in ("content", "style"):
        return "sdxl"
    missing = missing_sites(sites.token_width, sites.widths)
    if missing:
        raise CheckpointError(missing_message(missing, len(sites.widths) + len(missing)))
    family = family_of_shape(sites.token_width, sites.widths)
    is_wide = isinstance(projector, FacePlusSpec) and projector.width != sites.token_width
    return "kolors-text" if is_wide and (family == "sdxl" or hints.layout == "adapter_modules") else family


def missing_message(missing: Mapping[int, str], number: int) -> str:
    """What a file lacks, by number and by name, and what to do."""
    named = [f"{index} ({path})" for index, path in list(missing.items())[:3]]
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return (
        f"lacks the keys and values of {len(missing)} of {number} attentions: "
        f"'ip_adapter.{min(missing)}.to_k_ip.weight' and what else belongs to {', '.join(named)}{more}; "
        "get the whole file, or for a training checkpoint the one "
        "that was saved with safe_serialization=False"
    )


def _choose(
    candidates: tuple[Variant, ...], spec: AdapterSpec, hints: Hints
) -> tuple[Variant | None, str, tuple[str, ...]]:
    """The published adapter that it is, what told so, and the others that it might be."""
    if hints.variant is not None:
        chosen, decided_by = _asked(candidates, hints.variant, spec), BY_CALLER
    elif len(candidates) < 2:
        return (candidates[0] if candidates else None), BY_SHAPES, ()
    else:
        of_size = [each for each in candidates if hints.num_bytes in _sizes(each.name)]
        of_name = [each for each in candidates if each.hinted_by(hints.name)]
        chosen, decided_by = next(
            ((found[0], word) for found, word in ((of_size, BY_SIZE), (of_name, BY_NAME)) if len(found) == 1),
            (candidates[0], BY_SHAPES),
        )
    others = tuple(each.name for each in candidates if each is not chosen)
    if any(each.changes != chosen.changes for each in candidates):
        level = logging.WARNING if decided_by == BY_SHAPES and hints.shortcut is None else logging.INFO
        logger.log(
            level,
            "taken for %r, told by %s; %s %s the same keys and shapes: pass variant= to say which it is",
            chosen.name,
            decided_by,
            " and ".join(map(repr, others)),
            "has" if len(others) == 1 else "have",
        )
    return chosen, decided_by, others


def check_asked(spec: AdapterSpec, hints: Hints) -> None:
    """Refuse what a caller says of a file that says itself what it is, where that is something else.

    Raises:
        CheckpointError: another variant, or another version of FaceID-Plus, than the spec in its metadata tells.
    """
    if hints.variant not in (None, spec.name):
        _check_name(hints.variant)
        raise CheckpointError(f"asked for {hints.variant!r}, but {BY_SPEC} says {spec.name!r}; leave variant= out")
    if hints.shortcut not in (None, getattr(spec.projector, "shortcut", None)):
        raise CheckpointError(f"shortcut={hints.shortcut} is not what {BY_SPEC} says; leave it out")


def _check_name(name: str) -> None:
    names = variant_names()
    if name not in names:
        near = get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
        raise CheckpointError(f"no published adapter is called {name!r}; near to it are {', '.join(near)}")


def _asked(candidates: tuple[Variant, ...], name: str, spec: AdapterSpec) -> Variant:
    found = next((each for each in candidates if each.name == name), None)
    if found is not None:
        return found
    _check_name(name)
    shared = ", ".join(each.name for each in candidates) or f"no published one ({spec.num_tokens} tokens)"
    raise CheckpointError(f"asked for {name!r}, but the tensors have the shapes of {shared}; ask for that, or for none")


def _sizes(name: str) -> list[int]:
    """The sizes of the files that an adapter was published in."""
    files = (file for adapter in PUBLISHED_ADAPTERS if adapter.name == name for file in adapter.files)
    return [file.num_bytes for file in files if file.num_bytes is not None]


def _as_variant(spec: AdapterSpec, chosen: Variant | None, hints: Hints) -> AdapterSpec:
    changes: dict[str, Any] = dict(chosen.changes) if chosen is not None else {}
    shortcut = changes.pop("shortcut", None) if hints.shortcut is None else hints.shortcut
    changes.pop("shortcut", None)
    if shortcut is not None:
        if not isinstance(spec.projector, FacePlusSpec):
            raise CheckpointError("shortcut= is for FaceID-Plus alone, which this is not; leave it out")
        spec = replace(spec, projector=replace(spec.projector, shortcut=shortcut))
    name, family = (spec.name, spec.family) if chosen is None else (chosen.name, chosen.family)
    return replace(spec, name=name, family=family, features=replace(spec.features, **changes))
