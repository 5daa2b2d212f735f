"""Every published adapter as a header: keys, shapes and number formats, and what must be recognised in it.

No weights can be had here, so these are made from what is known of the files: the classes that wrote them, run over the
sites of their hosts. Nothing is taken from imprompt. `tests/unit/adapter/test_published.py` holds them against what was
measured on the files themselves: numbers of parameters, and sizes to the byte, which a wrong key or shape would miss.

Sources, as repository + file: tencent-ailab/IP-Adapter (ip_adapter/*.py), instantX-research/InstantID
(ip_adapter/resampler.py), Kwai-Kolors/Kolors (kolors/models/ipa_faceid_plus/ipa_faceid_plus.py, and the loading in
kolors/pipelines/pipeline_stable_diffusion_xl_chatglm_256_ipadapter_FaceID.py), instantX-research/CSGO
(ip_adapter/ip_adapter.py, ip_adapter/attention_processor.py, ip_adapter/utils.py), XLabs-AI/x-flux (src/flux),
huggingface/diffusers (loaders/transformer_sd3.py, which names every key of the SD3.5 file), ToTheBeginning/PuLID
(pulid/encoders.py, encoders_transformer.py, attention_processor.py; pipeline.py, pipeline_v1_1.py and pipeline_flux.py
load with strict=True). Sizes and number formats: the hub's own pages of these files.
"""

import json
import struct
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch

Shapes = dict[str, tuple[int, ...]]

BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published adapter file.

    Attributes:
        name: the variant, as its authors call it where they call it something.
        repository: where it is on the hub.
        path: the file in it.
        shapes: its tensors; of a pickle of several dictionaries, their names joined by a dot.
        family: the base, as "sd1", "sdxl", "kolors", "flux" or "sd3".
        encoder: what makes the features it reads.
        layer: which of them: "image_embeds", "hidden_states", "face_embeds"; of PuLID, whose file holds its own encoder
            of faces, "tokens".
        feature_width: their width.
        index: of a hidden state, which one.
        num_tokens: tokens a picture (or a face).
        null_image: "zero_features", "zero_pixels", "black_pixels", "none"; of FaceID-Plus, for the embedding.
        num_parameters: as published, or as computed from the classes that wrote the file; checked against the shapes.
        num_bytes: size of the published file, where it is known to the byte.
        formats: number formats by the beginning of a key; the first that fits.
        metadata: of a safetensors file, its metadata as published.
        is_pickle: published as a pickle; `sections` are its dictionaries, none if it is flat.
        face_crop: the encoder whose hidden_states[-2] of the aligned face are read beside the face embedding; their
            null is zero pixels in h94's files and zero features in Kolors'.
        normalised: of a face embedding, whether it has length 1.
        shortcut: of FaceID-Plus, whether what is read is added to the tokens.
        unverified: what of this nobody has seen.
    """

    name: str
    repository: str
    path: str
    shapes: Shapes
    family: str
    encoder: str
    layer: str
    feature_width: int
    num_tokens: int
    null_image: str
    num_parameters: int
    index: int | None = None
    num_bytes: int | None = None
    formats: dict[str, str] = field(default_factory=lambda: {"": "F16"})
    metadata: dict[str, str] = field(default_factory=dict)
    is_pickle: bool = False
    sections: tuple[str, ...] = ("image_proj", "ip_adapter")
    face_crop: str | None = None
    normalised: bool = True
    shortcut: bool | None = None
    unverified: str = ""

    def format_of(self, key: str) -> str:
        """Number format of a tensor, as safetensors writes it."""
        return next(name for start, name in self.formats.items() if key.startswith(start))

    @property
    def num_weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(prod(shape) * BYTES[self.format_of(key)] for key, shape in self.shapes.items())


# ---------------------------------------------------------------------------------------------------------- parts


def linear(key: str, rows: int, columns: int, *, bias: bool = True) -> Shapes:
    return {f"{key}.weight": (rows, columns), **({f"{key}.bias": (rows,)} if bias else {})}


def norm(key: str, width: int) -> Shapes:
    return {f"{key}.weight": (width,), f"{key}.bias": (width,)}


def prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}.{key}": shape for key, shape in shapes.items()}


def perceiver_attention(key: str, width: int, inner: int, read: int | None = None) -> Shapes:
    """`PerceiverAttention`: what is read, and so `norm1` and `to_kv`, may have a width of its own."""
    read = width if read is None else read
    return {
        **norm(f"{key}norm1", read),
        **norm(f"{key}norm2", width),
        **linear(f"{key}to_q", inner, width, bias=False),
        **linear(f"{key}to_kv", 2 * inner, read, bias=False),
        **linear(f"{key}to_out", width, inner, bias=False),
    }


def perceiver_layers(width: int, heads: int, depth: int = 4) -> Shapes:
    shapes: Shapes = {}
    for layer in range(depth):
        shapes |= perceiver_attention(f"layers.{layer}.0.", width, 64 * heads)
        shapes |= norm(f"layers.{layer}.1.0", width)
        shapes |= linear(f"layers.{layer}.1.1", 4 * width, width, bias=False)
        shapes |= linear(f"layers.{layer}.1.3", width, 4 * width, bias=False)
    return shapes


def resampler(*, inner: int, heads: int, features: int, tokens: int, width: int) -> Shapes:
    return {
        "latents": (1, tokens, inner),
        **linear("proj_in", inner, features),
        **linear("proj_out", width, inner),
        **norm("norm_out", width),
        **perceiver_layers(inner, heads),
    }


def image_proj(*, features: int, tokens: int, width: int) -> Shapes:
    """`ImageProjModel`."""
    return {**linear("proj", tokens * width, features), **norm("norm", width)}


def pooled_mlp(*, features: int, tokens: int, width: int) -> Shapes:
    """FaceID's `MLPProjModel`, and InstantX's on FLUX."""
    return {
        **linear("proj.0", 2 * features, features),
        **linear("proj.2", tokens * width, 2 * features),
        **norm("norm", width),
    }


def face_plus(*, tokens: int, width: int, crop: int) -> Shapes:
    """`ProjPlusModel`: the tokens of a face read the features of its picture."""
    reader = {
        **linear("proj_in", width, crop),
        **linear("proj_out", width, width),
        **norm("norm_out", width),
        **perceiver_layers(width, width // 64),
    }
    return {**pooled_mlp(features=512, tokens=tokens, width=width), **prefixed("perceiver_resampler", reader)}


# ---------------------------------------------------------------------------------------------------------- sites

# Widths of a UNet's attentions in the order of `attn_processors` (down, up, mid), one a transformer block; each block
# is two processors, self-attention and then cross-attention.
SD1_BLOCKS = (*[320] * 2, *[640] * 2, *[1280] * 2, *[1280] * 3, *[640] * 3, *[320] * 3, 1280)
SDXL_DOWN = (*[640] * 4, *[1280] * 20)
SDXL_UP = (*[1280] * 30, *[640] * 6)
SDXL_BLOCKS = (*SDXL_DOWN, *SDXL_UP, *[1280] * 10)


def unet_keys(blocks: tuple[int, ...], width: int, name: str = "to_{}_ip", *, first: int = 0) -> Shapes:
    """Keys and values at every cross-attention: processors 1, 3, 5..."""
    return {
        f"{2 * number + 1}.{name.format(kind)}.weight": (hidden, width)
        for number, hidden in enumerate(blocks, start=first)
        for kind in "kv"
    }


def unet_lora(blocks: tuple[int, ...], width: int, rank: int = 128) -> Shapes:
    """FaceID's LoRA at every attention, self-attentions included."""
    shapes: Shapes = {}
    for number, hidden in enumerate(blocks):
        for processor, read in ((2 * number, hidden), (2 * number + 1, width)):
            for name in ("q", "k", "v", "out"):
                columns = read if name in "kv" else hidden
                shapes[f"{processor}.to_{name}_lora.down.weight"] = (rank, columns)
                shapes[f"{processor}.to_{name}_lora.up.weight"] = (hidden, rank)
    return shapes


