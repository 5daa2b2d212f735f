"""Video models whose text reaches the frames through a cross-attention of its own."""

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
WAN: Config = {
    **SIZES,
    "patch_size": (1, PATCH, PATCH),
    "text_dim": TEXT_WIDTH,
    "freq_dim": 8,
    "ffn_dim": 16,
    "rope_max_seq_len": 16,
}


def latents(draw: Draw, channels: int = CHANNELS, frames: int = FRAMES) -> Tensor:
    return draw(channels, frames, PATCH * HEIGHT, PATCH * WIDTH)


def video(draw: Draw, *, time: float = 500.0) -> Arguments:
    return {
        "hidden_states": latents(draw),
        "encoder_hidden_states": draw(TEXT, TEXT_WIDTH),
        "timestep": draw.each(time),
    }


def _masked(draw: Draw) -> Arguments:
    return {**video(draw), "encoder_attention_mask": draw.mask(TEXT)}


def _vace(draw: Draw) -> Arguments:
    return {**video(draw), "control_hidden_states": latents(draw, 6)}


def _animate(draw: Draw) -> Arguments:
    """A pose for every frame but the first, and four frames of a face for every such latent frame."""
    return {
        **video(draw),
        "hidden_states": latents(draw, 2 * CHANNELS + 4),
        "pose_hidden_states": latents(draw, frames=FRAMES - 1),
        "face_pixel_values": draw(3, 4 * (FRAMES - 1), 16, 16),
    }


def _animate2(draw: Draw) -> Arguments:
    """The first of its two kinds of call, which keeps the keys of a reference; the other wants a compiled attention."""
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    return {
        "hidden_states": draw.separate(CHANNELS, FRAMES, PATCH * HEIGHT, PATCH * WIDTH),
        "condition_latents": draw.separate(2, FRAMES, PATCH * HEIGHT, PATCH * WIDTH),
        "encoder_hidden_states": draw.separate(TEXT, TEXT_WIDTH),
        "timestep": draw.each(500.0),
        "kv_cache": WanAnimate2KVCache(2),
        "kv_cache_mode": "extract",
        "seq_len": TOKENS,
        "offset_grid_sizes": torch.tensor([[FRAMES, HEIGHT, WIDTH]]),
    }


def _frames_first(draw: Draw) -> Arguments:
    times = torch.full((draw.rows, FRAMES), 500.0)
    frames = draw(FRAMES, CHANNELS, PATCH * HEIGHT, PATCH * WIDTH)
    return {**video(draw), "hidden_states": frames, "timestep": times, "r_timestep": times - 100.0}


def _anyflow_far(draw: Draw) -> Arguments:
    return {**_frames_first(draw), "chunk_partition": [1, 1]}


def _helios(draw: Draw) -> Arguments:
    """With one frame that came before."""
    return {
        **video(draw),
        "indices_hidden_states": torch.arange(1, FRAMES + 1).repeat(draw.rows, 1),
        "latents_history_short": latents(draw, frames=1),
        "indices_latents_history_short": torch.zeros(draw.rows, 1, dtype=torch.long),
    }


def _ltx(draw: Draw) -> Arguments:
    return {
        "hidden_states": draw(TOKENS, CHANNELS),
        "encoder_hidden_states": draw(TEXT, TEXT_WIDTH),
        "encoder_attention_mask": draw.mask(TEXT),
        "timestep": draw.each(500.0),
        "num_frames": FRAMES,
        "height": HEIGHT,
        "width": WIDTH,
    }


def _ltx2(draw: Draw) -> Arguments:
    return {
        **_ltx(draw),
        "audio_hidden_states": draw(4, 6),
        "audio_encoder_hidden_states": draw(TEXT, TEXT_WIDTH),
        "audio_encoder_attention_mask": draw.mask(TEXT),
        "audio_num_frames": 4,
        "sigma": draw.each(0.5),
    }


