"""The published adapters by what their tensors tell, and what no tensor tells.

Several files are the same network, trained on other data or used in another way. Of those, the first row of a shape is
what a file is taken for that says nothing else of itself.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from imprompt.adapter.spec import (
    FacePlusSpec,
    FeatureSpec,
    Layer,
    LinearSpec,
    MLPSpec,
    PooledMLPSpec,
    ProjectorSpec,
    ResamplerSpec,
    TimeResamplerSpec,
    TokensSpec,
)

# Encoders by name, as `imprompt.encoders` knows them.
VIT_H, BIG_G = "OpenCLIP ViT-H/14", "OpenCLIP ViT-bigG/14"
CLIP_L, CLIP_L_336 = "CLIP ViT-L/14", "CLIP ViT-L/14-336"
SIGLIP = "SigLIP so400m/14-384"
BUFFALO, ANTELOPE = "ArcFace R50 WebFace600K (buffalo_l)", "ArcFace R100 Glint360K (antelopev2)"
PULID_ENCODERS = f"{ANTELOPE} and EVA02-CLIP-L-14-336"

FACE_WIDTH = 512  # of every published face embedding

ENCODERS: dict[tuple[Layer, int], str] = {
    ("image_embeds", 768): CLIP_L,
    ("image_embeds", 1024): VIT_H,
    ("image_embeds", 1280): BIG_G,
    ("image_embeds", 1152): SIGLIP,
    ("hidden_states", 1024): CLIP_L_336,
    ("hidden_states", 1152): SIGLIP,
    ("hidden_states", 1280): VIT_H,
    ("hidden_states", 1664): BIG_G,
    ("face_embeds", FACE_WIDTH): BUFFALO,
    ("tokens", 2048): PULID_ENCODERS,
}

SAME_SHAPES = {"kolors": "sdxl"}  # families whose keys and values tell another


@dataclass(frozen=True)
class Variant:
    """A published adapter.

    Attributes:
        name: what its authors call it.
        family: the family of imprompt's that it is of.
        projector: its kind.
        sizes: width of its tokens, width of the features it reads, tokens a picture; 0 for any.
        hint: what its file's name has that those of the same shapes do not.
        changes: fields of the spec that differ from what its shapes suggest.
    """

    name: str
    family: str
    projector: type[ProjectorSpec]
    sizes: tuple[int, int, int]
    hint: str = ""
    changes: dict[str, Any] = field(default_factory=dict)

    def hinted_by(self, text: str) -> bool:
        """Whether a file's name says so."""
        return bool(self.hint) and re.search(self.hint, text, re.IGNORECASE) is not None


_ANTELOPE = {"encoder": ANTELOPE}
_RAW = {"normalised": False}
_LIGHT, _FACE, _COMPOSITION = "light(?!.?v)", "plus.?face", "composition"

