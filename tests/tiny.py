"""Tiny random models, built in code: the shapes of the real ones in miniature, the same weights in every run.

Nothing here is trained. Weights are drawn so that an image prompt changes a UNet's output by about as much as the text
does: an effect that a test claims to see is then far above rounding.
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, T2IAdapter, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from imprompt.adapter.adapter import Adapter, new_adapter
from imprompt.adapter.conditioning import NUM_PROGRESS, Branch, Conditioning
from imprompt.adapter.spec import FeatureSpec, LinearSpec, MLPSpec, ProjectorSpec, ResamplerSpec

Module = TypeVar("Module", bound=nn.Module)

TEXT_WIDTH = 24  # cross-attention width of every tiny host
TEXT_LENGTH = 16
PIXELS = 32  # side of a picture; its latent's side is half of it
VISION_WIDTH, VISION_PROJECTION = 20, 12

PROJECTORS = ("linear", "mlp", "resampler")

_COMMON: dict[str, Any] = {
    "cross_attention_dim": TEXT_WIDTH,
    "norm_num_groups": 4,
    "layers_per_block": 2,
    "sample_size": PIXELS // 2,
}
_SD1: dict[str, Any] = {  # four levels, cross-attention on three of them: 16 sites at the official places
    **_COMMON,
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "attention_head_dim": 2,
}
_SMALL: dict[str, Any] = {  # two levels and four sites, where the number of them is not the point
    **_SD1,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
}
_SDXL: dict[str, Any] = {
    **_COMMON,
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (1, 2, 4),
    "transformer_layers_per_block": (1, 1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + TEXT_WIDTH // 2,
}
HOSTS: dict[str, dict[str, Any]] = {
    "small": _SMALL,
    "sd1": _SD1,
    "sd2": {**_SD1, "use_linear_projection": True, "attention_head_dim": (1, 2, 4, 4)},
    "sdxl": _SDXL,
    "kolors": {**_SDXL, "encoder_hid_dim": 10, "encoder_hid_dim_type": "text_proj"},
    "sdxl_70": {**_SDXL, "transformer_layers_per_block": (1, 2, 10)},  # every one of SDXL's 70 sites, narrow
}
FAMILIES = ("sd1", "sd2", "sdxl", "kolors")


def seeded(build: Callable[[], Module], seed: int) -> Module:
    """Build a module from a seed, without touching the global generator; frozen and in inference mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval().requires_grad_(False)


