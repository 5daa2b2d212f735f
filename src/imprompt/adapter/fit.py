"""Whether an adapter fits a host, said before a matrix does it less kindly."""

from typing import Any

from torch import nn

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.conditioning import Branch
from imprompt.adapter.families import Family, family_named, family_of
from imprompt.adapter.sites import Site
from imprompt.core.errors import ConditioningError, HostMismatch

# Where pipelines keep what they denoise with; `transformer_2` is Wan 2.2's for low noise.
DENOISERS = ("unet", "transformer", "transformer_2", "prior", "decoder")


def pipe_and_host(target: Any, denoiser: str | None = None) -> tuple[Any, nn.Module]:
    """A pipeline, or None, and its denoiser as it was before anybody compiled it.

    Args:
        target: a pipeline, or a denoiser.
        denoiser: the pipeline's attribute, where it has several; by default the first that there is.

    Raises:
        HostMismatch: there is none.
    """
    parts = (getattr(target, name, None) for name in (DENOISERS if denoiser is None else (denoiser,)))
    host = target if isinstance(target, nn.Module) else next((part for part in parts if part is not None), None)
    if not isinstance(host, nn.Module):
        raise HostMismatch(
            f"{type(target).__name__} has no denoiser to attach to; pass a diffusers pipeline with one of "
            f"{', '.join(DENOISERS)}, or the denoiser itself"
        )
    pipe = None if isinstance(target, nn.Module) else target
    return pipe, getattr(host, "_orig_mod", host)


def second_denoiser(pipe: Any) -> str | None:
    """The attribute of a pipeline's other denoiser, where a run goes on with that at low noise; None without one."""
    names = ("transformer", "transformer_2")
    return names[1] if all(isinstance(getattr(pipe, name, None), nn.Module) for name in names) else None


def common_family(adapters: tuple[Adapter, ...]) -> Family:
    """The family of adapters that are to be attached together: that which the others may stand beside.

    Raises:
        HostMismatch: they are of families that do not go together, or there are none.
    """
    names = list(dict.fromkeys(adapter.spec.family for adapter in adapters))
    for family in map(family_named, names):
        if {*names} <= {family.name, *family.beside}:
            return family
    raise HostMismatch(f"adapters of {' and '.join(map(repr, names)) or 'no family'}; attach those of one family")


def sites_of(family: Family, host: nn.Module) -> tuple[Site, ...]:
    """The sites of a host for a family.

    Raises:
        HostMismatch: the host is not of that family's kind, or has no sites.
    """
    if not {kind.__name__ for kind in type(host).__mro__} & {*family.hosts}:
        raise HostMismatch(
            f"adapters of the family {family.name!r} are for {' or '.join(family.hosts)}; got {type(host).__name__}. "
            "Load the base that the adapter was made for."
        )
    return family.sites(host)


def check_fit(adapter: Adapter, sites: tuple[Site, ...], host: nn.Module) -> None:
    """Refuse an adapter that was made for another host.

    Raises:
        HostMismatch: it names what the adapter wants and what the host has.
    """
    spec = adapter.spec
    family = family_named(spec.family)
    if spec.lora is not None and (family.lora_names is None or spec.lora.indices[-1] not in family.lora_names(host)):
        raise HostMismatch(
            f"{spec.name!r} changes {len(spec.lora.indices)} attentions of its host, which {type(host).__name__} does "
            "not have. Load the base that the adapter was made for."
        )
    width = None if family.host_token_width is None else family.host_token_width(host)
    if family.host_token_width is not None and width != spec.projector.width:
        raise HostMismatch(
            f"{spec.name!r} makes tokens of width {spec.projector.width} for its host's text projection; "
            f"{type(host).__name__} has {f'one of width {width}' if width else 'none'}. Load the base that the adapter "
            "was made for."
        )
    wanted = (spec.cross_attention_dim, len(spec.site_widths))
    found = (sites[0].key_width, len(sites))
    places = {site.index: site for site in sites}
    fits = wanted[0] == found[0] or family.has_free_tokens
    fits = fits and (wanted[1] == found[1] or spec.is_partial) and {*spec.site_indices} <= {*places}
    if not fits:
        raise HostMismatch(
            f"{spec.name!r} wants a {spec.family} host with {wanted[1]} attentions of width {wanted[0]}; "
            f"{type(host).__name__} has {found[1]} of width {found[0]}. Load the base that the adapter was made for."
        )
    if not family.fits(host):
        raise HostMismatch(
            f"{spec.name!r} is for {family.title}, but this {type(host).__name__} is that of "
            f"{family_of(host).title}. Load the base that the adapter was made for."
        )
    for index, width in zip(spec.site_indices, spec.site_widths, strict=True):
        site = places[index]
        if site.query_width != width:
            raise HostMismatch(
                f"{spec.name!r} has keys of width {width} at number {index}; {site.name} of {type(host).__name__} has "
                f"width {site.query_width}. Load the base that the adapter was made for."
            )


def check_branch(branch: Branch, adapter: Adapter, sites: tuple[Site, ...]) -> None:
    """Refuse what an image cannot do at the places where its adapter acts, before it does nothing.

    Raises:
        ConditioningError: it is to be held against the host's own attention, which is not to be seen there.
    """
    acts = [site for site in sites if site.index in adapter.spec.site_indices]
    title = family_named(adapter.spec.family).title
    if branch.match is not None and any(site.after for site in acts):
        raise ConditioningError(
            f"'norm matched' brings an image to the length of the host's own attention, and adapters for {title} act "
            "behind the block, where that is not to be seen; choose another attention"
        )
    if branch.key_scale is not None and adapter.spec.is_timed:
        raise ConditioningError(
            f"'keys and values' and 'channel penalty' scale keys, and {adapter.spec.name!r} norms its keys afterwards; "
            "choose another attention"
        )
    if branch.gain is not None and adapter.spec.is_timed:
        raise ConditioningError(
            f"image_weights weigh the tokens of each picture, and {adapter.spec.name!r} makes one set of all pictures; "
            "give a prompt for each"
        )
    unknown = next((site.name for site in acts if not site.own_keys), None)
    if branch.joint is not None and unknown is not None:
        raise ConditioningError(
            f"'joint softmax' needs the keys that the host itself attends to, and those of {unknown} ({title}) are not "
            "known; choose another attention"
        )
