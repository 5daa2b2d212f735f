"""The UNets: for pictures, for videos, and those that other models made of them."""

import torch
from torch import Tensor

from tests.denoisers.table import Arguments, Config, Denoiser, Draw

TEXT, TEXT_WIDTH, CHANNELS = 5, 12, 4
HEIGHT, WIDTH, FRAMES = 4, 6, 2


def text(draw: Draw) -> Tensor:
    return draw(TEXT, TEXT_WIDTH)


def picture(draw: Draw) -> Arguments:
    return {
        "sample": draw(CHANNELS, HEIGHT, WIDTH),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": text(draw),
    }


def video(draw: Draw) -> Arguments:
    return {**picture(draw), "sample": draw(CHANNELS, FRAMES, HEIGHT, WIDTH)}


def levels(down: str, plain_down: str, up: str, plain_up: str) -> Config:
    """Two levels, cross-attention on the first."""
    return {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "sample_size": HEIGHT,
        "block_out_channels": (8, 16),
        "down_block_types": (down, plain_down),
        "up_block_types": (plain_up, up),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": TEXT_WIDTH,
    }


PICTURE = levels("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
VIDEO = levels("CrossAttnDownBlock3D", "DownBlock3D", "CrossAttnUpBlock3D", "UpBlock3D")
MOTION = levels("CrossAttnDownBlockMotion", "DownBlockMotion", "CrossAttnUpBlockMotion", "UpBlockMotion")
SVD = levels(
    "CrossAttnDownBlockSpatioTemporal",
    "DownBlockSpatioTemporal",
    "CrossAttnUpBlockSpatioTemporal",
    "UpBlockSpatioTemporal",
)


def _motion(draw: Draw) -> Arguments:
    """A text for every frame."""
    inputs = video(draw)
    return {**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"].repeat_interleave(FRAMES, dim=0)}


def _svd(draw: Draw) -> Arguments:
    return {
        "sample": draw(FRAMES, 2 * CHANNELS, HEIGHT, WIDTH),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": draw(1, TEXT_WIDTH),  # of the first picture
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]]).repeat(draw.rows, 1),
    }


def _i2vgen(draw: Draw) -> Arguments:
    return {
        **video(draw),
        "fps": draw.each(16, torch.long),
        "image_latents": draw(CHANNELS, FRAMES, HEIGHT, WIDTH),
        "image_embeddings": draw(TEXT_WIDTH),
    }


def _control(draw: Draw) -> Arguments:
    return {**picture(draw), "controlnet_cond": draw(3, 8 * HEIGHT, 8 * WIDTH)}


def _dreamlite(draw: Draw) -> Arguments:
    return {**picture(draw), "encoder_attention_mask": draw.mask(TEXT)}


def _cascade(draw: Draw) -> Arguments:
    return {
        "sample": draw(CHANNELS, HEIGHT, WIDTH),
        "timestep_ratio": draw.each(0.5),
        "clip_text_pooled": draw(1, 6),
        "clip_text": text(draw),
        "clip_img": draw(1, 10),
    }


def _amused(draw: Draw) -> Arguments:
    return {
        "input_ids": draw.integers(10, HEIGHT, WIDTH),
        "encoder_hidden_states": text(draw),
        "pooled_text_emb": draw(6),
        "micro_conds": torch.tensor([[64.0, 96.0, 0.0, 0.0, 6.0]]).repeat(draw.rows, 1),
    }


def _audioldm2(draw: Draw) -> Arguments:
    return {**picture(draw), "encoder_hidden_states_1": draw(7, TEXT_WIDTH)}


