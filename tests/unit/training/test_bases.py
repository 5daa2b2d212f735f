"""A base is asked as its own pipeline asks it: what training sees is what generation sees."""

from types import SimpleNamespace

import diffusers
import pytest
import torch

from imprompt.core.errors import HostMismatch
from imprompt.training.bases import base_of, text
from imprompt.training.bases.flux import pack, places, unpack
from imprompt.training.bases.frozen import scaled
from imprompt.training.config import BaseModelConfig
from tests import tiny
from tests import tiny_transformers as wide

PROMPT = "a cat"
SIZES = torch.tensor([[32.0, 32, 0, 0, 32, 32]])


def pixart():
    transformer = tiny.seeded(
        lambda: wide.drawn(
            diffusers.PixArtTransformer2DModel(
                in_channels=4,
                out_channels=8,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                caption_channels=12,
                cross_attention_dim=16,
                sample_size=8,
                norm_num_groups=1,
            )
        ),
        0,
    )
    return wide.quiet(
        diffusers.PixArtSigmaPipeline(
            tokenizer=tiny.tokenizer(),
            text_encoder=wide.t5(12),
            vae=tiny.autoencoder(),
            transformer=transformer,
            scheduler=tiny.scheduler(),
        )
    )


PIPELINES = {
    "sd1": lambda: tiny.pipeline(family="sd1"),
    "sd2": lambda: tiny.pipeline(family="sd2"),
    "sdxl": lambda: tiny.pipeline(family="sdxl"),
    "sd3": lambda: wide.sd3_pipeline(with_texts=True),
    "flux": lambda: wide.flux_pipeline(with_texts=True),
    "flux-dev": lambda: wide.flux_pipeline(wide.flux(guidance_embeds=True), with_texts=True),
    "pixart": pixart,
}


def first_call(pipe, base):
    """What the pipeline first gives its denoiser, and what that answers, of the row that follows the prompt."""
    seen = []

    def note(_module, args, kwargs, output):
        seen.append((args, kwargs, output[0] if isinstance(output, tuple) else output.sample))

    handle = base.denoiser.register_forward_hook(note, with_kwargs=True)
    plain = {"use_resolution_binning": False, "clean_caption": False}
    options = plain if isinstance(pipe, diffusers.PixArtSigmaPipeline) else {}
    pipe(PROMPT, num_inference_steps=2, height=32, width=32, output_type="latent", guidance_scale=3.5, **options)
    handle.remove()
    args, kwargs, output = seen[0]
    noisy = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
    timestep = args[1] if len(args) > 1 else kwargs["timestep"]
    return SimpleNamespace(noisy=noisy[-1:], timestep=torch.as_tensor(timestep).reshape(-1)[-1:], output=output[-1:])


@pytest.mark.parametrize("name", PIPELINES)
def test_a_base_is_asked_as_its_pipeline_asks_it(name):
    pipe = PIPELINES[name]()
    base = base_of(pipe, BaseModelConfig(dtype="float32"), guidance=3.5)
    call = first_call(pipe, base)
    noisy, timestep, expected = call.noisy, call.timestep, call.output
    if name.startswith("flux"):
        side = 32 // base.pixels_per_latent
        noisy, expected, timestep = unpack(noisy, side, side), unpack(expected, side, side), timestep * 1000
    predicted = base.predict(noisy, timestep, base.encode_text([PROMPT]), SIZES)
    torch.testing.assert_close(predicted, expected[:, : noisy.shape[1]])


@pytest.mark.parametrize("name", PIPELINES)
def test_the_names_of_texts_are_those_that_the_pipeline_gives_itself(name):
    """The last `return` of `encode_prompt` is the one that is taken."""
    pipe = PIPELINES[name]()
    base = base_of(pipe, BaseModelConfig(dtype="float32"))
    texts = base.encode_text([PROMPT, "a much longer text of a dog"])
    assert texts["prompt_embeds"].shape[0] == 2
    assert not any(key.startswith("negative") for key in texts)
    assert len(text.returned_names(type(pipe))) >= len(texts)


def test_latents_are_those_that_the_decoder_undoes():
    pipe = tiny.pipeline()
    base = base_of(pipe, BaseModelConfig(dtype="float32"))
    pixels = tiny.rand(2, 3, 32, 32).tanh()
    expected = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    assert torch.equal(base.encode_latents(pixels), expected)
    assert base.latent_channels == 4
    assert base.encode_latents(pixels).shape[-1] == 32 // base.pixels_per_latent


def test_shifts_and_channelwise_scales_are_applied():
    latents = tiny.rand(1, 2, 3, 3)
    assert torch.equal(scaled(latents, {"shift_factor": 0.1, "scaling_factor": 0.4}), (latents - 0.1) * 0.4)
    config = {"latents_mean": [1.0, 2.0], "latents_std": [2.0, 4.0], "scaling_factor": 0.5}
    expected = torch.stack([(latents[:, 0] - 1) * 0.5 / 2, (latents[:, 1] - 2) * 0.5 / 4], dim=1)
    torch.testing.assert_close(scaled(latents, config), expected)


def test_packing_is_that_of_the_pipeline():
    latents = tiny.rand(2, 4, 6, 8)
    packed = pack(latents)
    assert torch.equal(packed, diffusers.FluxPipeline._pack_latents(latents, 2, 4, 6, 8))
    assert torch.equal(unpack(packed, 6, 8), latents)
    ids = diffusers.FluxPipeline._prepare_latent_image_ids(1, 3, 4, "cpu", torch.float32)
    assert torch.equal(places(3, 4), ids)


def test_nothing_of_a_base_wants_gradients():
    base = base_of(tiny.pipeline(), BaseModelConfig(dtype="float32", gradient_checkpointing=True))
    assert not any(weight.requires_grad for weight in base.denoiser.parameters())
    assert base.denoiser.is_gradient_checkpointing


def test_an_inpainting_base_is_refused():
    pipe = tiny.pipeline(unet_changes={"in_channels": 9})
    with pytest.raises(HostMismatch, match="reads 9 channels"):
        base_of(pipe, BaseModelConfig(dtype="float32"))


def test_a_pipeline_without_texts_is_refused():
    with pytest.raises(HostMismatch, match="has no encode_prompt"):
        text.encode_prompt(SimpleNamespace(), ["a"], torch.device("cpu"))
