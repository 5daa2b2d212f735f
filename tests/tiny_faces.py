"""Adapters of faces in the layout of the published ones, narrow; hosts wide enough for them; and a face encoder.

Other programs count on heads of 64, four layers and, for FaceID, a hidden width that is a multiple of the embedding's:
so the text is 128 wide here. Face embeddings are 512 wide, by which a file tells that it reads faces.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.families.unet import attentions, find_sites
from imprompt.adapter.spec import (
    AdapterSpec,
    FacePlusSpec,
    FeatureSpec,
    LoraSpec,
    PooledMLPSpec,
    ProjectorSpec,
    ResamplerSpec,
)
from imprompt.encoders.face import FaceEncoder
from imprompt.encoders.face_base import DetectorSpec, EmbedderSpec, Face
from tests import tiny

TEXT, FACE, CROP, TEXT_STATES = 128, 512, tiny.VISION_WIDTH, 192
KINDS = ("faceid", "faceid-plus", "faceid-plusv2", "portrait", "portrait-unnorm")
WITH_LORA = ("faceid", "faceid-plus", "faceid-plusv2")

EMBEDDING = FeatureSpec(layer="face_embeds", width=FACE, encoder="tiny faces")
ASPECT = FeatureSpec(layer="hidden_states", index=-2, width=CROP, encoder="tiny CLIP")


def host(family: str = "sd1", **changes: Any) -> Any:
    kolors = {"encoder_hid_dim": TEXT_STATES} if family == "kolors" else {}
    return tiny.unet(family, **{"cross_attention_dim": TEXT, **kolors, **changes})


def pipeline(family: str = "sd1", **more: Any) -> Any:
    """A whole Stable Diffusion pipeline around such a host."""
    text: dict[str, Any] = {"text_encoder": tiny.text_encoder(width=TEXT)}
    if family == "sdxl":
        text = {
            "text_encoder": tiny.text_encoder(width=TEXT // 2),
            "text_encoder_2": tiny.text_encoder(width=TEXT // 2, projected=True, seed=15),
        }
    return tiny.pipeline(family=family, unet_changes={"cross_attention_dim": TEXT}, **text, **more)


def kolors_pipeline() -> Any:
    """Kolors without its text encoder: prompts come as embeddings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its text encoder is scripted, which torch deprecates
        from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline

    parts = {"vae": tiny.autoencoder(), "unet": host("kolors"), "scheduler": tiny.scheduler()}
    pipe = KolorsPipeline(**parts, text_encoder=None, tokenizer=None)  # pyright: ignore
    pipe.set_progress_bar_config(disable=True)
    return pipe


