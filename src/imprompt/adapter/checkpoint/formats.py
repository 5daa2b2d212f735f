"""The layouts in which adapters are found in files, each a table of templated keys.

Ours is that of `Adapter`'s own state: `image_proj.*`, and `ip_adapter.{n}.*` for the attention of number n. It is the
official one (tencent-ailab/IP-Adapter at 62e4af9), which InstantX (FLUX, SD3.5), InstantID, Kolors' plus and ComfyUI
use too. Sources of the others:

* training: what `accelerate` saves of `tutorial_train*.py` of the same repository: the whole module, in which an
  attention's processor is the UNet's child *and* `adapter_modules`'. Safetensors keeps one of the two names.
* diffusers: a denoiser's own state after `load_ip_adapter` (diffusers 0.42, `loaders/unet.py`, `transformer_flux.py`,
  `transformer_sd3.py`); its projectors have names of their own, which `PROJECTORS` tells.
* xlabs: XLabs-AI/x-flux, `src/flux/model.py`; diffusers' `loaders/ip_adapter.py` reads it as well.
* kolors-faceid: Kwai-Kolors/Kolors, `ipadapter_faceid`'s `{"image_proj", "adapter_modules"}`.
* csgo: instantX-research/CSGO at 556fb40, `ip_adapter/ip_adapter.py` (`load_ip_adapter`) and `utils.py` (`BLOCKS`).
* pulid: ToTheBeginning/PuLID, `pulid/pipeline_v1_1.py` and `pipeline_flux.py` (`load_pretrain`).

All are read and written, but one: a training checkpoint, and what accelerate leaves of one, is a source by its nature.
It holds the base too, which an adapter does not have; what is trained is written as any of the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from imprompt.adapter.checkpoint.templates import Row, pattern_of


@dataclass(frozen=True, kw_only=True)
class Format:
    """One layout.

    Attributes:
        name: what `--to` and messages call it.
        title: the same in words.
        marks: templates; a file is of this layout if each of them matches one of its keys.
        rows: the table.
        aside: beginnings of keys that an adapter does not need, and what they are.
        renames_projector: whether its projectors have diffusers' names.
    """

    name: str
    title: str
    marks: tuple[str, ...]
    rows: tuple[Row, ...]
    aside: Mapping[str, str]
    renames_projector: bool = False


def _format(name: str, title: str, marks: tuple[str, ...], *rows: tuple[str, str], **options: object) -> Format:
    options = {"aside": {}, **options}
    return Format(name=name, title=title, marks=marks, rows=tuple(Row(*row) for row in rows), **options)  # pyright: ignore


NATIVE = _format(
    "native",
    "the official layout",
    ("ip_adapter.{n}.{rest}",),
    ("image_proj.{rest}", "image_proj.{rest}"),
    ("ip_adapter.{n}.{rest}", "ip_adapter.{n}.{rest}"),
)

_SITE = ("to_k_ip.weight", "to_v_ip.weight", "to_k_ip.bias", "to_v_ip.bias")
_LORA = tuple(f"to_{kind}_lora.{half}.weight" for kind in ("q", "k", "v", "out") for half in ("down", "up"))

_TRAINED_MODULE = (
    ("image_proj_model.{rest}", "image_proj.{rest}"),
    ("adapter_modules.{n}.{rest}", "ip_adapter.{n}.{rest}"),
    *((f"unet.{{path}}.processor.{name}", f"ip_adapter.{{n}}.{name}") for name in (*_SITE, *_LORA)),
)
_BASE = {"unet.": "the UNet that it was trained with"}

TRAINING = _format(
    "training",
    "a checkpoint of the official training scripts",
    ("image_proj_model.{rest}",),
    *_TRAINED_MODULE,
    aside=_BASE,
)
# A file of a checkpoint in several, or the leftovers of one, whose projector is elsewhere or lost.
TRAINING_UNET = _format(
    "training",
    "a checkpoint of the official training scripts",
    ("unet.{path}.processor.to_k_ip.weight",),
    *_TRAINED_MODULE,
    ("image_proj.{rest}", "image_proj.{rest}"),
    aside=_BASE,
)

ADAPTER_MODULES = _format(
    "adapter_modules",
    "the layout of Kolors' face adapter",
    ("adapter_modules.{n}.{rest}",),
    ("image_proj.{rest}", "image_proj.{rest}"),
    ("adapter_modules.{n}.{rest}", "ip_adapter.{n}.{rest}"),
)


def diffusers_unet(number: int = 0) -> Format:
    """The layout of a UNet's state, of the adapter that was loaded as `number` of several."""
    kinds = (("to_k_ip.{}.weight", "to_k_ip.weight"), ("to_v_ip.{}.weight", "to_v_ip.weight"))
    layers = (("to_q", "to_q"), ("to_k", "to_k"), ("to_v", "to_v"), ("to_out", "to_out.0"))
    return _format(
        "diffusers",
        "a UNet of diffusers with an adapter loaded",
        (f"{{path}}.processor.to_k_ip.{number}.weight",),
        (f"encoder_hid_proj.image_projection_layers.{number}.{{rest}}", "image_proj.{rest}"),
        *((f"{{path}}.processor.{there.format(number)}", f"ip_adapter.{{n}}.{here}") for there, here in kinds),
        *((f"{{path}}.processor.{name}", f"ip_adapter.{{n}}.{name}") for name in _LORA),
        *(
            (f"{{path}}.{layer}.lora_{half}.faceid_{number}.weight", f"ip_adapter.{{n}}.{kind}_lora.{word}.weight")
            for kind, layer in layers
            for half, word in (("A", "down"), ("B", "up"))
        ),
        aside={"": "the denoiser's own weights"},
        renames_projector=True,
    )