UNETS: tuple[Denoiser, ...] = (
    Denoiser(
        "UNet1DModel",
        {
            "sample_size": 64,
            "extra_in_channels": 64,
            "block_out_channels": (32, 32, 32),  # attention has a head for every 32 channels
            "in_channels": 2,
            "out_channels": 2,
        },
        lambda draw: {"sample": draw(2, 64), "timestep": torch.tensor(500)},
    ),
    Denoiser(
        "UNet2DModel",
        {
            "sample_size": HEIGHT,
            "block_out_channels": (8, 16),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "attention_head_dim": 4,
        },
        lambda draw: {"sample": draw(3, HEIGHT, WIDTH), "timestep": torch.tensor(500)},
    ),
    Denoiser("UNet2DConditionModel", {**PICTURE, "attention_head_dim": 2}, picture),
    Denoiser("UNet3DConditionModel", {**VIDEO, "attention_head_dim": 4}, video),
    Denoiser("I2VGenXLUNet", {**VIDEO, "attention_head_dim": 4}, _i2vgen),
    Denoiser(
        "UNetMotionModel",
        {**MOTION, "num_attention_heads": 2, "motion_num_attention_heads": 2, "motion_max_seq_length": 4},
        _motion,
    ),
    Denoiser("MotionAdapter", reason="holds the weights of UNetMotionModel's motion modules, and cannot be called"),
    Denoiser(
        "UNetSpatioTemporalConditionModel",
        {
            **{key: value for key, value in SVD.items() if key != "norm_num_groups"},
            "in_channels": 2 * CHANNELS,
            "block_out_channels": (32, 32),  # groups of 32 channels are fixed
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 12,
            "num_attention_heads": (2, 2),
            "num_frames": FRAMES,
        },
        _svd,
    ),
    Denoiser(
        "UNetControlNetXSModel",
        {
            **{key: PICTURE[key] for key in ("down_block_types", "up_block_types", "block_out_channels")},
            "sample_size": HEIGHT,
            "norm_num_groups": 4,
            "cross_attention_dim": TEXT_WIDTH,
            "num_attention_heads": 2,
            "ctrl_conditioning_embedding_out_channels": (4, 4, 4, 4),
            "ctrl_block_out_channels": (4, 8),
            "ctrl_num_attention_heads": 2,
            "ctrl_max_norm_num_groups": 4,
            "ctrl_conditioning_channels": 3,
        },
        _control,
    ),
    Denoiser(
        "AudioLDM2UNet2DConditionModel",
        {**PICTURE, "attention_head_dim": 2, "cross_attention_dim": ((TEXT_WIDTH, TEXT_WIDTH),) * 2},
        _audioldm2,
    ),
    Denoiser(
        "DreamLiteUNetModel",
        {
            "sample_size": HEIGHT,
            "block_out_channels": (8, 16),
            "down_block_types": ("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
            "up_block_types": ("DreamLiteCrossAttnUpBlock2D", "DreamLiteCrossAttnNoSelfAttnUpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "cross_attention_dim": TEXT_WIDTH,
            "attention_head_dim": 2,
        },
        _dreamlite,
    ),
    Denoiser(
        "Kandinsky3UNet",
        {
            "time_embedding_dim": 16,
            "groups": 4,
            "attention_head_dim": 8,
            "layers_per_block": 2,  # it does not run with one
            "block_out_channels": (8, 8, 8, 8),
            "cross_attention_dim": 16,
            "encoder_hid_dim": TEXT_WIDTH,
        },
        lambda draw: {
            "sample": draw(CHANNELS, 8, 16),
            "timestep": torch.tensor(500),
            "encoder_hidden_states": text(draw),
            "encoder_attention_mask": draw.mask(TEXT, torch.float32),
        },
    ),
    Denoiser(
        "StableCascadeUNet",
        {
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "timestep_ratio_embedding_dim": 8,
            "conditioning_dim": 12,
            "block_out_channels": (8, 8),
            "num_attention_heads": (2, 2),
            "down_num_layers_per_block": (1, 2),
            "up_num_layers_per_block": (2, 1),
            "clip_text_in_channels": TEXT_WIDTH,
            "clip_text_pooled_in_channels": 6,
            "clip_image_in_channels": 10,
            "clip_seq": 2,
        },
        _cascade,
    ),
    Denoiser(
        "UVit2DModel",
        {
            "hidden_size": 16,
            "cond_embed_dim": 6,
            "micro_cond_encode_dim": 4,
            "micro_cond_embed_dim": 20,
            "encoder_hidden_size": TEXT_WIDTH,
            "vocab_size": 12,
            "codebook_size": 10,
            "in_channels": 8,
            "block_out_channels": 8,
            "num_res_blocks": 1,
            "block_num_heads": 2,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "sample_size": HEIGHT,
        },
        _amused,
        output=lambda result: result,
    ),
    Denoiser("UniDiffuserModel", reason="diffusers has deprecated its pipeline and keeps it only to load old files"),
)