def unet(family: str = "sd1", *, seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    """A host. `changes` replace parts of its config."""
    return seeded(lambda: UNet2DConditionModel(**{**HOSTS[family], **changes}), seed)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def host_inputs(host: Any, rows: int = 1, *, seed: int = 0, size: tuple[int, int] = (16, 16)) -> dict[str, Any]:
    """Arguments of one call of a UNet, `rows` rows that differ."""
    config = host.config
    width = config.encoder_hid_dim or config.cross_attention_dim
    inputs: dict[str, Any] = {
        "sample": rand(rows, config.in_channels, *size, seed=seed),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": rand(rows, TEXT_LENGTH, width, seed=seed + 1),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        sizes = torch.tensor([[32.0, 32, 0, 0, 32, 32]]).repeat(rows, 1)
        inputs["added_cond_kwargs"] = {"text_embeds": rand(rows, pooled, seed=seed + 2), "time_ids": sizes}
    return inputs


def call(host: Any, inputs: dict[str, Any]) -> Tensor:
    """The output of one call, without gradients."""
    with torch.no_grad():
        return host(**inputs).sample


def row_of(inputs: dict[str, Any], row: int) -> dict[str, Any]:
    """The arguments of one row alone."""

    def pick(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: pick(part) for key, part in value.items()}
        return value[row : row + 1] if isinstance(value, Tensor) and value.ndim else value

    return {key: pick(value) for key, value in inputs.items()}


# Adapters ------------------------------------------------------------------------------------------------------------


def projector_spec(kind: str, *, num_tokens: int | None = None, width: int = TEXT_WIDTH) -> ProjectorSpec:
    match kind:
        case "linear":
            return LinearSpec(feature_width=VISION_PROJECTION, num_tokens=num_tokens or 4, width=width)
        case "mlp":
            return MLPSpec(feature_width=VISION_WIDTH, hidden_width=16, num_tokens=num_tokens or 5, width=width)
        case _:
            return ResamplerSpec(
                feature_width=VISION_WIDTH,
                inner_width=16,
                depth=2,
                num_heads=2,
                head_width=8,
                num_tokens=num_tokens or 6,
                width=width,
            )


def feature_spec(kind: str) -> FeatureSpec:
    if kind == "linear":
        return FeatureSpec(layer="image_embeds", width=VISION_PROJECTION, encoder="tiny CLIP")
    return FeatureSpec(layer="hidden_states", index=-2, width=VISION_WIDTH, encoder="tiny CLIP")


def official_projector_spec(kind: str, *, width: int = TEXT_WIDTH) -> ProjectorSpec:
    """Narrow, else as published: other programs count on 4 or 257 tokens, heads of 64, depth 4."""
    match kind:
        case "linear":
            return LinearSpec(feature_width=VISION_PROJECTION, num_tokens=4, width=width)
        case "mlp":
            return MLPSpec(feature_width=VISION_WIDTH, hidden_width=VISION_WIDTH, num_tokens=257, width=width)
        case _:
            sizes = {"inner_width": 16, "depth": 4, "num_heads": 2, "head_width": 64, "num_tokens": 16}
            return ResamplerSpec(feature_width=VISION_WIDTH, width=width, **sizes)


def adapter(
    host: nn.Module, kind: str = "linear", *, seed: int = 1, num_tokens: int | None = None, official: bool = False
) -> Adapter:
    """An adapter for a host, every weight random: keys and values of its tokens have a variance near one."""

    def build() -> Adapter:
        width = host.config.cross_attention_dim  # pyright: ignore
        spec = official_projector_spec(kind, width=width)
        fresh = new_adapter(
            host,
            spec if official else projector_spec(kind, num_tokens=num_tokens, width=width),
            feature_spec(kind),
            null_image="zero_features" if kind == "linear" else "zero_pixels",
            name=f"tiny-{kind}",
        )
        for parameter in fresh.parameters():
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 1
            nn.init.normal_(parameter, std=fan_in**-0.5)
        return fresh

    return seeded(build, seed)


def features(adapter: Adapter, rows: int = 1, *, seed: int = 0) -> Tensor:
    """What an image encoder would deliver for `rows` pictures."""
    spec = adapter.spec
    length = (getattr(spec.projector, "num_tokens", 5),) if spec.features.is_sequence else ()
    return rand(rows, *length, spec.features.width, seed=100 + seed)


def window(start: float, end: float) -> Tensor:
    """A scale table's first axis: 1 while `start <= progress < end`, and at the very end too if `end` is 1."""
    progress = torch.arange(NUM_PROGRESS) / (NUM_PROGRESS - 1)  # exact where linspace is not: 0.5 is 0.5
    return ((progress >= start) & ((progress < end) | (end == 1.0))).float()


def branch(
    adapter: Adapter,
    rows: int = 1,
    *,
    weight: float | Sequence[float] = 1.0,
    seed: int = 0,
    region: Tensor | None = None,
    schedule: Tensor | None = None,
    null: bool = True,
    number: int = 0,
) -> Branch:
    """One image prompt for each of `rows` rows, every row another picture.

    Args:
        adapter: the adapter it belongs to, `number` among those attached.
        weight: one for all rows, or one a row.
        region: [rows, height, width].
        schedule: factors over a run's progress, as `window` makes them.
    """
    tokens = adapter.project(features(adapter, rows, seed=seed))
    empty = adapter.project(torch.zeros_like(features(adapter, rows)))
    weights = torch.tensor([weight] * rows if isinstance(weight, int | float) else list(weight))
    scale = weights.float().expand(1, len(adapter.spec.site_indices), rows)
    return Branch(
        tokens=tokens,
        null_tokens=empty if null else None,
        scale=scale if schedule is None else schedule[:, None, None] * scale,
        region=region,
        adapter=number,
    )


def conditioning(*branches: Branch) -> Conditioning:
    return Conditioning(branches=branches, rows=branches[0].rows)


# Encoders, and what else a pipeline holds ----------------------------------------------------------------------------


def vision_tower(*, seed: int = 10) -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=16,
        projection_dim=VISION_PROJECTION,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    return seeded(lambda: CLIPVisionModelWithProjection(config), seed)


def image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


@lru_cache(maxsize=1)
def _tokenizer_folder() -> Path:
    """Letters and no merges: every text is spelled."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder = Path(tempfile.mkdtemp(prefix="tiny-tokenizer-"))
    CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=TEXT_LENGTH
    ).save_pretrained(folder)
    return folder


def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(_tokenizer_folder())


def text_encoder(*, width: int = TEXT_WIDTH, projected: bool = False, seed: int = 11) -> Any:
    words = len(tokenizer())
    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=16,
        projection_dim=TEXT_WIDTH // 2,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=words - 1,
    )
    return seeded(lambda: (CLIPTextModelWithProjection if projected else CLIPTextModel)(config), seed)


def autoencoder(*, seed: int = 12) -> AutoencoderKL:
    return seeded(
        lambda: AutoencoderKL(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=2,
            layers_per_block=1,
            sample_size=PIXELS,
        ),
        seed,
    )


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False
    )


def controlnet(host: Any, *, seed: int = 13) -> ControlNetModel:
    """A ControlNet with an effect: its zero convolutions are not zero."""

    def build() -> ControlNetModel:
        net = ControlNetModel.from_unet(host, conditioning_embedding_out_channels=(4, 8), load_weights_from_unet=False)
        zeros = (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out)
        for convolution in zeros:
            nn.init.normal_(convolution.weight, std=0.3)
        return net

    return seeded(build, seed)


def t2i_adapter(host: Any, *, seed: int = 14) -> T2IAdapter:
    channels = list(host.config.block_out_channels)
    return seeded(
        lambda: T2IAdapter(
            in_channels=3, channels=channels, num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter"
        ),
        seed,
    )


def components(family: str = "sd1", **unet_changes: Any) -> dict[str, Any]:
    """What a Stable Diffusion pipeline of a family is made of."""
    parts: dict[str, Any] = {
        "vae": autoencoder(),
        "tokenizer": tokenizer(),
        "unet": unet(family, **unet_changes),
        "scheduler": scheduler(),
        "image_encoder": None,
        "feature_extractor": None,
    }
    if family.startswith("sdxl"):
        half = TEXT_WIDTH // 2
        return {
            **parts,
            "text_encoder": text_encoder(width=half),
            "text_encoder_2": text_encoder(width=half, projected=True, seed=15),
            "tokenizer_2": tokenizer(),
        }
    return {**parts, "text_encoder": text_encoder(), "safety_checker": None, "requires_safety_checker": False}


def pipeline(
    kind: type | None = None, family: str = "sd1", *, unet_changes: dict[str, Any] | None = None, **more: Any
) -> Any:
    """A ready pipeline without progress bars: StableDiffusionPipeline or its SDXL sister unless `kind` says otherwise.

    `unet_changes` replace parts of the UNet's config; `more` adds components, or replaces some.
    """
    import diffusers

    default = diffusers.StableDiffusionXLPipeline if family.startswith("sdxl") else diffusers.StableDiffusionPipeline
    kind = kind or default
    parts = {**components(family, **(unet_changes or {})), **more}
    if "image_encoder" not in kind.__init__.__code__.co_varnames:
        del parts["image_encoder"]
    built = kind(**parts)
    built.set_progress_bar_config(disable=True)
    return built


def picture(*, seed: int = 0, size: tuple[int, int] = (PIXELS, PIXELS)) -> Image.Image:
    """Noise in colour."""
    width, height = size
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def generate(
    pipe: Any, prompt: str | list[str] | None = "a cat", *, steps: int = 4, seed: int = 0, **options: Any
) -> Tensor:
    """Latents of a short run."""
    generator = torch.Generator().manual_seed(seed)
    options = {"num_inference_steps": steps, "generator": generator, "output_type": "latent", **options}
    if "strength" not in options and "image" not in options:
        options = {"height": PIXELS, "width": PIXELS, **options}
    return pipe(prompt, **options).images