SD1_KEYS, SDXL_KEYS = unet_keys(SD1_BLOCKS, 768), unet_keys(SDXL_BLOCKS, 2048)
SD1_LORA, SDXL_LORA = unet_lora(SD1_BLOCKS, 768), unet_lora(SDXL_BLOCKS, 2048)


def adapter(projector: Shapes, *sites: Shapes, sections: tuple[str, str] = ("image_proj", "ip_adapter")) -> Shapes:
    shapes = prefixed(sections[0], projector)
    for part in sites:
        shapes |= prefixed(sections[1], part)
    return shapes


# ------------------------------------------------------------------------------------------- other files' own parts


def full_mlp() -> Shapes:
    """`MLPProjModel` of the full-face adapter: every feature becomes a token."""
    return {**linear("proj.0", 1280, 1280), **linear("proj.2", 768, 1280), **norm("proj.3", 768)}


def xlabs_flux(tokens: int) -> Shapes:
    """The 19 double blocks alone, with biases."""
    shapes = prefixed("ip_adapter_proj_model", image_proj(features=768, tokens=tokens, width=4096))
    for block in range(19):
        for kind in "kv":
            shapes |= linear(f"double_blocks.{block}.processor.ip_adapter_double_stream_{kind}_proj", 3072, 4096)
    return shapes


def instantx_flux() -> Shapes:
    """All 57 blocks, double ones first; the norms of keys and values have no weights."""
    sites = {f"{block}.to_{kind}_ip.weight": (3072, 4096) for block in range(57) for kind in "kv"}
    return adapter(pooled_mlp(features=1152, tokens=128, width=4096), sites)


def instantx_sd35() -> Shapes:
    """A resampler whose blocks are modulated by the timestep, and the 38 blocks of SD3.5-Large."""
    projector = {
        **resampler(inner=1280, heads=20, features=1152, tokens=64, width=2432),
        **linear("time_embedding.linear_1", 1280, 320),
        **linear("time_embedding.linear_2", 1280, 1280),
    }
    for layer in range(4):
        projector |= linear(f"layers.{layer}.2.1", 4 * 1280, 1280)
    sites: Shapes = {}
    for block in range(38):
        sites |= linear(f"{block}.norm_ip.linear", 2 * 2432, 1280)
        sites |= {f"{block}.to_{kind}_ip.weight": (2432, 2432) for kind in "kv"}
        sites |= {f"{block}.{name}.weight": (64,) for name in ("norm_q", "norm_k", "norm_ip_k")}
    return adapter(projector, sites)


def csgo(style_tokens: int) -> Shapes:
    """Two projectors; content's keys and values in the down blocks, style's in the up blocks and in a ControlNet's."""
    shared = {"inner": 2048, "heads": 12, "features": 1664, "width": 2048}
    shapes = prefixed("content_image_proj", resampler(tokens=4, **shared))
    shapes |= prefixed("style_image_proj", resampler(tokens=style_tokens, **shared))
    shapes |= prefixed("ip_adapter", unet_keys(SDXL_DOWN, 2048))
    shapes |= prefixed("ip_adapter", unet_keys(SDXL_UP, 2048, first=len(SDXL_DOWN)))
    for block, count, hidden in ((1, 2, 640), (2, 10, 1280)):
        for attention in range(2):
            for layer in range(count):
                name = f"down_blocks.{block}.attentions.{attention}.transformer_blocks.{layer}.attn2.processor"
                for kind in "kv":
                    shapes[f"controlnet_adapter_modules.{name}.to_{kind}_ip.weight"] = (hidden, 2048)
    return shapes


