"""Tiny random FLUX and Stable Diffusion 3 pipelines, and adapters in the layouts that are published for them.

Texts are given as embeddings, and a pipeline has text encoders only where a test asks for them. Weights are drawn so
that an image prompt shows far above rounding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel, T5Config, T5EncoderModel

from imprompt.adapter.adapter import Adapter, new_adapter
from imprompt.adapter.conditioning import Branch, Conditioning
from imprompt.adapter.spec import (
    FeatureSpec,
    KeyValueSpec,
    LinearKVSpec,
    LinearSpec,
    NormedKVSpec,
    NullImage,
    PerceiverKVSpec,
    PooledMLPSpec,
    ProjectorSpec,
    ResamplerSpec,
    TimedKVSpec,
    TimeResamplerSpec,
    TokensSpec,
)
from tests import tiny

HEADS, HEAD = 2, 8
WIDTH = HEADS * HEAD  # of every attention
POOLED = 24  # as much as both text encoders of Stable Diffusion 3 project to
TEXT_LENGTH = 5
CHANNELS = 4
SIZE = (24, 32)  # of a picture, in pixels, height first: a grid of 6 x 8 tokens
GRID = (6, 8)
FEATURE = 12  # of pooled features
LENGTH, HIDDEN = 9, 20  # of a sequence of features

# Tokens of the published width, from which diffusers tells four of them from sixteen (`loaders/transformer_flux.py`).
XLABS_WIDTH = 4096

FAMILIES = ("flux", "flux-xlabs", "flux-instantx", "flux-pulid", "sd3", "sd3-instantx")


def drawn(module: Any) -> Any:
    """A module whose every weight is random, those too that start as zero or one."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:  # keeps the variance of what passes through
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.normal_(parameter, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=0.1)
    return module


# Denoisers -----------------------------------------------------------------------------------------------------------


def flux(*, seed: int = 0, text_width: int = 12, **changes: Any) -> FluxTransformer2DModel:
    """Three double blocks and five single ones: PuLID acts on two of each."""
    config: dict[str, Any] = {
        "in_channels": 4 * CHANNELS,
        "num_layers": 3,
        "num_single_layers": 5,
        "attention_head_dim": HEAD,
        "num_attention_heads": HEADS,
        "joint_attention_dim": text_width,
        "pooled_projection_dim": POOLED,
        "axes_dims_rope": (2, 2, 4),
    }
    return tiny.seeded(lambda: drawn(FluxTransformer2DModel(**{**config, **changes})), seed)


def sd3(*, seed: int = 0, qk_norm: str | None = "rms_norm", **changes: Any) -> SD3Transformer2DModel:
    """Three blocks, the second with the further self-attention that SD3.5-medium has."""
    config: dict[str, Any] = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_layers": 3,
        "attention_head_dim": HEAD,
        "num_attention_heads": HEADS,
        "joint_attention_dim": 12,
        "caption_projection_dim": WIDTH,
        "pooled_projection_dim": POOLED,
        "pos_embed_max_size": 20,
        "qk_norm": qk_norm,
    }
    return tiny.seeded(lambda: drawn(SD3Transformer2DModel(**{**config, **changes})), seed)


def host(family: str, **changes: Any) -> Any:
    """The denoiser of a family."""
    if family.startswith("sd3"):
        return sd3(**changes)
    return flux(**changes)


def ids(height: int, width: int, *, number: int = 0) -> Tensor:
    """Places of packed tokens: which picture, row, column."""
    rows, columns = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    return torch.stack([torch.full_like(rows, number), rows, columns], dim=1).float()


def inputs(model: Any, rows: int = 1, *, seed: int = 0, grid: tuple[int, int] = GRID) -> dict[str, Any]:
    """Arguments of one call, `rows` rows that differ."""
    height, width = grid
    config = model.config
    arguments: dict[str, Any] = {
        "encoder_hidden_states": tiny.rand(rows, TEXT_LENGTH, config.joint_attention_dim, seed=seed + 1),
        "pooled_projections": tiny.rand(rows, POOLED, seed=seed + 2),
    }
    if isinstance(model, SD3Transformer2DModel):
        latents = tiny.rand(rows, CHANNELS, 2 * height, 2 * width, seed=seed)
        return {**arguments, "hidden_states": latents, "timestep": torch.full((rows,), 500.0)}
    return {
        **arguments,
        "hidden_states": tiny.rand(rows, height * width, config.in_channels, seed=seed),
        "timestep": torch.full((rows,), 0.5),
        "img_ids": ids(height, width),
        "txt_ids": torch.zeros(TEXT_LENGTH, 3),
    }


def row_of(arguments: dict[str, Any], row: int) -> dict[str, Any]:
    """The arguments of one row alone; places are common to all."""
    return {name: value if name.endswith("_ids") else value[row : row + 1] for name, value in arguments.items()}


