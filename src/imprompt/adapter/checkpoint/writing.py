"""An adapter's tensors under the names of another layout: the tables of `formats` read the other way."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from imprompt.adapter.checkpoint.formats import (
    ADAPTER_MODULES,
    CSGO,
    CSGO_ASIDE,
    CSGO_BLOCKS,
    DIFFUSERS,
    DIFFUSERS_FLUX,
    DIFFUSERS_SD3,
    NATIVE,
    PROJECTORS,
    PULID_FLUX,
    PULID_SDXL,
    XLABS,
    Format,
)
from imprompt.adapter.checkpoint.paths import attention_paths
from imprompt.adapter.checkpoint.templates import to_theirs
from imprompt.adapter.families.unet import numbered
from imprompt.adapter.spec import AdapterSpec, PerceiverKVSpec, TokensSpec, projector_kind
from imprompt.core.errors import CheckpointError

# What `--to` may say.
TARGETS = {
    "native": "imprompt's own: the official names, for every variant",
    "official": "as its authors publish it",
    "diffusers": "the state of a denoiser of diffusers that has it loaded",
    "comfy": "what ComfyUI's nodes read: as published, flat",
}

_OWN_LAYOUTS = {"flux-xlabs": XLABS, "kolors-text": ADAPTER_MODULES}
_IN_DIFFUSERS = {
    **dict.fromkeys(("sd1", "sd2", "sdxl", "kolors", "unet"), DIFFUSERS),
    "flux-xlabs": DIFFUSERS_FLUX,
    "sd3-instantx": DIFFUSERS_SD3,
}


def arrange(
    tensors: Mapping[str, Tensor], spec: AdapterSpec, target: str, host: nn.Module | None = None
) -> dict[str, Tensor]:
    """An adapter's tensors in a layout.

    Args:
        tensors: the adapter's state.
        spec: what it is.
        target: one of `TARGETS`.
        host: the UNet, where its attentions' names are wanted and it is of no published base.

    Raises:
        CheckpointError: there is no such layout, or this adapter cannot be written in it.
    """
    layout = layout_for(spec, target)
    if not layout.renames_projector:
        theirs, unknown = to_theirs(layout.rows, tensors)
    else:
        paths = attention_paths(spec.family) if host is None else numbered(host)
        if layout is DIFFUSERS and not {*spec.site_indices} <= {*paths}:
            raise CheckpointError(
                f"{spec.name!r} is for a UNet of its own shape, whose attentions' names no adapter holds; pass that "
                "UNet as host=, or write it as 'native'"
            )
        theirs, unknown = to_theirs(layout.rows, _with_their_projector(tensors, spec), paths)
    if unknown:
        raise CheckpointError(
            f"{spec.name!r} has {unknown[0]!r}, which {target!r} has no name for; write it as 'native'"
        )
    return theirs


def layout_for(spec: AdapterSpec, target: str) -> Format:
    """The table that a target means for an adapter.

    Raises:
        CheckpointError: there is none.
    """
    if target not in TARGETS:
        raise CheckpointError(f"no layout {target!r}; expected one of {', '.join(TARGETS)}")
    if target == "native":
        return NATIVE
    if spec.is_partial:
        raise CheckpointError(
            f"{spec.name!r} is one of two adapters that their authors publish in one file; write it as 'native', or "
            "both together with imprompt.adapter.checkpoint.save_parts"
        )
    if isinstance(spec.projector, TokensSpec):
        if target == "official":
            return PULID_FLUX if isinstance(spec.key_values, PerceiverKVSpec) else PULID_SDXL
        raise CheckpointError(
            f"{spec.name!r} takes tokens of a face encoder, which {target!r} has no place for; write it as 'official' "
            "or as 'native'"
        )
    if target != "diffusers":
        return _OWN_LAYOUTS.get(spec.family, NATIVE)
    if spec.family not in _IN_DIFFUSERS:
        raise CheckpointError(f"diffusers has no adapter of the family {spec.family!r}; write it as 'official'")
    return _IN_DIFFUSERS[spec.family]


def arrange_parts(
    parts: Sequence[tuple[AdapterSpec, Mapping[str, Tensor]]],
) -> tuple[dict[str, Tensor], dict[str, AdapterSpec]]:
    """The two adapters of CSGO as they are published, in one layout, and their specs by their parts' names.

    Raises:
        CheckpointError: they are not two such.
    """
    theirs: dict[str, Tensor] = {}
    specs: dict[str, AdapterSpec] = {}
    for spec, tensors in parts:
        part = _part_of(spec)
        renamed, unknown = to_theirs(CSGO[part].rows, tensors)
        if unknown or part in specs:
            problem = f"{spec.name!r} has {unknown[0]!r}" if unknown else f"both act in {CSGO_BLOCKS[part]!r}"
            raise CheckpointError(f"these are no two parts of CSGO: {problem}; write each as 'native'")
        specs[part] = spec
        theirs |= renamed
    if specs.keys() != CSGO.keys():
        raise CheckpointError(f"expected two adapters, CSGO's content and its style; got {len(parts)}")
    return theirs, specs


def check_beside(beside: Mapping[str, Tensor], spec: AdapterSpec, target: str = "official") -> None:
    """Refuse what a layout has no place for beside an adapter.

    Raises:
        CheckpointError: it would be taken for a part of the adapter when the file is read.
    """
    aside = (*CSGO_ASIDE, "ip_adapter.") if spec.is_partial else tuple(layout_for(spec, target).aside)
    foreign = next((key for key in beside if not key.startswith(aside)), None)
    if foreign is not None:
        raise CheckpointError(f"{target!r} has no place for {foreign[:120]!r} beside {spec.name!r}; leave it out")


def _part_of(spec: AdapterSpec) -> str:
    """Which part of CSGO an adapter is: that of the blocks that it acts in."""
    paths = attention_paths("sdxl")
    blocks = {paths.get(index, "?").partition(".")[0] for index in spec.site_indices}
    part = next((name for name, block in CSGO_BLOCKS.items() if blocks == {block}), None)
    if spec.family != "sdxl" or part is None:
        raise CheckpointError(
            f"{spec.name!r} is no part of CSGO, whose content acts in 'down_blocks' and whose style in 'up_blocks' of "
            f"Stable Diffusion XL; it acts in {', '.join(sorted(blocks))} of {spec.family}; write it as 'native'"
        )
    return part


def _with_their_projector(tensors: Mapping[str, Tensor], spec: AdapterSpec) -> dict[str, Tensor]:
    projector = {key[len("image_proj.") :]: value for key, value in tensors.items() if key.startswith("image_proj.")}
    theirs, unknown = to_theirs(PROJECTORS[projector_kind(spec.projector)], projector)
    theirs |= {key: projector[key] for key in unknown}
    rest = {key: value for key, value in tensors.items() if not key.startswith("image_proj.")}
    return {**{f"image_proj.{key}": value for key, value in theirs.items()}, **rest}
