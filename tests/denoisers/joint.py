"""Image models in which text and picture, each a stream of its own, attend to one another; FLUX's kin aside."""

import torch
from torch import Tensor

from tests.denoisers.table import Arguments, Config, Denoiser, Draw

HEIGHT, WIDTH = 2, 3  # tokens of the picture
TOKENS = HEIGHT * WIDTH
PATCH = 2  # latent pixels of a token's side, where a model patches for itself
TEXT = 5
TEXT_WIDTH, CHANNELS, HEADS, HEAD = 12, 4, 2, 8
WIDE = HEADS * HEAD

SIZES: Config = {
    "in_channels": CHANNELS,
    "num_layers": 2,
    "attention_head_dim": HEAD,
    "num_attention_heads": HEADS,
}


def latents(draw: Draw, patch: int = PATCH) -> Tensor:
    return draw(CHANNELS, patch * HEIGHT, patch * WIDTH)


def text(draw: Draw, length: int = TEXT) -> Tensor:
    return draw(length, TEXT_WIDTH)


def picture(draw: Draw, *, time: float = 500.0, patch: int = PATCH) -> Arguments:
    return {
        "hidden_states": latents(draw, patch),
        "encoder_hidden_states": text(draw),
        "timestep": draw.each(time),
    }


def packed(draw: Draw, *, time: float = 0.5) -> Arguments:
    return {
        "hidden_states": draw(TOKENS, CHANNELS),
        "encoder_hidden_states": text(draw),
        "timestep": draw.each(time),
    }


def _qwen(draw: Draw) -> Arguments:
    shapes = [[(1, HEIGHT, WIDTH)]] * draw.rows
    return {**packed(draw), "encoder_hidden_states_mask": draw.mask(TEXT), "img_shapes": shapes}


def _qwen21(draw: Draw) -> Arguments:
    """Text, a reference picture, text, and the picture to make, whose tokens come four to a slot."""
    reference, target = (1, 2, 2), (1, 2, 4)
    slots = torch.tensor([False, False, True, False, False, True, True]).repeat(draw.rows, 1)
    return {
        "hidden_states": draw(12, CHANNELS),
        "encoder_hidden_states": text(draw),  # with a place for the reference
        "encoder_hidden_states_mask": torch.ones(draw.rows, TEXT, dtype=torch.bool),
        "timestep": draw.each(0.5),
        "img_shapes": [[reference, target]] * draw.rows,
        "img_mask": slots,
    }


def _glm(draw: Draw) -> Arguments:
    sizes = torch.tensor([[32.0, 48.0]]).repeat(draw.rows, 1)
    return {
        **picture(draw),
        "prior_token_id": draw.integers(9, TOKENS),
        "prior_token_drop": torch.zeros(draw.rows, TOKENS, dtype=torch.bool),
        "target_size": sizes,
        "crop_coords": torch.zeros(draw.rows, 2),
    }


def _cogview(draw: Draw) -> Arguments:
    sizes = torch.tensor([[32.0, 48.0]]).repeat(draw.rows, 1)
    return {
        **picture(draw),
        "original_size": sizes,
        "target_size": sizes,
        "crop_coords": torch.zeros(draw.rows, 2),
    }


def _hidream(draw: Draw) -> Arguments:
    llama = torch.stack([text(draw) for _ in range(3)])  # the text encoder's layers come before the rows
    return {
        "hidden_states": latents(draw),
        "timesteps": draw.each(500.0),
        "encoder_hidden_states_t5": draw(4, 10),
        "encoder_hidden_states_llama3": llama,
        "pooled_embeds": draw(6),
    }


def _joy_plus(draw: Draw) -> Arguments:
    """Patches of a target of 2 by 3 and of a reference of 2 by 2, and one of padding."""
    return {
        "hidden_states": draw(11, CHANNELS, 1, PATCH, PATCH),
        "timestep": draw.each(500.0),
        "encoder_hidden_states": text(draw),
        "encoder_hidden_states_mask": draw.mask(TEXT, torch.float32),
        "shape_list": [[(1, HEIGHT, WIDTH), (1, 2, 2)]] * draw.rows,
    }


