"""Image models that put text and picture into one sequence."""

import torch

from tests.denoisers.joint import (
    CHANNELS,
    HEAD,
    HEADS,
    HEIGHT,
    PATCH,
    SIZES,
    TEXT,
    TEXT_WIDTH,
    TOKENS,
    WIDE,
    WIDTH,
    latents,
    packed,
    picture,
    text,
)
from tests.denoisers.table import Arguments, Denoiser, Draw


def _z_image(draw: Draw) -> Arguments:
    """Lists; every row has a text of its own length."""
    captions = draw.separate(40, TEXT_WIDTH)
    return {
        "x": draw.separate(CHANNELS, 1, PATCH * HEIGHT, PATCH * WIDTH),
        "t": draw.each(0.5),
        "cap_feats": [caption[:length] for caption, length in zip(captions, draw.lengths(40), strict=True)],
        "patch_size": PATCH,
    }


def _lumina2(draw: Draw) -> Arguments:
    return {**picture(draw, time=0.5), "encoder_attention_mask": draw.mask(TEXT)}


def _krea2(draw: Draw) -> Arguments:
    rows = torch.arange(HEIGHT).repeat_interleave(WIDTH)
    columns = torch.arange(WIDTH).repeat(HEIGHT)
    image = torch.stack([torch.zeros(TOKENS), rows, columns], dim=1)
    return {
        "hidden_states": draw(TOKENS, CHANNELS),
        "encoder_hidden_states": draw(TEXT, 3, TEXT_WIDTH),  # three layers of the text encoder
        "encoder_attention_mask": draw.mask(TEXT),
        "timestep": draw.each(0.5),
        "position_ids": torch.cat([torch.zeros(TEXT, 3), image]),
    }


def _ideogram(draw: Draw) -> Arguments:
    """Text and picture share one sequence; an indicator tells which is which."""
    length = TEXT + TOKENS
    places = torch.arange(length)[:, None].repeat(1, 3).repeat(draw.rows, 1, 1)
    return {
        "hidden_states": draw(length, CHANNELS),
        "encoder_hidden_states": text(draw, length),
        "timestep": draw.each(0.5),
        "position_ids": places,
        "segment_ids": torch.ones(draw.rows, length, dtype=torch.long),
        "indicator": torch.tensor([3] * TEXT + [2] * TOKENS).repeat(draw.rows, 1),
    }


def _ernie(draw: Draw) -> Arguments:
    return {
        "hidden_states": latents(draw),
        "timestep": draw.each(500.0),
        "text_bth": text(draw),
        "text_lens": torch.tensor(draw.lengths(TEXT)),
    }


def _omnigen(draw: Draw) -> Arguments:
    length = TEXT + 1 + TOKENS  # text, the time, the picture
    return {
        "hidden_states": latents(draw),
        "timestep": draw.each(0.5),
        "input_ids": draw.integers(20, TEXT),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": torch.ones(draw.rows, length, length),
        "position_ids": torch.arange(length).repeat(draw.rows, 1),
    }


def _prx(draw: Draw) -> Arguments:
    return {**picture(draw, time=0.5), "attention_mask": draw.mask(TEXT)}


def _nucleus(draw: Draw) -> Arguments:
    shapes = [(1, HEIGHT, WIDTH)] * draw.rows
    return {**packed(draw), "encoder_hidden_states_mask": draw.mask(TEXT), "img_shapes": shapes}


def _fibo2(draw: Draw) -> Arguments:
    """The text of the perceiver, and that of one cross-attention; a reference picture."""
    return {
        "hidden_states": latents(draw),
        "timestep": draw.each(0.5),
        "encoder_hidden_states": draw(2, TEXT, TEXT_WIDTH),
        "encoder_attention_mask": draw.mask(TEXT),
        "context_latents": [latents(draw)],
    }


