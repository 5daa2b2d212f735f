"""All stages in a row on a handful of invented pictures: what each hands on is what the next one takes."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from imprompt.adapter.checkpoint import load_adapter
from imprompt.core.errors import BundleError
from imprompt.emoji.bundle import ADAPTER_FILES
from imprompt.emoji.styles import STYLES
from imprompt.recipes.emoji import adapters, autoencoder, bundle, dataset, stages, teacher, tokenizer, unet, vision
from imprompt.recipes.emoji.paths import models_folder, stage_folder
from imprompt.recipes.emoji.sources import Subject
from imprompt.training.loop.task import Draw

SUBJECTS = tuple(
    Subject(hexcode, label, ("thing", "toy"), (), "objects")
    for hexcode, label in (("1F34E", "red apple"), ("1F3B8", "guitar"), ("1F418", "elephant"))
)


@pytest.fixture
def pictures():
    images = np.random.default_rng(0).integers(0, 255, (len(SUBJECTS) * len(STYLES), 64, 64, 3), dtype=np.uint8)
    styles = np.repeat(np.arange(len(STYLES)), len(SUBJECTS))
    return dataset.EmojiPictures(images, styles, np.tile(np.arange(len(SUBJECTS)), len(STYLES)), SUBJECTS)


@pytest.fixture
def cache(tmp_path, monkeypatch, pictures):
    """A cache of its own, the invented pictures in place of the real ones, a teacher of random features."""
    monkeypatch.setenv("IMPROMPT_CACHE", str(tmp_path))
    monkeypatch.setattr(dataset, "load", lambda *_, **__: pictures)
    monkeypatch.setattr(tokenizer, "corpus", lambda: ["red apple, noto style emoji", "guitar", "elephant"])

    def random_grid(images):
        return torch.randn(len(images), 1280, 4, 4, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(teacher, "teacher_grid", random_grid)
    return tmp_path


def run(stage):
    default_config, runner = stages.STAGES[stage]
    config = default_config()
    short = {"num_steps": 2, "batch_size": 4, "log_every": 1, "autocast": "no", "trackers": ()}
    loop = stages.changed(config.loop, short)
    changes = {"perceptual_weight": 0.0} if isinstance(config, autoencoder.AutoencoderConfig) else {}
    changes["preview_every"] = 0
    return runner(dataclasses.replace(config, loop=loop, **changes))


@pytest.mark.slow
def test_the_stages_follow_each_other_to_a_bundle_that_opens(cache):
    for stage in stages.STAGES:
        assert run(stage).exists()
        assert list(stage_folder(stage).parent.glob(f"{stage.replace('t2i-', 't2i_')}*/log.jsonl"))
    folder = bundle.run(bundle.BundleConfig(cache / "bundle"))
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("red apple", num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)
    for file in ADAPTER_FILES.values():
        assert load_adapter(folder / "adapters" / file).spec.cross_attention_dim == unet.TEXT_WIDTH
    assert list((folder / "references").glob("elephant*.png"))
    assert "Twitter, Inc" in (folder / "NOTICE").read_text()
    assert "| unet | 2 |" in (folder / "README.md").read_text()


def test_a_bundle_without_its_parts_names_the_stage_to_run(cache):
    with pytest.raises(BundleError, match="vae"):
        bundle.run(bundle.BundleConfig(cache / "bundle"))
    assert not list(cache.glob("*bundle*"))


def test_the_decoder_stage_leaves_the_encoder_as_it_is(cache):
    run("autoencoder")
    encoder = autoencoder.AutoencoderTiny.from_pretrained(models_folder() / "vae").encoder.state_dict()
    run("decoder")
    after = autoencoder.AutoencoderTiny.from_pretrained(models_folder() / "vae")
    assert all(torch.equal(value, encoder[name]) for name, value in after.encoder.state_dict().items())


def test_adapters_fit_the_denoiser_and_start_from_its_text_weights():
    host = unet.build()
    for kind in ADAPTER_FILES:
        adapter = adapters.build(kind, host)
        assert len(adapter.spec.site_indices) == 7
        text = host.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.weight
        assert torch.equal(adapter.ip_adapter["1"].to_k_ip.weight, text)


def test_the_whole_family_fits_into_what_ships():
    host = unet.build()
    parts = [host, autoencoder.build(), vision.build(), unet.build_text_encoder(tokenizer.VOCABULARY_SIZE, 0, 1)]
    parts += [adapters.build(kind, host) for kind in ADAPTER_FILES]
    num_parameters = sum(value.numel() for part in parts for value in part.parameters())
    assert 2 * num_parameters < bundle.LIMIT_BYTES - 200_000


def test_loss_of_the_denoiser_depends_on_the_draw_alone(cache, pictures):
    for stage in ("vision", "autoencoder"):
        run(stage)
    run("unet")
    task = unet.UNetTask(unet.load_denoiser(), unet.DiffusionExamples(pictures), unet.default_config())
    rows = torch.arange(4)
    draws = [Draw(step, 0, rows, rows, batch_size=4) for step in (0, 0, 1)]
    losses = [task.loss(task.batch(draw))[0].item() for draw in draws]
    assert losses[0] == losses[1] != losses[2]
    spread = Draw(0, 0, torch.zeros(6, dtype=torch.long), torch.arange(6), batch_size=6)
    assert int((task.batch(spread).noisy.timesteps >= 500).sum()) == 4  # the noisier half of the schedule more often


def test_a_picture_is_the_same_whoever_draws_it(cache, pictures):
    run("vision")
    run("autoencoder")
    examples = unet.DiffusionExamples(pictures)
    samples, rows = torch.tensor([3, 1, 4, 1]), torch.arange(4)
    options = {"empty_caption": 0.5, "styled_captions": 0.5}
    whole = examples.captioned_batch(Draw(7, 0, samples, rows, batch_size=4), **options)
    part = examples.captioned_batch(Draw(7, 0, samples[2:], rows[2:], batch_size=4), **options)
    assert torch.equal(part.token_ids, whole.token_ids[2:])
    assert torch.equal(part.noisy.noisy, whole.noisy.noisy[2:])
    assert torch.equal(part.noisy.timesteps, whole.noisy.timesteps[2:])
