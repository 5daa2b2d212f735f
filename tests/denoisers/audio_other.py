"""Models of sound, music and proteins: no picture comes of them, and so no image prompt goes into them."""

import torch
from torch import Tensor

from tests.denoisers.table import Arguments, Denoiser, Draw

LENGTH, TEXT, TEXT_WIDTH, CHANNELS, HEADS, HEAD = 6, 5, 12, 4, 2, 8
WIDE = HEADS * HEAD


def _stable_audio(draw: Draw) -> Arguments:
    angles = torch.arange(LENGTH + 1)[:, None] * 10.0 ** -torch.linspace(0, 2, HEAD // 4)
    both = torch.cat([angles, angles], dim=1)
    return {
        "hidden_states": draw(CHANNELS, LENGTH),
        "timestep": draw.each(0.5),
        "encoder_hidden_states": draw(TEXT, TEXT_WIDTH),
        "global_hidden_states": draw(1, 10),
        "rotary_embedding": (both.cos(), both.sin()),
        "return_dict": False,  # its result class warns of its own deprecation
    }


def _stable_audio3(draw: Draw) -> Arguments:
    return {
        "hidden_states": draw(CHANNELS, LENGTH),
        "timestep": draw.each(0.5),
        "encoder_hidden_states": draw(TEXT, TEXT_WIDTH),
        "encoder_attention_mask": draw.mask(TEXT),
        "global_hidden_states": draw(10),
        "local_add_cond": draw(6, LENGTH),
    }


def _ace(draw: Draw) -> Arguments:
    return {
        "hidden_states": draw(LENGTH, CHANNELS),
        "timestep": draw.each(0.5),
        "timestep_r": draw.each(0.5),
        "encoder_hidden_states": draw(TEXT, WIDE),
        "context_latents": draw(LENGTH, 2 * CHANNELS),
    }


def _longcat_audio(draw: Draw) -> Arguments:
    return {
        "hidden_states": draw(LENGTH, CHANNELS),
        "timestep": draw.each(0.5),
        "encoder_hidden_states": draw(TEXT, TEXT_WIDTH),
        "encoder_attention_mask": draw.mask(TEXT),
        "latent_cond": draw(LENGTH, CHANNELS),
    }


def _minimax_music(draw: Draw) -> Arguments:
    return {
        "hidden_states": draw(CHANNELS, LENGTH),
        "timestep": draw.each(0.5),
        "encoder_hidden_states": draw(LENGTH, TEXT_WIDTH),
    }


def _t5_film(draw: Draw) -> Arguments:
    mask = torch.ones(draw.rows, TEXT)
    return {
        "encodings_and_masks": [(draw(TEXT, WIDE), mask)],
        "decoder_input_tokens": draw(LENGTH, CHANNELS),
        "decoder_noise_time": draw.each(0.5),
    }


def _protein(draw: Draw) -> Arguments:
    """Amino acids, each with the place of one atom and with latents of the others."""
    everything = torch.ones(draw.rows, LENGTH, dtype=torch.bool)
    return {
        "bb_ca": draw(LENGTH, 3),
        "local_latents": draw(LENGTH, CHANNELS),
        "bb_ca_time": draw.each(0.5),
        "local_latents_time": draw.each(0.5),
        "padding_mask": everything,
        "token_type": draw.integers(4, LENGTH),
        "conditioning": {"is_in_context_conditioning": ~everything, "supports_local_latent": everything},
    }


def _plain(result: Tensor) -> Tensor:
    return result


AUDIO_AND_OTHER: tuple[Denoiser, ...] = (
    Denoiser(
        "StableAudioDiTModel",
        {
            "sample_size": LENGTH,
            "in_channels": CHANNELS,
            "num_layers": 2,
            "attention_head_dim": HEAD,
            "num_attention_heads": HEADS,
            "num_key_value_attention_heads": 1,
            "out_channels": CHANNELS,
            "cross_attention_dim": WIDE // 2,
            "time_proj_dim": 8,
            "global_states_input_dim": 10,
            "cross_attention_input_dim": TEXT_WIDTH,
        },
        _stable_audio,
        output=lambda result: result[0],
    ),
    Denoiser(
        "StableAudio3DiTModel",
        {
            "io_channels": CHANNELS,
            "embed_dim": WIDE,
            "depth": 2,
            "num_heads": HEADS,
            "cond_token_dim": TEXT_WIDTH,
            "global_cond_dim": 10,
            "local_add_cond_dim": 6,
            "timestep_features_dim": 8,
            "ff_mult": 2.0,
            "num_memory_tokens": 2,
        },
        _stable_audio3,
    ),
    Denoiser(
        "AceStepTransformer1DModel",
        {
            "hidden_size": WIDE,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "num_key_value_heads": 1,
            "head_dim": HEAD,
            "in_channels": 3 * CHANNELS,
            "audio_acoustic_hidden_dim": CHANNELS,
            "sliding_window": 2,
        },
        _ace,
    ),
    Denoiser(
        "LongCatAudioDiTTransformer",
        {
            "dit_dim": WIDE,
            "dit_depth": 2,
            "dit_heads": HEADS,
            "dit_text_dim": TEXT_WIDTH,
            "latent_dim": CHANNELS,
            "ff_mult": 2.0,
        },
        _longcat_audio,
    ),
    Denoiser(
        "MiniMaxMusic3Transformer1DModel",
        {
            "in_channels": CHANNELS,
            "condition_dim": TEXT_WIDTH,
            "num_layers": 2,
            "num_attention_heads": HEADS,
            "attention_head_dim": HEAD,
            "ff_inner_dim": 16,
            "rotary_dim": 4,
            "fourier_embedding_dim": 8,
        },
        _minimax_music,
    ),
    Denoiser(
        "MiniMaxMusic3RVQDepthDecoder",
        {
            "hidden_size": WIDE,
            "num_layers": 2,
            "num_attention_heads": HEADS,
            "intermediate_size": 16,
            "audio_vocab_size": 10,
            "num_codebooks": 3,
        },
        lambda draw: {"inputs_embeds": draw(LENGTH, WIDE)},
        output=_plain,
    ),
    Denoiser(
        "T5FilmDecoder",
        {
            "input_dims": CHANNELS,
            "targets_length": LENGTH,
            "d_model": WIDE,
            "num_layers": 2,
            "num_heads": HEADS,
            "d_kv": HEAD,
            "d_ff": 16,
        },
        _t5_film,
        output=_plain,
    ),
    Denoiser(
        "RFD4ProteinaTransformer",
        {
            "nlayers": 2,
            "token_dim": WIDE,
            "nheads": HEADS,
            "dim_cond": 8,
            "pair_repr_dim": 8,
            "latent_dim": CHANNELS,
            "token_type_emb_dim": 4,
            "t_emb_dim": 8,
            "seq_sep_dim": 8,
            "xt_pair_dist_dim": 6,
            "feats_seq": ("xt_bb_ca", "xt_local_latents", "token_type"),
            "feats_cond_seq": ("time_emb_bb_ca", "time_emb_local_latents"),
            "feats_pair_repr": ("xt_bb_ca_pair_dists",),
            "tri_mult_c": 8,
        },
        _protein,
        output=lambda result: result.local_latents,
    ),
)