JOINT_SINGLE: tuple[Denoiser, ...] = (
    Denoiser(
        "ZImageTransformer2DModel",
        {
            "all_patch_size": (PATCH,),
            "in_channels": CHANNELS,
            "dim": WIDE,
            "n_layers": 2,
            "n_refiner_layers": 2,
            "n_heads": HEADS,
            "n_kv_heads": HEADS,
            "cap_feat_dim": TEXT_WIDTH,
            "axes_dims": [4, 2, 2],
            "axes_lens": [128, 16, 16],
        },
        _z_image,
        output=lambda result: torch.stack(result.sample),
    ),
    Denoiser(
        "Lumina2Transformer2DModel",
        {
            "sample_size": 8,
            "patch_size": PATCH,
            "in_channels": CHANNELS,
            "hidden_size": WIDE,
            "num_layers": 2,
            "num_refiner_layers": 2,
            "num_attention_heads": HEADS,
            "num_kv_heads": 1,
            "multiple_of": 8,
            "axes_dim_rope": (4, 2, 2),
            "axes_lens": (16, 16, 16),
            "cap_feat_dim": TEXT_WIDTH,
        },
        _lumina2,
    ),
    Denoiser(
        "Krea2Transformer2DModel",
        {
            **SIZES,
            "num_key_value_heads": 1,
            "intermediate_size": 16,
            "timestep_embed_dim": 8,
            "text_hidden_dim": TEXT_WIDTH,
            "num_text_layers": 3,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 1,
            "text_intermediate_size": 16,
            "axes_dims_rope": (4, 2, 2),
        },
        _krea2,
    ),
    Denoiser(
        "Ideogram4Transformer2DModel",
        {
            **SIZES,
            "intermediate_size": 16,
            "adaln_dim": 8,
            "llm_features_dim": TEXT_WIDTH,
            "mrope_section": (2, 1, 1),
        },
        _ideogram,
    ),
    Denoiser(
        "ErnieImageTransformer2DModel",
        {
            "hidden_size": WIDE,
            "num_attention_heads": HEADS,
            "num_layers": 2,
            "ffn_hidden_size": 16,
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "patch_size": PATCH,
            "text_in_dim": TEXT_WIDTH,
            "rope_axes_dim": (4, 2, 2),
        },
        _ernie,
    ),
    Denoiser(
        "OmniGenTransformer2DModel",
        {
            "in_channels": CHANNELS,
            "hidden_size": WIDE,
            "num_attention_heads": HEADS,
            "num_key_value_heads": 1,
            "intermediate_size": 16,
            "num_layers": 2,
            "pad_token_id": 0,
            "vocab_size": 20,
            "rope_scaling": {"short_factor": [1.0] * (HEAD // 2), "long_factor": [1.0] * (HEAD // 2)},
            "pos_embed_max_size": 8,
            "time_step_dim": 8,
        },
        _omnigen,
    ),
    Denoiser(
        "PRXTransformer2DModel",
        {
            "in_channels": CHANNELS,
            "context_in_dim": TEXT_WIDTH,
            "hidden_size": WIDE,
            "num_heads": HEADS,
            "depth": 2,
            "axes_dim": [4, 4],
        },
        _prx,
    ),
    Denoiser(
        "NucleusMoEImageTransformer2DModel",
        {
            **SIZES,
            "out_channels": 2,
            "num_key_value_heads": 1,
            "joint_attention_dim": TEXT_WIDTH,
            "axes_dims_rope": (2, 2, 4),
            "mlp_ratio": 12.0,  # dense layers are as wide as the multiples of 128 that fit
            "dense_moe_strategy": "leave_first_block_dense",
            "num_experts": 3,
            "moe_intermediate_dim": 8,
            "capacity_factors": 1.0,
        },
        _nucleus,
    ),
    Denoiser(
        "BriaFibo2Transformer2DModel",
        {
            "in_channels": CHANNELS,
            "dim": 24,
            "n_layers": 2,
            "n_heads": 3,
            "cap_feat_dim": TEXT_WIDTH,
            "injection_layer_ids": (1,),
            "min_num_gist_tokens": 2,
            "max_num_gist_tokens": 4,
            "gist_step": 1,
            "gist_min_text_len": 2,
            "gist_max_text_len": 6,
            "axes_dims": (4, 2, 2),
            "axes_lens": (16, 16, 16),
        },
        _fibo2,
    ),
)