def pulid_mapping(key: str, rows: int, columns: int = 1024) -> Shapes:
    return {
        **linear(f"{key}.0", 1024, columns),
        **norm(f"{key}.1", 1024),
        **linear(f"{key}.3", 1024, 1024),
        **norm(f"{key}.4", 1024),
        **linear(f"{key}.6", rows, 1024),
    }


def id_encoder() -> Shapes:
    """PuLID's first face projector: five tokens of the embedding, five of EVA-CLIP's layers."""
    shapes = pulid_mapping("body", 5 * 2048, 1280)
    for layer in range(5):
        shapes |= pulid_mapping(f"mapping_{layer}", 2048) | pulid_mapping(f"mapping_patch_{layer}", 2048)
    return shapes


def id_former() -> Shapes:
    """PuLID's second one: 32 queries read both; `proj_out` is a bare matrix."""
    shapes: Shapes = {"latents": (1, 32, 1024), "proj_out": (1024, 2048), **perceiver_layers(1024, 16, depth=10)}
    for layer in range(5):
        shapes |= pulid_mapping(f"mapping_{layer}", 1024)
    return shapes | pulid_mapping("id_embedding_mapping", 5 * 1024, 1280)


def pulid_sdxl(projector: Shapes) -> Shapes:
    return adapter(
        projector, unet_keys(SDXL_BLOCKS, 2048, "id_to_{}"), sections=("id_adapter", "id_adapter_attn_layers")
    )


def pulid_flux() -> Shapes:
    """Twenty whole cross-attentions, after every second double and every fourth single block."""
    attentions: Shapes = {}
    for number in range(20):
        attentions |= perceiver_attention(f"{number}.", 3072, 16 * 128, 2048)
    return adapter(id_former(), attentions, sections=("pulid_encoder", "pulid_ca"))


# ------------------------------------------------------------------------------------------------------------ table

VIT_H, BIG_G = "OpenCLIP ViT-H/14", "OpenCLIP ViT-bigG/14"
CLIP_L, CLIP_L_336 = "CLIP ViT-L/14", "CLIP ViT-L/14-336"
SIGLIP = "SigLIP so400m/14-384"
BUFFALO, ANTELOPE = "ArcFace R50 WebFace600K (buffalo_l)", "ArcFace R100 Glint360K (antelopev2)"

H94, FACEID = "h94/IP-Adapter", "h94/IP-Adapter-FaceID"

POOLED_H = {"encoder": VIT_H, "layer": "image_embeds", "feature_width": 1024, "null_image": "zero_features"}
POOLED_G = {"encoder": BIG_G, "layer": "image_embeds", "feature_width": 1280, "null_image": "zero_features"}
HIDDEN_H = {
    "encoder": VIT_H,
    "layer": "hidden_states",
    "index": -2,
    "feature_width": 1280,
    "null_image": "zero_pixels",
}
FACE = {"encoder": BUFFALO, "layer": "face_embeds", "feature_width": 512, "null_image": "zero_features"}
SD1, SDXL = {"family": "sd1", "repository": H94}, {"family": "sdxl", "repository": H94}
SD1_FACE = {**FACE, "family": "sd1", "repository": FACEID, "is_pickle": True}
SDXL_FACE = {**FACE, "family": "sdxl", "repository": FACEID, "is_pickle": True}
XLABS = {
    "family": "flux",
    "encoder": CLIP_L,
    "layer": "image_embeds",
    "feature_width": 768,
    "null_image": "black_pixels",
    "formats": {"": "BF16"},
    "path": "ip_adapter.safetensors",
}
PULID = {
    "repository": "guozinan/PuLID",
    "encoder": f"{ANTELOPE} and EVA02-CLIP-L-14-336",
    "layer": "tokens",
    "feature_width": 2048,
    "null_image": "zero_features",
}
CSGO = {
    "repository": "InstantX/CSGO",
    "family": "sdxl",
    "encoder": BIG_G,
    "layer": "hidden_states",
    "index": -2,
    "feature_width": 1664,
    "null_image": "zero_features",
    "is_pickle": True,
    "sections": ("content_image_proj", "style_image_proj", "ip_adapter", "controlnet_adapter_modules"),
    "unverified": "keys of controlnet_adapter_modules, whether mid blocks or conv_in_unet_sd are in it, formats, size",
}