def diffusers_flux(number: int = 0) -> Format:
    """The layout of a FLUX transformer's state, of the adapter that was loaded as `number` of several."""
    return _format(
        "diffusers",
        "a FLUX transformer of diffusers with an adapter loaded",
        (f"transformer_blocks.{{n}}.attn.processor.to_k_ip.{number}.weight",),
        (f"encoder_hid_proj.image_projection_layers.{number}.{{rest}}", "image_proj.{rest}"),
        *(
            (
                f"transformer_blocks.{{n}}.attn.processor.to_{kind}_ip.{number}.{part}",
                f"ip_adapter.{{n}}.to_{kind}_ip.{part}",
            )
            for kind in "kv"
            for part in ("weight", "bias")
        ),
        aside={"": "the denoiser's own weights"},
        renames_projector=True,
    )


DIFFUSERS, DIFFUSERS_FLUX = diffusers_unet(), diffusers_flux()
DIFFUSERS_SD3 = _format(
    "diffusers",
    "a Stable Diffusion 3 transformer of diffusers with an adapter loaded",
    ("transformer_blocks.{n}.attn.processor.norm_ip.linear.weight",),
    ("image_proj.{rest}", "image_proj.{rest}"),
    ("transformer_blocks.{n}.attn.processor.{rest}", "ip_adapter.{n}.{rest}"),
    aside={"": "the denoiser's own weights"},
    renames_projector=True,
)

XLABS = _format(
    "xlabs",
    "XLabs' layout for FLUX",
    ("double_blocks.{n}.processor.ip_adapter_double_stream_k_proj.weight",),
    ("ip_adapter_proj_model.{rest}", "image_proj.{rest}"),
    *(
        (
            f"double_blocks.{{n}}.processor.ip_adapter_double_stream_{kind}_proj.{part}",
            f"ip_adapter.{{n}}.to_{kind}_ip.{part}",
        )
        for kind in "kv"
        for part in ("weight", "bias")
    ),
)

PULID_SDXL = _format(
    "pulid",
    "PuLID's layout for Stable Diffusion XL",
    ("id_adapter_attn_layers.{n}.id_to_k.weight",),
    ("id_adapter_attn_layers.{n}.id_to_k.weight", "ip_adapter.{n}.to_k_ip.weight"),
    ("id_adapter_attn_layers.{n}.id_to_v.weight", "ip_adapter.{n}.to_v_ip.weight"),
    aside={"id_adapter.": "PuLID's face encoder, which makes the tokens"},
)
PULID_FLUX = _format(
    "pulid",
    "PuLID's layout for FLUX",
    ("pulid_ca.{n}.to_q.weight",),
    ("pulid_ca.{n}.{rest}", "ip_adapter.{n}.{rest}"),
    aside={"pulid_encoder.": "PuLID's face encoder, which makes the tokens"},
)

CSGO_ASIDE = {
    "controlnet_adapter_modules.": "CSGO's keys and values in a ControlNet",
    "conv_in_unet_sd.": "CSGO's own first layer of the UNet",
}


def _csgo(part: str, other: str) -> Format:
    return _format(
        "csgo",
        "CSGO's layout",
        ("content_image_proj.{rest}", "style_image_proj.{rest}"),
        (f"{part}_image_proj.{{rest}}", "image_proj.{rest}"),
        ("ip_adapter.{n}.{rest}", "ip_adapter.{n}.{rest}"),
        aside={**CSGO_ASIDE, f"{other}_image_proj.": f"the adapter for {other}"},
    )


