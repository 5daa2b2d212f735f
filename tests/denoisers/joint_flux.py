"""FLUX and what descends from it: packed tokens, double blocks and then single ones."""

import torch
from torch import Tensor

from tests.denoisers.table import Arguments, Config, Denoiser, Draw

HEIGHT, WIDTH = 2, 3  # tokens of the picture
TOKENS = HEIGHT * WIDTH
TEXT = 5
TEXT_WIDTH, CHANNELS, HEADS, HEAD = 12, 6, 2, 8
WIDE = HEADS * HEAD

SIZES: Config = {
    "in_channels": CHANNELS,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": HEAD,
    "num_attention_heads": HEADS,
    "joint_attention_dim": TEXT_WIDTH,
}
FLUX: Config = {**SIZES, "patch_size": 1, "axes_dims_rope": (2, 2, 4)}


def grid(height: int = HEIGHT, width: int = WIDTH, *, number: int = 0, axes: int = 3, offset: int = 0) -> Tensor:
    """Position of every token [tokens, axes]: which picture, row, column, and a last zero if there are four."""
    rows = torch.arange(height).repeat_interleave(width) + offset
    columns = torch.arange(width).repeat(height) + offset
    ids = [torch.full_like(rows, number), rows, columns] + [torch.zeros_like(rows)] * (axes - 3)
    return torch.stack(ids, dim=1).float()


def text_ids(axes: int = 3) -> Tensor:
    return torch.zeros(TEXT, axes)


def flux(draw: Draw, *, time: float = 0.5) -> Arguments:
    return {
        "hidden_states": draw(TOKENS, CHANNELS),
        "encoder_hidden_states": draw(TEXT, TEXT_WIDTH),
        "timestep": draw.each(time),
        "img_ids": grid(),
        "txt_ids": text_ids(),
    }


def _flux(draw: Draw) -> Arguments:
    return {**flux(draw), "pooled_projections": draw(10), "guidance": draw.each(3.5)}


def _chroma(draw: Draw) -> Arguments:
    mask = torch.cat([draw.mask(TEXT), torch.ones(draw.rows, TOKENS, dtype=torch.bool)], dim=1)
    return {**flux(draw), "attention_mask": mask}


def _fibo(draw: Draw) -> Arguments:
    return {**flux(draw, time=500.0), "text_encoder_layers": [draw(TEXT, 10) for _ in range(4)]}


def _longcat(draw: Draw) -> Arguments:
    ids = torch.stack([torch.zeros(TEXT), torch.arange(TEXT), torch.arange(TEXT)], dim=1)
    return {**flux(draw), "img_ids": grid(number=1, offset=TEXT), "txt_ids": ids}


def _flux2(draw: Draw) -> Arguments:
    ids = {"img_ids": grid(axes=4), "txt_ids": text_ids(axes=4)}
    return {**flux(draw), "guidance": draw.each(4.0), **ids}


def _flux3(draw: Draw) -> Arguments:
    references = {"image_cond_hidden_states": draw(4, CHANNELS), "image_cond_ids": grid(2, 2, axes=4)}
    return {**flux(draw), "img_ids": grid(axes=4), "txt_ids": text_ids(axes=4), **references}


JOINT_FLUX: tuple[Denoiser, ...] = (
    Denoiser("FluxTransformer2DModel", {**FLUX, "pooled_projection_dim": 10, "guidance_embeds": True}, _flux),
    Denoiser(
        "Flux2Transformer2DModel",
        {**SIZES, "axes_dims_rope": (2, 2, 2, 2), "timestep_guidance_channels": 8},
        _flux2,
    ),
    Denoiser(
        "Flux3Transformer2DModel",
        {**SIZES, "cond_in_channels": CHANNELS, "axes_dims_rope": (2, 2, 2, 2), "timestep_channels": 8},
        _flux3,
    ),
    Denoiser(
        "ChromaTransformer2DModel",
        {**FLUX, "approximator_num_channels": 16, "approximator_hidden_dim": 16, "approximator_layers": 1},
        _chroma,
        warns="`FluxPosEmbed` is deprecated",
    ),
    Denoiser("BriaTransformer2DModel", {**FLUX, "axes_dims_rope": [2, 2, 4]}, lambda draw: flux(draw, time=500.0)),
    Denoiser("BriaFiboTransformer2DModel", {**FLUX, "axes_dims_rope": [2, 2, 4], "text_encoder_dim": 10}, _fibo),
    Denoiser("LongCatImageTransformer2DModel", {**FLUX, "pooled_projection_dim": TEXT_WIDTH}, _longcat),
    Denoiser("OvisImageTransformer2DModel", {**FLUX, "out_channels": CHANNELS}, flux),
)