_COGVIEW: Config = {
    **SIZES,
    "out_channels": CHANNELS,
    "patch_size": PATCH,
    "text_embed_dim": TEXT_WIDTH,
    "time_embed_dim": 8,
    "condition_dim": 4,
}
_JOY: Config = {
    "patch_size": [1, PATCH, PATCH],
    "in_channels": CHANNELS,
    "hidden_size": WIDE,
    "num_attention_heads": HEADS,
    "text_dim": TEXT_WIDTH,
    "num_layers": 2,
    "rope_dim_list": [2, 2, 4],
}

JOINT: tuple[Denoiser, ...] = (
    Denoiser(
        "SD3Transformer2DModel",
        {
            **SIZES,
            "sample_size": 8,
            "out_channels": CHANNELS,
            "num_layers": 3,
            "joint_attention_dim": TEXT_WIDTH,
            "caption_projection_dim": WIDE,
            "pooled_projection_dim": 10,
            "pos_embed_max_size": 8,
            "dual_attention_layers": (0, 1),
            "qk_norm": "rms_norm",
        },
        lambda draw: {**picture(draw), "pooled_projections": draw(10)},
    ),
    Denoiser(
        "QwenImageTransformer2DModel",
        {**SIZES, "joint_attention_dim": TEXT_WIDTH, "axes_dims_rope": (2, 2, 4), "out_channels": 2},
        _qwen,
    ),
    Denoiser(
        "QwenImage21Transformer2DModel",
        {**SIZES, "context_in_dim": TEXT_WIDTH, "axes_dims_rope": (2, 2, 4), "out_channels": CHANNELS, "mlp_ratio": 2},
        _qwen21,
    ),
    Denoiser(
        "AuraFlowTransformer2DModel",
        {
            "sample_size": 8,
            "in_channels": CHANNELS,
            "num_mmdit_layers": 2,
            "num_single_dit_layers": 2,
            "attention_head_dim": HEAD,
            "num_attention_heads": HEADS,
            "joint_attention_dim": TEXT_WIDTH,
            "caption_projection_dim": WIDE,
            "pos_embed_max_size": 16,
        },
        lambda draw: picture(draw, time=0.5),
    ),
    Denoiser(
        "HunyuanImageTransformer2DModel",
        {
            **SIZES,
            "out_channels": CHANNELS,
            "num_single_layers": 2,
            "num_refiner_layers": 2,
            "patch_size": (PATCH, PATCH),
            "text_embed_dim": TEXT_WIDTH,
            "rope_axes_dim": (4, 4),
        },
        lambda draw: {**picture(draw), "encoder_attention_mask": draw.mask(TEXT)},
    ),
    Denoiser(
        "HiDreamImageTransformer2DModel",
        {
            **SIZES,
            "patch_size": PATCH,
            "num_layers": 2,
            "num_single_layers": 1,
            "caption_channels": [10, TEXT_WIDTH],
            "text_emb_dim": 6,
            "axes_dims_rope": (4, 2, 2),
            "max_resolution": (8, 8),
            "llama_layers": [0, 1, 2],
        },
        _hidream,
    ),
    Denoiser("CogView3PlusTransformer2DModel", {**_COGVIEW, "pos_embed_max_size": 8, "sample_size": 8}, _cogview),
    Denoiser("CogView4Transformer2DModel", {**_COGVIEW, "rope_axes_dim": (8, 8)}, _cogview),
    Denoiser("GlmImageTransformer2DModel", {**_COGVIEW, "prior_vq_quantizer_codebook_size": 9}, _glm),
    Denoiser(
        "JoyImageEditTransformer3DModel",
        _JOY,
        lambda draw: {
            "hidden_states": draw(
                2, CHANNELS, 1, PATCH * HEIGHT, PATCH * WIDTH
            ),  # a reference, and the picture to make
            "timestep": draw.each(500.0),
            "encoder_hidden_states": text(draw),
        },
    ),
    Denoiser("JoyImageEditPlusTransformer3DModel", _JOY, _joy_plus),
)
