"""A bundle unpacked on a machine that has nothing: what trained goes on from what shipped."""

import json

import pytest
import torch
from safetensors.torch import load_file

from imprompt.core.errors import BundleError
from imprompt.emoji.bundle import ADAPTER_FILES, adapter_file, bundle_folder
from imprompt.generation.pipelines import load_pipeline
from imprompt.recipes.emoji import adapters, bundle, unet
from imprompt.recipes.emoji.card import model_card, read_figures
from imprompt.recipes.emoji.paths import models_folder, stage_folder
from imprompt.recipes.emoji.pipeline import build_pipeline, draw
from imprompt.recipes.emoji.restore import restore
from imprompt.training.config import LoopConfig, OptimizerConfig
from imprompt.training.loop.checkpointing import load_averaged_weights
from imprompt.training.loop.order import BatchOrder
from imprompt.training.loop.trainer import Trainer

FIGURES = {"step": 1550, "samples": 49600, "loss": 0.49}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache that holds what shipped and nothing else; no test of this module changes it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("restored")
        patch.setenv("IMPROMPT_CACHE", str(folder))
        restore(bundle_folder())
        yield folder


def test_the_restored_parts_draw_what_the_bundle_draws(cache):
    denoiser = unet.load_denoiser()
    restored = build_pipeline(models_folder(), denoiser.unet)
    shipped = load_pipeline()
    shipped.set_progress_bar_config(disable=True)
    pictures = [draw(pipeline, ["red apple, noto style emoji"], num_steps=2) for pipeline in (restored, shipped)]
    assert torch.equal(*pictures)


def test_the_denoisers_run_begins_with_what_shipped(cache):
    task = Untrained(unet.Denoiser(unet.build(), unet._text_encoder()))
    loop = LoopConfig(output=stage_folder("unet"), num_steps=1, batch_size=1, device="cpu")
    trainer = Trainer(task, loop, OptimizerConfig(ema_decay=0.999))
    shipped = load_file(bundle_folder() / "unet" / "diffusion_pytorch_model.safetensors")
    assert trainer.step == 0
    for name, value in shipped.items():
        assert torch.equal(task.model.unet.state_dict()[name], value.float())
        assert torch.equal(trainer.average.state_dict()[f"unet.{name}"], value.float())


@pytest.mark.parametrize("kind", list(ADAPTER_FILES))
def test_the_adapters_runs_begin_with_what_shipped(cache, kind):
    adapter = adapters.build(kind, unet.build())
    adapter.load_state_dict(load_averaged_weights(stage_folder(f"adapter-{kind}")) or {})
    shipped = load_file(adapter_file(kind))
    assert adapter.state_dict().keys() == shipped.keys()
    assert all(torch.equal(value, shipped[name].float()) for name, value in adapter.state_dict().items())


def test_nothing_that_was_trained_here_is_replaced(cache):
    with pytest.raises(BundleError, match="IMPROMPT_CACHE"):
        restore(bundle_folder())


def test_a_card_still_tells_of_the_runs_before(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPROMPT_CACHE", str(tmp_path))
    (stage_folder("unet")).mkdir(parents=True)
    (stage_folder("unet") / "log.jsonl").write_text(json.dumps({**FIGURES, "step": 10}) + "\n")
    earlier = read_figures(model_card({"clip": FIGURES, "unet": FIGURES, "unet, before": FIGURES}, ""))
    assert list(earlier) == ["clip", "unet", "unet, before"]
    (tmp_path / "emoji" / "earlier_figures.json").write_text(json.dumps(earlier))
    figures = bundle.training_figures()
    assert list(figures) == ["clip", "unet", "unet, before", "unet, before, before"]
    assert figures["unet"]["step"] == 10
    assert figures["unet, before"] == FIGURES


class Untrained:
    """A task that is never asked for a loss."""

    num_examples = 1
    order = BatchOrder(1, 1, seed=0)

    def __init__(self, model):
        self.model = model

    def batch(self, draw):
        raise NotImplementedError

    def loss(self, batch):
        raise NotImplementedError

    def preview(self, step):
        raise NotImplementedError