SD1_POOLED_H = adapter(image_proj(features=1024, tokens=4, width=768), SD1_KEYS)
SD1_PLUS = adapter(resampler(inner=768, heads=12, features=1280, tokens=16, width=768), SD1_KEYS)
SDXL_PLUS = adapter(resampler(inner=1280, heads=20, features=1280, tokens=16, width=2048), SDXL_KEYS)
SD1_FACE_PLUS = adapter(face_plus(tokens=4, width=768, crop=1280), SD1_LORA, SD1_KEYS)
SD1_PORTRAIT = adapter(pooled_mlp(features=512, tokens=16, width=768), SD1_KEYS)
SDXL_FACE_RESAMPLER = adapter(resampler(inner=1280, heads=20, features=512, tokens=16, width=2048), SDXL_KEYS)

_ALL = (
    Published(
        name="ip-adapter_sd15",
        path="models/ip-adapter_sd15.safetensors",
        shapes=SD1_POOLED_H,
        num_tokens=4,
        num_parameters=22_319_616,
        num_bytes=44_642_768,
        **SD1,
        **POOLED_H,
    ),
    Published(
        name="ip-adapter_sd15_light",
        path="models/ip-adapter_sd15_light.safetensors",
        shapes=SD1_POOLED_H,
        num_tokens=4,
        num_parameters=22_319_616,
        num_bytes=44_642_768,
        **SD1,
        **POOLED_H,
    ),
    Published(
        name="ip-adapter_sd15_light_v11",
        path="models/ip-adapter_sd15_light_v11.bin",
        shapes=SD1_POOLED_H,
        num_tokens=4,
        num_parameters=22_319_616,
        num_bytes=44_642_977,
        is_pickle=True,
        **SD1,
        **POOLED_H,
    ),
    Published(
        name="ip-adapter_sd15_vit-G",
        path="models/ip-adapter_sd15_vit-G.safetensors",
        shapes=adapter(image_proj(features=1280, tokens=4, width=768), SD1_KEYS),
        num_tokens=4,
        num_parameters=23_106_048,
        num_bytes=46_215_640,
        **SD1,
        **POOLED_G,
    ),
    Published(
        name="ip-adapter-plus_sd15",
        path="models/ip-adapter-plus_sd15.safetensors",
        shapes=SD1_PLUS,
        num_tokens=16,
        num_parameters=49_087_488,
        num_bytes=98_183_288,
        **SD1,
        **HIDDEN_H,
    ),
    Published(
        name="ip-adapter-plus-face_sd15",
        path="models/ip-adapter-plus-face_sd15.safetensors",
        shapes=SD1_PLUS,
        num_tokens=16,
        num_parameters=49_087_488,
        num_bytes=98_183_288,
        **SD1,
        **HIDDEN_H,
    ),
    Published(
        name="ip-adapter-full-face_sd15",
        path="models/ip-adapter-full-face_sd15.safetensors",
        shapes=adapter(full_mlp(), SD1_KEYS),
        num_tokens=257,
        num_parameters=21_794_304,
        num_bytes=43_592_352,
        **SD1,
        **HIDDEN_H,
    ),
    Published(
        name="ip-adapter_sdxl",
        path="sdxl_models/ip-adapter_sdxl.safetensors",
        shapes=adapter(image_proj(features=1280, tokens=4, width=2048), SDXL_KEYS),
        num_tokens=4,
        num_parameters=351_285_248,
        num_bytes=702_585_376,
        **SDXL,
        **POOLED_G,
    ),
    Published(
        name="ip-adapter_sdxl_vit-h",
        path="sdxl_models/ip-adapter_sdxl_vit-h.safetensors",
        shapes=adapter(image_proj(features=1024, tokens=4, width=2048), SDXL_KEYS),
        num_tokens=4,
        num_parameters=349_188_096,
        num_bytes=698_391_064,
        **SDXL,
        **POOLED_H,
    ),
    Published(
        name="ip-adapter-plus_sdxl_vit-h",
        path="sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors",
        shapes=SDXL_PLUS,
        num_tokens=16,
        num_parameters=423_748_864,
        num_bytes=847_517_512,
        **SDXL,
        **HIDDEN_H,
    ),
    Published(
        name="ip-adapter-plus-face_sdxl_vit-h",
        path="sdxl_models/ip-adapter-plus-face_sdxl_vit-h.safetensors",
        shapes=SDXL_PLUS,
        num_tokens=16,
        num_parameters=423_748_864,
        num_bytes=847_517_512,
        **SDXL,
        **HIDDEN_H,
    ),
    Published(
        name="ip-adapter-faceid_sd15",
        path="ip-adapter-faceid_sd15.bin",
        shapes=adapter(pooled_mlp(features=512, tokens=4, width=768), SD1_LORA, SD1_KEYS),
        num_tokens=4,
        num_parameters=48_354_816,
        num_bytes=96_740_574,
        **SD1_FACE,
    ),
    Published(
        name="ip-adapter-faceid-plus_sd15",
        path="ip-adapter-faceid-plus_sd15.bin",
        shapes=SD1_FACE_PLUS,
        num_tokens=4,
        num_parameters=78_260_736,
        num_bytes=156_558_503,
        face_crop=VIT_H,
        shortcut=False,
        **SD1_FACE,
    ),
    Published(
        name="ip-adapter-faceid-plusv2_sd15",
        path="ip-adapter-faceid-plusv2_sd15.bin",
        shapes=SD1_FACE_PLUS,
        num_tokens=4,
        num_parameters=78_260_736,
        num_bytes=156_558_509,
        face_crop=VIT_H,
        shortcut=True,
        **SD1_FACE,
    ),
    Published(
        name="ip-adapter-faceid-portrait_sd15",
        path="ip-adapter-faceid-portrait_sd15.bin",
        shapes=SD1_PORTRAIT,
        num_tokens=16,
        num_parameters=32_291_328,
        num_bytes=64_586_611,
        **SD1_FACE,
    ),
    Published(
        name="ip-adapter-faceid-portrait-v11_sd15",
        path="ip-adapter-faceid-portrait-v11_sd15.bin",
        shapes=SD1_PORTRAIT,
        num_tokens=16,
        num_parameters=32_291_328,
        num_bytes=64_586_623,
        **SD1_FACE,
    ),
    Published(
        name="ip-adapter-faceid_sdxl",
        path="ip-adapter-faceid_sdxl.bin",
        shapes=adapter(pooled_mlp(features=512, tokens=4, width=2048), SDXL_LORA, SDXL_KEYS),
        num_tokens=4,
        num_parameters=535_507_968,
        num_bytes=1_071_149_741,
        **SDXL_FACE,
    ),
    Published(
        name="ip-adapter-faceid-plusv2_sdxl",
        path="ip-adapter-faceid-plusv2_sdxl.bin",
        shapes=adapter(face_plus(tokens=4, width=2048, crop=1280), SDXL_LORA, SDXL_KEYS),
        num_tokens=4,
        num_parameters=743_707_648,
        num_bytes=1_487_555_181,
        face_crop=VIT_H,
        shortcut=True,
        **SDXL_FACE,
    ),
    Published(
        name="ip-adapter-faceid-portrait_sdxl",
        path="ip-adapter-faceid-portrait_sdxl.bin",
        shapes=adapter(pooled_mlp(features=512, tokens=16, width=2048), SDXL_KEYS),
        num_tokens=16,
        num_parameters=374_903_808,
        num_bytes=749_822_515,
        **SDXL_FACE,
    ),
    Published(  # its size tells that the projector was left in single precision
        name="ip-adapter-faceid-portrait_sdxl_unnorm",
        path="ip-adapter-faceid-portrait_sdxl_unnorm.bin",
        shapes=SDXL_FACE_RESAMPLER,
        num_tokens=16,
        num_parameters=422_765_824,
        num_bytes=1_009_523_411,
        formats={"image_proj.": "F32", "": "F16"},
        normalised=False,
        **SDXL_FACE,
    ),
    Published(
        name="ip-composition-adapter_sd15",
        repository="ostris/ip-composition-adapter",
        path="ip_plus_composition_sd15.safetensors",
        shapes=SD1_PLUS,
        family="sd1",
        num_tokens=16,
        num_parameters=49_087_488,
        num_bytes=98_183_728,
        unverified="its metadata, some 440 bytes",
        **HIDDEN_H,
    ),
    Published(
        name="ip-composition-adapter_sdxl",
        repository="ostris/ip-composition-adapter",
        path="ip_plus_composition_sdxl.safetensors",
        shapes=SDXL_PLUS,
        family="sdxl",
        num_tokens=16,
        num_parameters=423_748_864,
        num_bytes=847_517_960,
        unverified="its metadata, some 448 bytes",
        **HIDDEN_H,
    ),
    Published(
        name="instantid-ip-adapter",
        repository="InstantX/InstantID",
        path="ip-adapter.bin",
        shapes=SDXL_FACE_RESAMPLER,
        family="sdxl",
        encoder=ANTELOPE,
        layer="face_embeds",
        feature_width=512,
        num_tokens=16,
        null_image="zero_features",
        num_parameters=422_765_824,
        num_bytes=1_691_134_141,
        formats={"": "F32"},
        is_pickle=True,
        normalised=False,
    ),
    Published(
        name="kolors-ip-adapter-plus",
        repository="Kwai-Kolors/Kolors-IP-Adapter-Plus",
        path="ip_adapter_plus_general.bin",
        shapes=adapter(resampler(inner=2048, heads=12, features=1024, tokens=16, width=2048), SDXL_KEYS),
        family="kolors",
        encoder=CLIP_L_336,
        layer="hidden_states",
        index=-2,
        feature_width=1024,
        num_tokens=16,
        null_image="zero_pixels",
        num_parameters=506_552_320,
        num_bytes=1_013_163_359,
        is_pickle=True,
    ),
    Published(  # tokens of width 4096, which the base's own text projection takes to 2048
        name="kolors-ip-adapter-faceid-plus",
        repository="Kwai-Kolors/Kolors-IP-Adapter-FaceID-Plus",
        path="ipa-faceid-plus.bin",
        shapes=adapter(
            face_plus(tokens=6, width=4096, crop=1024), SDXL_KEYS, sections=("image_proj", "adapter_modules")
        ),
        family="kolors",
        encoder=ANTELOPE,
        layer="face_embeds",
        feature_width=512,
        num_tokens=6,
        null_image="zero_features",
        num_parameters=1_192_903_680,
        num_bytes=2_385_842_603,
        is_pickle=True,
        sections=("image_proj", "adapter_modules"),
        face_crop=CLIP_L_336,
        shortcut=True,
        unverified="whether the face embedding is of length 1",
    ),
    Published(name="csgo", path="csgo.bin", shapes=csgo(16), num_tokens=20, num_parameters=737_828_864, **CSGO),
    Published(
        name="csgo_4_32", path="csgo_4_32.bin", shapes=csgo(32), num_tokens=36, num_parameters=737_861_632, **CSGO
    ),
    Published(
        name="flux-ip-adapter",
        repository="XLabs-AI/flux-ip-adapter",
        shapes=xlabs_flux(4),
        num_tokens=4,
        num_parameters=490_874_880,
        num_bytes=981_760_648,
        **XLABS,
    ),
    Published(
        name="flux-ip-adapter-v2",
        repository="XLabs-AI/flux-ip-adapter-v2",
        shapes=xlabs_flux(16),
        num_tokens=16,
        num_parameters=528_672_768,
        num_bytes=1_057_356_424,
        **XLABS,
    ),
    Published(
        name="flux.1-dev-ip-adapter",
        repository="InstantX/FLUX.1-dev-IP-Adapter",
        path="ip-adapter.bin",
        shapes=instantx_flux(),
        family="flux",
        encoder=SIGLIP,
        layer="image_embeds",
        feature_width=1152,
        num_tokens=128,
        null_image="none",
        num_parameters=2_645_600_512,
        is_pickle=True,
        unverified="format: 5.29 GB are two bytes a weight, of which kind is not known",
    ),
    Published(
        name="sd3.5-large-ip-adapter",
        repository="InstantX/SD3.5-Large-IP-Adapter",
        path="ip-adapter.bin",
        shapes=instantx_sd35(),
        family="sd3",
        encoder=SIGLIP,
        layer="hidden_states",
        index=-2,
        feature_width=1152,
        num_tokens=64,
        null_image="zero_features",
        num_parameters=797_925_888,
        is_pickle=True,
    ),
    Published(
        name="pulid_v1",
        path="pulid_v1.bin",
        shapes=pulid_sdxl(id_encoder()),
        family="sdxl",
        num_tokens=10,
        num_parameters=395_673_600,
        formats={"": "F32"},
        is_pickle=True,
        sections=(),
        **PULID,
    ),
    Published(
        name="pulid_v1.1",
        path="pulid_v1.1.safetensors",
        shapes=pulid_sdxl(id_former()),
        family="sdxl",
        num_tokens=32,
        num_parameters=492_185_600,
        num_bytes=984_405_232,
        **PULID,
    ),
    Published(
        name="pulid_flux_v0.9.0",
        path="pulid_flux_v0.9.0.safetensors",
        shapes=pulid_flux(),
        family="flux",
        num_tokens=32,
        num_parameters=571_033_600,
        num_bytes=1_142_099_520,
        formats={"": "BF16"},
        **PULID,
    ),
    Published(
        name="pulid_flux_v0.9.1",
        path="pulid_flux_v0.9.1.safetensors",
        shapes=pulid_flux(),
        family="flux",
        num_tokens=32,
        num_parameters=571_033_600,
        num_bytes=1_142_099_520,
        formats={"": "BF16"},
        **PULID,
    ),
)
PUBLISHED: dict[str, Published] = {published.name: published for published in _ALL}


# ---------------------------------------------------------------------------------------------------------- writers


def header_of(published: Published) -> bytes:
    """The header of its safetensors file: length, JSON, and spaces to a multiple of 8. Only its order may differ."""
    header: dict[str, object] = {"__metadata__": published.metadata} if published.metadata else {}
    start = 0
    for key, shape in sorted(published.shapes.items()):
        stop = start + prod(shape) * BYTES[published.format_of(key)]
        header[key] = {"dtype": published.format_of(key), "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_safetensors(published: Published, path: Path) -> Path:
    """Write a file of its true size whose weights are all zero, and which takes next to no disk.

    Files that were published as pickles are written flat, as they would be converted.
    """
    header = header_of(published)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + published.num_weight_bytes)
    return path


def content_of(published: Published) -> dict[str, Any]:
    """What loading its pickle gives, on the meta device: dictionaries in a dictionary, or a flat one."""
    formats = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    content: dict[str, Any] = {section: {} for section in published.sections}
    for key, shape in published.shapes.items():
        tensor = torch.empty(shape, dtype=formats[published.format_of(key)], device="meta")
        section, _, rest = key.partition(".")
        if published.sections:
            content[section][rest] = tensor
        else:
            content[key] = tensor
    return content