# Adapters ------------------------------------------------------------------------------------------------------------

_POOLED = FeatureSpec(layer="image_embeds", width=FEATURE, encoder="tiny CLIP")
_SEQUENCE = FeatureSpec(layer="hidden_states", index=-2, width=HIDDEN, encoder="tiny SigLIP")
_TOKENS = FeatureSpec(layer="tokens", width=10, encoder="none")


def _resampler(width: int) -> ResamplerSpec:
    sizes = {"inner_width": 16, "depth": 2, "num_heads": 2, "head_width": 8, "num_tokens": 6}
    return ResamplerSpec(feature_width=HIDDEN, width=width, **sizes)


def _time_resampler(num_tokens: int) -> TimeResamplerSpec:
    """Narrow, else as published: heads of 64, depth 4."""
    sizes = {"inner_width": 16, "depth": 4, "num_heads": 2, "head_width": 64, "time_width": 12}
    return TimeResamplerSpec(feature_width=HIDDEN, num_tokens=num_tokens, width=WIDTH, **sizes)


def parts_of(
    family: str, model: Any, num_tokens: int | None
) -> tuple[ProjectorSpec, FeatureSpec, KeyValueSpec, NullImage]:
    """Projector, features, keys and values, and null image of what is published for a family."""
    width = model.config.joint_attention_dim
    match family:
        case "flux-xlabs":
            projector = LinearSpec(feature_width=FEATURE, num_tokens=num_tokens or 4, width=width)
            return projector, _POOLED, LinearKVSpec(bias=True), "black_pixels"
        case "flux-instantx":
            projector = PooledMLPSpec(
                feature_width=FEATURE, hidden_width=2 * FEATURE, num_tokens=num_tokens or 8, width=width
            )
            return projector, _POOLED, NormedKVSpec(head_width=HEAD), "none"
        case "flux-pulid":
            return (
                TokensSpec(num_tokens=num_tokens or 7, width=10),
                _TOKENS,
                PerceiverKVSpec(num_heads=3, head_width=6),
                "none",
            )
        case "sd3-instantx":
            key_values = TimedKVSpec(head_width=HEAD, time_width=16)
            return _time_resampler(num_tokens or 6), _SEQUENCE, key_values, "zero_features"
        case _:
            return _resampler(WIDTH), _SEQUENCE, LinearKVSpec(), "zero_features"


def adapter(
    family: str, model: Any, *, seed: int = 1, num_tokens: int | None = None, with_values: bool = False
) -> Adapter:
    """An adapter as it is published for a family, narrow and random."""
    projector, features, key_values, null_image = parts_of(family, model, num_tokens)
    if with_values:
        key_values = NormedKVSpec(head_width=HEAD, with_values=True)

    def build() -> Adapter:
        fresh = new_adapter(
            model,
            projector,
            features,
            null_image=null_image,
            name=f"tiny-{family}",
            family=family,
            key_values=key_values,
        )
        return drawn(fresh)

    return tiny.seeded(build, seed)


def features(made: Adapter, rows: int = 1, *, seed: int = 0) -> Tensor:
    """What an image encoder would deliver for `rows` pictures."""
    spec = made.spec
    length = {"image_embeds": (), "tokens": (spec.num_tokens,)}.get(spec.features.layer, (LENGTH,))
    return tiny.rand(rows, *length, spec.features.width, seed=100 + seed)


def branch(
    made: Adapter,
    rows: int = 1,
    *,
    weight: float | Sequence[float] = 1.0,
    seed: int = 0,
    given: Tensor | None = None,
    null: Tensor | None = None,
    region: Tensor | None = None,
    schedule: Tensor | None = None,
    scale: Tensor | None = None,
    number: int = 0,
) -> Branch:
    """One image prompt for each row, every row another picture.

    Args:
        made: its adapter, `number` among those attached.
        rows: how many rows.
        weight: one for all rows, or one a row.
        seed: of the pictures, where their features are not given.
        given: those features.
        null: features of no picture; zeros if none are given.
        region: where it acts [rows, height, width].
        schedule: factors over a run's progress.
        scale: factors of the sites.
        number: of the adapter.
    """
    shown = features(made, rows, seed=seed) if given is None else given
    nothing = torch.zeros_like(shown) if null is None else null.expand_as(shown)
    weights = torch.tensor([weight] * rows if isinstance(weight, int | float) else list(weight)).float()
    sites = torch.ones(len(made.spec.site_indices)) if scale is None else scale
    table = sites[None, :, None] * weights
    return Branch(
        tokens=made.project(shown),
        null_tokens=made.project(nothing),
        scale=table if schedule is None else schedule[:, None, None] * table,
        region=region,
        adapter=number,
        null_scale=0.0 if made.spec.null_image == "none" else 1.0,
    )


def conditioning(*branches: Branch) -> Conditioning:
    return Conditioning(branches=branches, rows=branches[0].rows)