VARIANTS = (
    Variant("ip-adapter_sd15", "sd1", LinearSpec, (768, 1024, 4)),
    Variant("ip-adapter_sd15_light", "sd1", LinearSpec, (768, 1024, 4), _LIGHT),
    Variant("ip-adapter_sd15_light_v11", "sd1", LinearSpec, (768, 1024, 4), "light.?v11"),
    Variant("ip-adapter_sd15_vit-G", "sd1", LinearSpec, (768, 1280, 4)),
    Variant("ip-adapter-plus_sd15", "sd1", ResamplerSpec, (768, 1280, 16)),
    Variant("ip-adapter-plus-face_sd15", "sd1", ResamplerSpec, (768, 1280, 16), _FACE),
    Variant("ip-composition-adapter_sd15", "sd1", ResamplerSpec, (768, 1280, 16), _COMPOSITION),
    Variant("ip-adapter-full-face_sd15", "sd1", MLPSpec, (768, 1280, 257)),
    Variant("ip-adapter_sdxl", "sdxl", LinearSpec, (2048, 1280, 4)),
    Variant("ip-adapter_sdxl_vit-h", "sdxl", LinearSpec, (2048, 1024, 4)),
    Variant("ip-adapter-plus_sdxl_vit-h", "sdxl", ResamplerSpec, (2048, 1280, 16)),
    Variant("ip-adapter-plus-face_sdxl_vit-h", "sdxl", ResamplerSpec, (2048, 1280, 16), _FACE),
    Variant("ip-composition-adapter_sdxl", "sdxl", ResamplerSpec, (2048, 1280, 16), _COMPOSITION),
    Variant("kolors-ip-adapter-plus", "kolors", ResamplerSpec, (2048, 1024, 16)),
    Variant("ip-adapter-faceid_sd15", "sd1", PooledMLPSpec, (768, FACE_WIDTH, 4)),
    Variant("ip-adapter-faceid-portrait_sd15", "sd1", PooledMLPSpec, (768, FACE_WIDTH, 16)),
    Variant("ip-adapter-faceid-portrait-v11_sd15", "sd1", PooledMLPSpec, (768, FACE_WIDTH, 16), "portrait.?v11"),
    Variant("ip-adapter-faceid-plusv2_sd15", "sd1", FacePlusSpec, (768, FACE_WIDTH, 4), "plus.?v2"),
    Variant(
        "ip-adapter-faceid-plus_sd15",
        "sd1",
        FacePlusSpec,
        (768, FACE_WIDTH, 4),
        "face.?id.?plus(?!.?v2)",
        {"shortcut": False},
    ),
    Variant("ip-adapter-faceid_sdxl", "sdxl", PooledMLPSpec, (2048, FACE_WIDTH, 4)),
    Variant("ip-adapter-faceid-portrait_sdxl", "sdxl", PooledMLPSpec, (2048, FACE_WIDTH, 16)),
    Variant("ip-adapter-faceid-plusv2_sdxl", "sdxl", FacePlusSpec, (2048, FACE_WIDTH, 4)),
    Variant("instantid-ip-adapter", "sdxl", ResamplerSpec, (2048, FACE_WIDTH, 16), "instant.?id", _ANTELOPE | _RAW),
    Variant("ip-adapter-faceid-portrait_sdxl_unnorm", "sdxl", ResamplerSpec, (2048, FACE_WIDTH, 16), "unnorm", _RAW),
    Variant("kolors-ip-adapter-faceid-plus", "kolors-text", FacePlusSpec, (4096, FACE_WIDTH, 6), "", _ANTELOPE),
    Variant("flux-ip-adapter", "flux-xlabs", LinearSpec, (4096, 768, 4)),
    Variant("flux-ip-adapter-v2", "flux-xlabs", LinearSpec, (4096, 768, 16)),
    Variant("flux.1-dev-ip-adapter", "flux-instantx", PooledMLPSpec, (4096, 1152, 128)),
    Variant("sd3.5-large-ip-adapter", "sd3-instantx", TimeResamplerSpec, (2432, 1152, 64)),
    Variant("pulid_v1", "sdxl", TokensSpec, (2048, 2048, 10)),
    Variant("pulid_v1.1", "sdxl", TokensSpec, (2048, 2048, 32)),
    Variant("pulid_flux_v0.9.1", "flux-pulid", TokensSpec, (2048, 2048, 32)),
    Variant("pulid_flux_v0.9.0", "flux-pulid", TokensSpec, (2048, 2048, 32), r"v?0\.9\.0"),
    Variant("csgo-content", "sdxl", ResamplerSpec, (2048, 1664, 4)),
    Variant("csgo-style", "sdxl", ResamplerSpec, (2048, 1664, 16)),
    Variant("csgo-style_4_32", "sdxl", ResamplerSpec, (2048, 1664, 32)),
)


def variants_of(family: str, projector: ProjectorSpec) -> tuple[Variant, ...]:
    """The published adapters with these sizes, the likeliest first, of a family as far as shapes tell it."""
    wanted = (family, type(projector), (projector.width, projector.feature_width, projector.num_tokens))
    return tuple(
        each for each in VARIANTS if (SAME_SHAPES.get(each.family, each.family), each.projector, each.sizes) == wanted
    )


def variant_names() -> tuple[str, ...]:
    """What `variant=` may be."""
    return tuple(each.name for each in VARIANTS)


def encoder_of(layer: Layer, width: int) -> str:
    """The encoder whose features have a width, or words for one that nobody has published with an adapter."""
    kinds = {
        "image_embeds": "an image encoder of projection width",
        "face_embeds": "a face network of width",
        "tokens": "an encoder that makes tokens of width",
    }
    return ENCODERS.get((layer, width), f"{kinds.get(layer, 'an image encoder of hidden width')} {width}")


def features_of(projector: ProjectorSpec) -> tuple[FeatureSpec, FeatureSpec | None]:
    """What a projector reads, by its kind and widths: features, and those of the aligned face where it reads them."""
    width, crop = projector.feature_width, None
    match projector:
        case LinearSpec():
            layer: Layer = "image_embeds"
        case PooledMLPSpec():
            layer = "face_embeds" if width == FACE_WIDTH else "image_embeds"
        case FacePlusSpec():
            layer, crop = "face_embeds", _hidden(projector.crop_width)
        case TokensSpec():
            layer = "tokens"
        case ResamplerSpec() if width == FACE_WIDTH:
            # A resampler of face embeddings: both that are published read them as the network gives them.
            return FeatureSpec(layer="face_embeds", width=width, encoder=BUFFALO, normalised=False), None
        case _:
            return _hidden(width), None
    return FeatureSpec(layer=layer, width=width, encoder=encoder_of(layer, width)), crop


def _hidden(width: int) -> FeatureSpec:
    return FeatureSpec(layer="hidden_states", index=-2, width=width, encoder=encoder_of("hidden_states", width))
