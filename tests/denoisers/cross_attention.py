"""Image models whose text reaches the picture through a cross-attention of its own, and the blocks that UNets hold."""

import torch
from torch import Tensor

from tests.denoisers.table import Arguments, Config, Denoiser, Draw

HEIGHT, WIDTH, PATCH = 2, 3, 2  # tokens of the picture, and latent pixels of a token's side
TEXT, TEXT_WIDTH, CHANNELS, HEADS, HEAD = 5, 12, 4, 2, 8
WIDE = HEADS * HEAD

SIZES: Config = {
    "in_channels": CHANNELS,
    "num_layers": 2,
    "attention_head_dim": HEAD,
    "num_attention_heads": HEADS,
}


def latents(draw: Draw) -> Tensor:
    return draw(CHANNELS, PATCH * HEIGHT, PATCH * WIDTH)


def picture(draw: Draw, *, time: float = 500.0) -> Arguments:
    return {
        "hidden_states": latents(draw),
        "encoder_hidden_states": draw(TEXT, TEXT_WIDTH),
        "timestep": draw.each(time),
    }


def _pixart(draw: Draw) -> Arguments:
    sizes = {"resolution": torch.tensor([[32.0, 48.0]]).repeat(draw.rows, 1), "aspect_ratio": draw.each(1.5)[:, None]}
    return {**picture(draw), "encoder_attention_mask": draw.mask(TEXT), "added_cond_kwargs": sizes}


def _sana(draw: Draw) -> Arguments:
    return {**picture(draw), "encoder_attention_mask": draw.mask(TEXT)}


