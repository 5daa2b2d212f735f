"""Video models that attend to text and frames together, and one that makes frames larger."""

import torch
from torch import Tensor

from tests.denoisers.table import Arguments, Config, Denoiser, Draw

FRAMES, HEIGHT, WIDTH, PATCH = 2, 2, 3, 2  # tokens of the video, and latent pixels of a token's side
TOKENS = FRAMES * HEIGHT * WIDTH
TEXT, TEXT_WIDTH, CHANNELS, HEADS, HEAD = 5, 12, 4, 2, 12
WIDE = HEADS * HEAD

SIZES: Config = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_layers": 2,
    "attention_head_dim": HEAD,
    "num_attention_heads": HEADS,
}


def video(draw: Draw) -> Arguments:
    return {
        "hidden_states": draw(CHANNELS, FRAMES, PATCH * HEIGHT, PATCH * WIDTH),
        "encoder_hidden_states": draw(TEXT, TEXT_WIDTH),
        "timestep": draw.each(500.0),
    }


def masked(draw: Draw) -> Arguments:
    return {**video(draw), "encoder_attention_mask": draw.mask(TEXT)}


def rotary() -> tuple[Tensor, Tensor]:
    """Cosines and sines for every token of the video."""
    angles = torch.arange(TOKENS)[:, None] * 10.0 ** -torch.linspace(0, 2, HEAD // 2)
    both = angles.repeat_interleave(2, dim=1)
    return both.cos(), both.sin()


def _cogvideo(draw: Draw) -> Arguments:
    frames = draw(FRAMES, CHANNELS, PATCH * HEIGHT, PATCH * WIDTH)
    return {**video(draw), "hidden_states": frames, "image_rotary_emb": rotary()}


def _hunyuan(draw: Draw) -> Arguments:
    return {**masked(draw), "pooled_projections": draw(10), "guidance": draw.each(6.0)}


def _framepack(draw: Draw) -> Arguments:
    """Two frames to make, and one, two and four that came before, each more coarsely."""

    def frames(count: int) -> Tensor:
        return draw(CHANNELS, count, PATCH * HEIGHT, PATCH * WIDTH)

    return {
        **_hunyuan(draw),
        "image_embeds": draw(3, 10),
        "indices_latents": torch.tensor([7, 8]),
        "latents_clean": frames(1),
        "indices_latents_clean": torch.tensor([6]),
        "latents_history_2x": frames(2),
        "indices_latents_history_2x": torch.tensor([4, 5]),
        "latents_history_4x": frames(4),
        "indices_latents_history_4x": torch.tensor([0, 1, 2, 3]),
    }


def _hunyuan15(draw: Draw) -> Arguments:
    return {
        **masked(draw),
        "encoder_hidden_states_2": draw(4, 10),
        "encoder_attention_mask_2": draw.mask(4),
        "image_embeds": draw(3, 10),
    }


def _minimax(draw: Draw) -> Arguments:
    """Text, frames and sound share one sequence; what each place of it holds is the same for all rows."""
    sounds = 4
    length = TEXT + TOKENS + sounds
    text, frames, sound = torch.arange(length).split([TEXT, TOKENS, sounds])
    return {
        "hidden_states": draw(TOKENS, CHANNELS * PATCH * PATCH),
        "audio_hidden_states": draw(sounds, 6),
        "encoder_hidden_states": draw(TEXT, TEXT_WIDTH),
        "timestep": torch.tensor([0.0, 0.5]),  # of the text, and of the rest
        "timestep_indices": torch.tensor([0] * TEXT + [1] * (TOKENS + sounds)),
        "token_tags": torch.tensor([0] * TEXT + [1] * TOKENS + [2] * sounds),
        "position_ids": torch.arange(length)[:, None].repeat(1, 3),
        "video_indices": frames,
        "audio_indices": sound,
        "text_indices": text,
    }


def _cosmos3(draw: Draw) -> Arguments:
    """A single row: all of its tokens are packed into one sequence without a batch."""
    length = TEXT + TOKENS
    places = torch.arange(TEXT, length)
    return {
        "input_ids": draw.integers(20, TEXT)[0],
        "text_indexes": torch.arange(TEXT),
        "position_ids": torch.arange(length).repeat(3, 1),
        "und_len": TEXT,
        "sequence_length": length,
        "vision_tokens": [draw(CHANNELS, FRAMES, PATCH * HEIGHT, PATCH * WIDTH)],
        "vision_token_shapes": [(FRAMES, HEIGHT, WIDTH)],
        "vision_sequence_indexes": places,
        "vision_mse_loss_indexes": places,
        "vision_timesteps": torch.full((TOKENS,), 500.0),
        "vision_noisy_frame_indexes": [torch.arange(FRAMES)],
    }


def _world(draw: Draw) -> Arguments:
    return {
        "hidden_states": draw(CHANNELS, FRAMES, HEIGHT, WIDTH),
        "timestep": torch.full((draw.rows, 1, FRAMES), 500.0),
        "encoder_hidden_states": draw(1, TEXT, TEXT_WIDTH),
        "encoder_attention_mask": draw.mask(TEXT),
    }


_COGVIDEO: Config = {
    **SIZES,
    "time_embed_dim": 8,
    "text_embed_dim": TEXT_WIDTH,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 5,
    "patch_size": PATCH,
    "max_text_seq_length": TEXT,
    "use_rotary_positional_embeddings": True,
}
_HUNYUAN: Config = {
    **SIZES,
    "num_single_layers": 2,
    "mlp_ratio": 2.0,
    "patch_size": PATCH,
    "text_embed_dim": TEXT_WIDTH,
    "pooled_projection_dim": 10,
    "rope_axes_dim": (4, 4, 4),
}

VIDEO: tuple[Denoiser, ...] = (
    Denoiser("CogVideoXTransformer3DModel", _COGVIDEO, _cogvideo),
    Denoiser("ConsisIDTransformer3DModel", _COGVIDEO, _cogvideo),
    Denoiser("HunyuanVideoTransformer3DModel", _HUNYUAN, _hunyuan),
    Denoiser(
        "HunyuanVideoFramepackTransformer3DModel",
        {**_HUNYUAN, "has_image_proj": True, "image_proj_dim": 10, "has_clean_x_embedder": True},
        _framepack,
    ),
    Denoiser(
        "HunyuanVideo15Transformer3DModel",
        {
            **{
                key: value
                for key, value in _HUNYUAN.items()
                if key not in ("num_single_layers", "pooled_projection_dim")
            },
            "text_embed_2_dim": 10,
            "image_embed_dim": 10,
        },
        _hunyuan15,
    ),
    Denoiser(
        "MochiTransformer3DModel",
        {
            **{key: value for key, value in SIZES.items() if key != "out_channels"},
            "num_layers": 3,
            "patch_size": PATCH,
            "pooled_projection_dim": 16,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "max_sequence_length": TEXT,
        },
        lambda draw: {**masked(draw), "encoder_hidden_states": draw(TEXT, 16)},
        warns="In CPU autocast, but the target dtype is not supported",
    ),
    Denoiser(
        "EasyAnimateTransformer3DModel",
        {
            **SIZES,
            "num_layers": 3,
            "mmdit_layers": 2,
            "attention_head_dim": 16,
            "patch_size": PATCH,
            "sample_width": 8,
            "sample_height": 8,
            "time_embed_dim": 8,
            "text_embed_dim": TEXT_WIDTH,
        },
        video,
    ),
    Denoiser(
        "MotifVideoTransformer3DModel",
        {
            **{key: value for key, value in _HUNYUAN.items() if key != "pooled_projection_dim"},
            "enable_text_cross_attention_dual": True,
            "enable_text_cross_attention_single": True,
        },
        masked,
    ),
    Denoiser(
        "MiniMaxH3Transformer3DModel",
        {
            "num_attention_heads": HEADS,
            "attention_head_dim": HEAD,
            "hidden_size": WIDE,
            "num_layers": 2,
            "ffn_dim": 16,
            "in_channels": CHANNELS,
            "audio_in_channels": 6,
            "text_dim": TEXT_WIDTH,
            "freq_dim": 8,
            "time_embed_hidden_dim": 8,
            "time_embed_dim": 8,
            "rope_freq_dim": 2,
        },
        _minimax,
    ),
    Denoiser(
        "Cosmos3OmniTransformer",
        {
            "head_dim": HEAD,
            "hidden_size": WIDE,
            "intermediate_size": 16,
            "latent_channel": CHANNELS,
            "latent_patch_size": PATCH,
            "num_attention_heads": HEADS,
            "num_hidden_layers": 2,
            "num_key_value_heads": 1,
            "patch_latent_dim": CHANNELS * PATCH * PATCH,
            "vocab_size": 20,
            "rope_axes_dim": (2, 2, 2),
            "dtype": "float32",
        },
        _cosmos3,
        output=lambda result: torch.cat(result.sample),
        most_rows=1,
    ),
    Denoiser(
        "SanaWMTransformer3DModel",
        {
            "in_channels": CHANNELS,
            "num_layers": 2,
            "hidden_size": WIDE,
            "num_attention_heads": HEADS,
            "softmax_every_n": 2,
            "linear_head_dim": HEAD,
            "caption_channels": TEXT_WIDTH,
            "chunk_plucker_post_attn_blocks": 2,
            "chunk_plucker_channels": 6,
        },
        _world,
    ),
    Denoiser(
        "Kandinsky6SRTransformer3DModel",
        {
            "in_visual_dim": CHANNELS,
            "out_visual_dim": CHANNELS,
            "time_dim": 8,
            "model_dim": WIDE,
            "ff_dim": 16,
            "num_visual_blocks": 2,
            "axes_dims": (4, 4, 4),
        },
        lambda draw: {"hidden_states": draw(FRAMES, 8, 16, 2 * CHANNELS + 1), "timestep": draw.each(500.0)},
        warns="flex_attention called without torch.compile",
    ),
)