# Pipelines -----------------------------------------------------------------------------------------------------------


def autoencoder(*, seed: int = 12) -> AutoencoderKL:
    return tiny.seeded(
        lambda: AutoencoderKL(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=CHANNELS,
            norm_num_groups=2,
            layers_per_block=1,
            shift_factor=0.1,
            scaling_factor=0.4,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        seed,
    )


def t5(width: int, *, seed: int = 16) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tiny.tokenizer()), d_model=width, d_kv=4, d_ff=8, num_layers=1, num_heads=2, pad_token_id=0
    )
    return tiny.seeded(lambda: T5EncoderModel(config), seed)


def siglip(*, seed: int = 17, hidden: int = HIDDEN) -> SiglipVisionModel:
    config = SiglipVisionConfig(
        hidden_size=hidden,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=24,
        patch_size=8,
    )
    return tiny.seeded(lambda: SiglipVisionModel(config), seed)


def siglip_processor() -> SiglipImageProcessor:
    return SiglipImageProcessor(size={"height": 24, "width": 24})


def scheduler(**changes: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **changes})


def flux_pipeline(model: Any = None, *, kind: type | None = None, with_texts: bool = False, **more: Any) -> Any:
    """A FLUX pipeline; `more` replaces components."""
    model = flux() if model is None else model
    parts: dict[str, Any] = {
        "scheduler": scheduler(use_dynamic_shifting=True),
        "vae": autoencoder(),
        "text_encoder": tiny.text_encoder(width=POOLED) if with_texts else None,
        "tokenizer": tiny.tokenizer() if with_texts else None,
        "text_encoder_2": t5(model.config.joint_attention_dim) if with_texts else None,
        "tokenizer_2": tiny.tokenizer() if with_texts else None,
        "transformer": model,
        **more,
    }
    return quiet((kind or FluxPipeline)(**parts))


def sd3_pipeline(model: Any = None, *, kind: type | None = None, with_texts: bool = False, **more: Any) -> Any:
    """A Stable Diffusion 3 pipeline; `more` replaces components."""
    model = sd3() if model is None else model
    texts = [tiny.text_encoder(width=6, projected=True, seed=seed) for seed in (11, 15)] if with_texts else [None] * 2
    parts: dict[str, Any] = {
        "scheduler": scheduler(),
        "vae": autoencoder(),
        "text_encoder": texts[0],
        "tokenizer": tiny.tokenizer() if with_texts else None,
        "text_encoder_2": texts[1],
        "tokenizer_2": tiny.tokenizer() if with_texts else None,
        "text_encoder_3": None,
        "tokenizer_3": None,
        "transformer": model,
        **more,
    }
    return quiet((kind or StableDiffusion3Pipeline)(**parts))


def pipeline(family: str, model: Any = None, **options: Any) -> Any:
    """The pipeline of a family."""
    return sd3_pipeline(model, **options) if family.startswith("sd3") else flux_pipeline(model, **options)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def texts(pipe: Any, rows: int = 1, *, seed: int = 0) -> dict[str, Tensor]:
    """Embeddings of `rows` prompts and of as many negative ones."""
    width = pipe.transformer.config.joint_attention_dim
    return {
        "prompt_embeds": tiny.rand(rows, TEXT_LENGTH, width, seed=seed + 20),
        "pooled_prompt_embeds": tiny.rand(rows, POOLED, seed=seed + 21),
        "negative_prompt_embeds": tiny.rand(rows, TEXT_LENGTH, width, seed=seed + 22),
        "negative_pooled_prompt_embeds": tiny.rand(rows, POOLED, seed=seed + 23),
    }


def guided(pipe: Any, scale: float = 3.0) -> dict[str, float]:
    """How strong guidance is asked for."""
    name = "true_cfg_scale" if isinstance(pipe, FluxPipeline) else "guidance_scale"
    return {name: scale}


def generate(pipe: Any, rows: int = 1, *, steps: int = 3, seed: int = 0, **options: Any) -> Tensor:
    """Latents of a short run under guidance, unless `options` say otherwise."""
    given: dict[str, Any] = {
        "num_inference_steps": steps,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
        "height": SIZE[0],
        "width": SIZE[1],
        **guided(pipe),
    }
    if "prompt" not in options:
        given |= texts(pipe, rows)
    return pipe(**{**given, **options}).images


def heun() -> Any:
    """A scheduler that asks twice at every timestep."""
    made = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    made.set_timesteps = _without_sigmas(made.set_timesteps)
    return made


def _without_sigmas(set_timesteps: Callable[..., None]) -> Callable[..., None]:
    """FLUX gives sigmas, which diffusers' Heun does not take: only their number is kept."""

    def wrapper(
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        del mu
        set_timesteps(len(sigmas) if sigmas is not None else num_inference_steps, device=device)

    return wrapper