# In the order in which they are asked: the more particular first.
FORMATS = (
    XLABS,
    PULID_SDXL,
    PULID_FLUX,
    DIFFUSERS_SD3,
    DIFFUSERS_FLUX,
    DIFFUSERS,
    TRAINING,
    TRAINING_UNET,
    ADAPTER_MODULES,
    NATIVE,
)
CSGO = {"content": _csgo("content", "style"), "style": _csgo("style", "content")}
CSGO_BLOCKS = {"content": "down_blocks", "style": "up_blocks"}  # where each of the two acts

PULID = (PULID_SDXL, PULID_FLUX)

# What training and saving wrap around a module's names.
WRAPPERS = ("module.", "_orig_mod.", "_forward_module.", "_fsdp_wrapped_module.")


def marked(format: Format, keys: Mapping[str, object]) -> bool:
    """Whether a file with these keys is of a layout."""
    return all(any(pattern_of(mark).fullmatch(key) for key in keys) for mark in format.marks)


# Projectors ----------------------------------------------------------------------------------------------------------


def _rows(*rows: tuple[str | tuple[str, str], str]) -> tuple[Row, ...]:
    return tuple(Row(*row) for row in rows)


def _reader(prefix: str) -> tuple[Row, ...]:
    """The layers of a resampler."""
    here = f"{prefix}layers.{{i}}."
    return _rows(
        ("layers.{i}.ln0.{rest}", f"{here}0.norm1.{{rest}}"),
        ("layers.{i}.ln1.{rest}", f"{here}0.norm2.{{rest}}"),
        ("layers.{i}.attn.to_q.weight", f"{here}0.to_q.weight"),
        (("layers.{i}.attn.to_k.weight", "layers.{i}.attn.to_v.weight"), f"{here}0.to_kv.weight"),
        ("layers.{i}.attn.to_out.0.weight", f"{here}0.to_out.weight"),
        ("layers.{i}.ff.0.{rest}", f"{here}1.0.{{rest}}"),
        ("layers.{i}.ff.1.net.0.proj.weight", f"{here}1.1.weight"),
        ("layers.{i}.ff.1.net.2.weight", f"{here}1.3.weight"),
        *((f"{name}.{{rest}}", f"{prefix}{name}.{{rest}}") for name in ("proj_in", "proj_out", "norm_out")),
    )


_MLP = (("ff.net.0.proj.{rest}", "proj.0.{rest}"), ("ff.net.2.{rest}", "proj.2.{rest}"))

# diffusers' names of each kind of projector, and ours (diffusers 0.42, `models/embeddings.py`).
PROJECTORS: dict[str, tuple[Row, ...]] = {
    "linear": _rows(("image_embeds.{rest}", "proj.{rest}"), ("norm.{rest}", "norm.{rest}")),
    "mlp": _rows(*_MLP, ("norm.{rest}", "proj.3.{rest}")),
    "pooled_mlp": _rows(*_MLP, ("norm.{rest}", "norm.{rest}")),
    "resampler": (*_rows(("latents", "latents")), *_reader("")),
    "face_plus": (
        *_rows(
            ("proj.net.0.proj.{rest}", "proj.0.{rest}"),
            ("proj.net.2.{rest}", "proj.2.{rest}"),
            ("norm.{rest}", "norm.{rest}"),
        ),
        *_reader("perceiver_resampler."),
    ),
    "time_resampler": _rows(
        ("latents", "latents"),
        ("layers.{i}.ln0.{rest}", "layers.{i}.0.norm1.{rest}"),
        ("layers.{i}.ln1.{rest}", "layers.{i}.0.norm2.{rest}"),
        ("layers.{i}.attn.to_q.weight", "layers.{i}.0.to_q.weight"),
        ("layers.{i}.attn.to_kv.weight", "layers.{i}.0.to_kv.weight"),
        ("layers.{i}.attn.to_out.0.weight", "layers.{i}.0.to_out.weight"),
        ("layers.{i}.adaln_norm.{rest}", "layers.{i}.1.0.{rest}"),
        ("layers.{i}.ff.net.0.proj.weight", "layers.{i}.1.1.weight"),
        ("layers.{i}.ff.net.2.weight", "layers.{i}.1.3.weight"),
        ("layers.{i}.adaln_proj.{rest}", "layers.{i}.2.1.{rest}"),
        *((f"{name}.{{rest}}", f"{name}.{{rest}}") for name in ("proj_in", "proj_out", "norm_out", "time_embedding")),
    ),
}


def projector_kind(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Which projector has these keys under diffusers' names; None if none has."""
    match shapes:
        case {"image_embeds.weight": _}:
            return "linear"
        case {"proj.net.0.proj.weight": _}:
            return "face_plus"
        case {"time_embedding.linear_1.weight": _}:
            return "time_resampler"
        case {"latents": _}:
            return "resampler"
        case {"ff.net.2.weight": (rows, *_), "norm.weight": (width, *_)}:
            return "mlp" if rows == width else "pooled_mlp"
        case _:
            return None