def kolors_text(rows: int = 1) -> dict[str, Tensor]:
    """What Kolors' text encoder would deliver, for both halves of guidance."""
    names = ("prompt_embeds", "negative_prompt_embeds")
    pooled = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return {
        **{name: tiny.rand(rows, tiny.TEXT_LENGTH, TEXT_STATES, seed=seed) for seed, name in enumerate(names, 30)},
        **{name: tiny.rand(rows, tiny.TEXT_WIDTH // 2, seed=seed) for seed, name in enumerate(pooled, 40)},
    }


def _resampler(features: int, text: int, tokens: int = 16) -> ResamplerSpec:
    sizes = {"inner_width": 16, "depth": 4, "num_heads": 2, "head_width": 64}
    return ResamplerSpec(feature_width=features, num_tokens=tokens, width=text, **sizes)


def _face_plus(width: int, *, shortcut: bool, tokens: int = 4) -> FacePlusSpec:
    return FacePlusSpec(
        feature_width=FACE,
        hidden_width=2 * FACE,
        crop_width=CROP,
        depth=4,
        head_width=64,
        num_tokens=tokens,
        width=width,
        shortcut=shortcut,
    )


def projector(kind: str, text: int = TEXT) -> ProjectorSpec:
    match kind:
        case "faceid" | "portrait":
            tokens = 4 if kind == "faceid" else 16
            return PooledMLPSpec(feature_width=FACE, hidden_width=2 * FACE, num_tokens=tokens, width=text)
        case "faceid-plus" | "faceid-plusv2":
            return _face_plus(text, shortcut=kind == "faceid-plusv2")
        case "kolors-faceid":
            return _face_plus(TEXT_STATES, shortcut=True, tokens=6)
        case "portrait-unnorm":
            return _resampler(FACE, text)
        case "csgo-content":
            return _resampler(CROP, text, tokens=4)
        case _:
            return _resampler(CROP, text)


def adapter(host: Any, kind: str, *, seed: int = 1, rank: int = 4) -> Adapter:
    """An adapter with random weights, all of whose parts have an effect."""
    spec = spec_of(host, kind, rank=rank)

    def build() -> Adapter:
        fresh = Adapter(spec)
        for parameter in fresh.parameters():
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 1
            nn.init.normal_(parameter, std=fan_in**-0.5)
        return fresh

    return tiny.seeded(build, seed)


def spec_of(host: Any, kind: str, *, rank: int = 4) -> AdapterSpec:
    text = host.config.cross_attention_dim
    made = projector(kind, text)
    reads_faces = made.feature_width == FACE
    block = {"csgo-content": "down_blocks", "csgo-style": "up_blocks"}.get(kind, "")
    sites = [site for site in find_sites(host) if site.name.startswith(block)]
    is_kolors = kind == "kolors-faceid"
    return AdapterSpec(
        name=f"tiny-{kind}",
        family="kolors-text" if is_kolors else "unet",
        projector=made,
        features=FeatureSpec(
            layer="face_embeds", width=FACE, encoder="tiny faces", normalised=not kind.endswith("unnorm")
        )
        if reads_faces
        else ASPECT,
        null_image="zero_pixels" if kind == "plus" else "zero_features",
        cross_attention_dim=text,
        site_indices=tuple(site.index for site in sites),
        site_widths=tuple(site.query_width for site in sites),
        face_crop=ASPECT if isinstance(made, FacePlusSpec) else None,
        null_crop="zero_features" if is_kolors else "zero_pixels",
        lora=lora_spec(host, rank) if kind in WITH_LORA else None,
        is_partial=bool(block),
    )


def lora_spec(host: Any, rank: int) -> LoraSpec:
    found = list(enumerate(module for _, module in attentions(host)))
    return LoraSpec(
        rank=rank,
        indices=tuple(index for index, _ in found),
        widths=tuple(module.to_q.out_features for _, module in found),
        key_widths=tuple(module.to_k.in_features for _, module in found),
    )


# Faces ---------------------------------------------------------------------------------------------------------------


class Corners:
    """A detector: a face in every quarter of the picture that is not of one colour; counts the pictures it is shown."""

    def __init__(self) -> None:
        self.spec = DetectorSpec("corners", "none", "corners:1", 0.5)
        self.num_pictures = 0

    def detect(self, image: Image.Image) -> list[Face]:
        self.num_pictures += 1
        width, height = image.size[0] / 2, image.size[1] / 2
        corners = [(x * width, y * height) for x in (0, 1) for y in (0, 1)]
        return [
            self._face(x, y, width, height)
            for x, y in corners
            if np.ptp(np.asarray(image.crop((int(x), int(y), int(x + width), int(y + height)))).reshape(-1, 3), 0).any()
        ]

    @staticmethod
    def _face(x: float, y: float, width: float, height: float) -> Face:
        relative = np.array([(0.35, 0.4), (0.65, 0.4), (0.5, 0.55), (0.4, 0.75), (0.6, 0.75)])
        keypoints = relative * (width, height) + (x, y)
        return Face(np.array([x, y, x + width, y + height + x]), keypoints, 0.9)


class Cells:
    """An embedder: mean colours of cells, mixed."""

    def __init__(self, width: int = FACE, name: str = "cells") -> None:
        self.spec = EmbedderSpec(name, "none", f"{name}:{width}", 112, width)

    def embed(self, crops: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([torch.from_numpy(np.array(crop)).float() / 127.5 - 1 for crop in crops])
        cells = pixels.unflatten(1, (4, 28)).unflatten(3, (4, 28)).mean((2, 4)).flatten(1)
        return cells @ tiny.rand(cells.shape[1], self.spec.width, seed=60)


def faces(**options: Any) -> FaceEncoder:
    return FaceEncoder(Corners(), Cells(options.pop("width", FACE)), **options)


def portrait(*seeds: int) -> Image.Image:
    """A picture with a face in as many corners as there are seeds, the others being white."""
    picture = Image.new("RGB", (128, 128), "white")
    for place, seed in enumerate(seeds):
        picture.paste(tiny.picture(seed=seed, size=(64, 64)), (64 * (place // 2), 64 * (place % 2)))
    return picture