def _rotary(width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [rows, tokens, width]."""
    angles = torch.arange(TOKENS)[:, None] * 10.0 ** -torch.linspace(0, 2, width // 2)
    both = angles.repeat_interleave(2, dim=1)[None]
    return both.cos(), both.sin()


def _refiner(draw: Draw) -> Arguments:
    return {
        "hidden_states": draw(TOKENS, CHANNELS),
        "encoder_hidden_states": draw(TEXT, TEXT_WIDTH),
        "timestep": draw.each(500.0)[:, None],
        "video_rotary_emb": _rotary(WIDE),
    }


def _cosmos(draw: Draw) -> Arguments:
    return {**video(draw), "attention_mask": draw.mask(TEXT), "fps": 16}


def _kandinsky6(draw: Draw) -> Arguments:
    """Channels come last; sound is made with the frames."""
    return {
        "hidden_states": draw(FRAMES, PATCH * HEIGHT, PATCH * WIDTH, 2 * CHANNELS + 1),
        "encoder_hidden_states": draw(TEXT, TEXT_WIDTH),
        "pooled_projections": draw(10),
        "timestep": draw.each(500.0),
        "audio_hidden_states": draw(4, 6),
    }


_LTX2: Config = {
    **SIZES,
    "cross_attention_dim": WIDE,
    "audio_in_channels": 6,
    "audio_out_channels": 6,
    "audio_num_attention_heads": HEADS,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
    "caption_channels": TEXT_WIDTH,
}

VIDEO_CROSS: tuple[Denoiser, ...] = (
    Denoiser("WanTransformer3DModel", WAN, video),
    Denoiser("WanVACETransformer3DModel", {**WAN, "vace_layers": [0, 1], "vace_in_channels": 6}, _vace),
    Denoiser(
        "WanAnimateTransformer3DModel",
        {
            **WAN,
            "in_channels": 2 * CHANNELS + 4,
            "latent_channels": CHANNELS,
            "image_dim": None,
            "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
            "motion_encoder_size": 16,
            "motion_style_dim": 8,
            "motion_dim": 4,
            "motion_encoder_dim": 8,
            "face_encoder_hidden_dim": 16,
            "face_encoder_num_heads": 2,
            "inject_face_latents_blocks": 2,
        },
        _animate,
    ),
    Denoiser(
        "WanAnimate2Transformer3DModel",
        {
            "patch_size": (1, PATCH, PATCH),
            "text_len": TEXT,
            "in_dim": CHANNELS + 2,
            "dim": WIDE,
            "ffn_dim": 16,
            "freq_dim": 8,
            "text_dim": TEXT_WIDTH,
            "out_dim": CHANNELS,
            "num_heads": HEADS,
            "num_layers": 2,
            "use_img_emb": False,
        },
        _animate2,
        output=lambda result: torch.stack(result.sample),
    ),
    Denoiser("ChronoEditTransformer3DModel", {**WAN, "rope_temporal_skip_len": 2}, video),
    Denoiser("SkyReelsV2Transformer3DModel", WAN, video),
    Denoiser("AnyFlowTransformer3DModel", WAN, _frames_first),
    Denoiser(
        "AnyFlowFARTransformer3DModel",
        {**WAN, "compressed_patch_size": (1, 4, 4), "chunk_partition": (1, 1)},
        _anyflow_far,
        warns="flex_attention called without torch.compile",
    ),
    Denoiser(
        "HeliosTransformer3DModel",
        {**{key: value for key, value in WAN.items() if key != "rope_max_seq_len"}, "rope_dim": (4, 4, 4)},
        _helios,
    ),
    Denoiser(
        "LTXVideoTransformer3DModel", {**SIZES, "cross_attention_dim": WIDE, "caption_channels": TEXT_WIDTH}, _ltx
    ),
    Denoiser("LTX2VideoTransformer3DModel", _LTX2, _ltx2),
    Denoiser("SanaWMLTX2RefinerTransformer3DModel", _LTX2, _refiner),
    Denoiser(
        "CosmosTransformer3DModel",
        {
            **SIZES,
            "mlp_ratio": 2.0,
            "text_embed_dim": TEXT_WIDTH,
            "adaln_lora_dim": 4,
            "max_size": (4, 8, 8),
            "patch_size": (1, PATCH, PATCH),
            "concat_padding_mask": False,  # torchvision would resize it, and is not wanted here
        },
        _cosmos,
    ),
    Denoiser(
        "SanaVideoTransformer3DModel",
        {
            **SIZES,
            "num_cross_attention_heads": 4,
            "cross_attention_head_dim": 6,
            "cross_attention_dim": WIDE,
            "caption_channels": TEXT_WIDTH,
            "sample_size": 8,
            "patch_size": (1, PATCH, PATCH),
            "rope_max_seq_len": 16,
        },
        _masked,
    ),
    Denoiser(
        "LatteTransformer3DModel",
        {
            **SIZES,
            "out_channels": 2 * CHANNELS,
            "cross_attention_dim": WIDE,
            "sample_size": 8,
            "patch_size": PATCH,
            "norm_type": "ada_norm_single",
            "caption_channels": TEXT_WIDTH,
            "video_length": FRAMES,
        },
        video,
    ),
    Denoiser(
        "AllegroTransformer3DModel",
        {
            **SIZES,
            "patch_size": PATCH,
            "cross_attention_dim": WIDE,
            "sample_height": 8,
            "sample_width": 8,
            "sample_frames": FRAMES,
            "caption_channels": TEXT_WIDTH,
        },
        _masked,
    ),
    Denoiser(
        "Kandinsky6Transformer3DModel",
        {
            "in_visual_dim": CHANNELS,
            "out_visual_dim": CHANNELS,
            "in_text_dim": TEXT_WIDTH,
            "in_text_dim2": 10,
            "time_dim": 8,
            "patch_size": (1, PATCH, PATCH),
            "model_dim": WIDE,
            "ff_dim": 16,
            "num_text_blocks": 2,
            "num_visual_blocks": 2,
            "axes_dims": (4, 4, 4),
            "in_audio_dim": 6,
            "out_audio_dim": 6,
        },
        _kandinsky6,
    ),
)