def _rotary(width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines for every token."""
    angles = torch.arange(HEIGHT * WIDTH)[:, None] * 10.0 ** -torch.linspace(0, 2, width // 2)
    both = angles.repeat_interleave(2, dim=1)
    return both.cos(), both.sin()


def _hunyuan(draw: Draw) -> Arguments:
    return {
        **picture(draw),
        "text_embedding_mask": draw.mask(TEXT),
        "encoder_hidden_states_t5": draw(4, 16),
        "text_embedding_mask_t5": draw.mask(4),
        "image_meta_size": torch.tensor([[32.0, 48.0, 32.0, 48.0, 0.0, 0.0]]).repeat(draw.rows, 1),
        "style": torch.zeros(draw.rows, dtype=torch.long),
        "image_rotary_emb": _rotary(HEAD),
    }


def _lumina(draw: Draw) -> Arguments:
    angles = torch.arange(64.0).reshape(8, 8, 1) * 10.0 ** -torch.linspace(0, 2, HEAD // 2)
    return {
        **picture(draw, time=0.5),
        "encoder_mask": draw.mask(TEXT),
        "cross_attention_kwargs": {},
        "image_rotary_emb": torch.polar(torch.ones_like(angles), angles),
    }


def _kandinsky5(draw: Draw) -> Arguments:
    """Channels come last."""
    return {
        "hidden_states": draw(1, PATCH * HEIGHT, PATCH * WIDTH, CHANNELS),
        "encoder_hidden_states": draw(TEXT, TEXT_WIDTH),
        "pooled_projections": draw(10),
        "timestep": draw.each(500.0),
        "visual_rope_pos": tuple(torch.arange(size) for size in (1, HEIGHT, WIDTH)),
        "text_rope_pos": torch.arange(TEXT),
    }


def _block(draw: Draw) -> Arguments:
    """One place inside a UNet."""
    return {"hidden_states": draw(WIDE, HEIGHT, WIDTH), "encoder_hidden_states": draw(TEXT, TEXT_WIDTH)}


_BLOCK: Config = {**SIZES, "in_channels": WIDE, "norm_num_groups": 4, "cross_attention_dim": TEXT_WIDTH}

CROSS_ATTENTION: tuple[Denoiser, ...] = (
    Denoiser(
        "PixArtTransformer2DModel",
        {
            **SIZES,
            "attention_head_dim": 12,  # a third of the width is for the picture's size
            "out_channels": 2 * CHANNELS,
            "cross_attention_dim": 24,
            "sample_size": 8,
            "patch_size": PATCH,
            "caption_channels": TEXT_WIDTH,
            "use_additional_conditions": True,
        },
        _pixart,
    ),
    Denoiser(
        "SanaTransformer2DModel",
        {
            **SIZES,
            "out_channels": CHANNELS,
            "num_cross_attention_heads": 4,
            "cross_attention_head_dim": 4,
            "cross_attention_dim": WIDE,
            "caption_channels": TEXT_WIDTH,
            "sample_size": 8,
            "patch_size": PATCH,
            "qk_norm": "rms_norm_across_heads",
        },
        _sana,
    ),
    Denoiser(
        "HunyuanDiT2DModel",
        {
            **SIZES,
            "num_layers": 4,
            "patch_size": PATCH,
            "sample_size": 8,
            "hidden_size": WIDE,
            "mlp_ratio": 2.0,
            "cross_attention_dim": TEXT_WIDTH,
            "cross_attention_dim_t5": 16,
            "pooled_projection_dim": 6,
            "text_len": TEXT,
            "text_len_t5": 4,
        },
        _hunyuan,
    ),
    Denoiser(
        "LuminaNextDiT2DModel",
        {
            "sample_size": 8,
            "patch_size": PATCH,
            "in_channels": CHANNELS,
            "hidden_size": WIDE,
            "num_layers": 2,
            "num_attention_heads": HEADS,
            "num_kv_heads": 1,
            "multiple_of": 8,
            "cross_attention_dim": TEXT_WIDTH,
        },
        _lumina,
    ),
    Denoiser(
        "Kandinsky5Transformer3DModel",
        {
            "in_visual_dim": CHANNELS,
            "in_text_dim": TEXT_WIDTH,
            "in_text_dim2": 10,
            "time_dim": 8,
            "out_visual_dim": CHANNELS,
            "patch_size": (1, PATCH, PATCH),
            "model_dim": WIDE,
            "ff_dim": 16,
            "num_text_blocks": 2,
            "num_visual_blocks": 2,
            "axes_dims": (2, 2, 4),
        },
        _kandinsky5,
    ),
    Denoiser(
        "DiTTransformer2DModel",
        {**SIZES, "out_channels": CHANNELS, "sample_size": 8, "patch_size": PATCH, "num_embeds_ada_norm": 10},
        lambda draw: {
            "hidden_states": draw(CHANNELS, 4, 4),  # it makes squares alone
            "timestep": draw.each(500),
            "class_labels": draw.integers(10),
        },
    ),
    Denoiser(
        "PriorTransformer",
        {
            "num_attention_heads": HEADS,
            "attention_head_dim": HEAD,
            "num_layers": 2,
            "embedding_dim": TEXT_WIDTH,
            "num_embeddings": TEXT,
        },
        lambda draw: {
            "hidden_states": draw(TEXT_WIDTH),
            "timestep": draw.each(500),
            "proj_embedding": draw(TEXT_WIDTH),
            "encoder_hidden_states": draw(TEXT, TEXT_WIDTH),
            "attention_mask": draw.mask(TEXT),
        },
        output=lambda result: result.predicted_image_embedding,
    ),
    Denoiser(
        "Transformer2DModel",
        _BLOCK,
        lambda draw: {**_block(draw), "return_dict": False},  # its result class warns of its own deprecation
        output=lambda result: result[0],
    ),
    Denoiser(
        "DreamLiteTransformer2DModel",
        {**_BLOCK, "qk_norm": "rms_norm"},
        lambda draw: {**_block(draw), "return_dict": False},
        output=lambda result: result[0],
    ),
    Denoiser(
        "DualTransformer2DModel",
        _BLOCK,
        lambda draw: {**_block(draw), "encoder_hidden_states": draw(77 + 257, TEXT_WIDTH)},  # two fixed lengths
    ),
    Denoiser(
        "TransformerTemporalModel",
        {**SIZES, "in_channels": WIDE, "norm_num_groups": 4},
        lambda draw: {"hidden_states": draw(2, WIDE, HEIGHT, WIDTH).flatten(0, 1), "num_frames": 2},
        output=lambda result: result.sample.unflatten(0, (-1, 2)),
    ),
)
