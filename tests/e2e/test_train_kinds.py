"""Every kind of adapter is trained on every family that it is for: three steps from a folder of pictures to a file."""

import json
import math

import pytest
import torch
from diffusers import DiffusionPipeline

from imprompt.adapter.checkpoint import load_adapter
from imprompt.recipes import read_config
from imprompt.training.bases import load_base
from imprompt.training.config import (
    AdapterConfig,
    BaseModelConfig,
    DataConfig,
    FeaturesConfig,
    LoopConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)
from imprompt.training.loop.task import Draw
from imprompt.training.run import Run
from tests.training_data import base_folder, picture_folder

UNETS = ("sd1", "sdxl")
FAMILIES = (*UNETS, "sd3", "flux")
KINDS = ("global", "plus", "full", "faceid", "faceid-plus")
WHOLE_RUNS = (("sd1", "faceid-plus"), ("flux", "full"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Pictures, features that all tests share, and a base of each family, on disk."""
    root = tmp_path_factory.mktemp("training")
    picture_folder(root / "pictures", faces=True)
    for family in FAMILIES:
        base_folder(root / family, family)
    return root


@pytest.fixture(scope="module")
def loaded(folders):
    """The bases in memory, loaded once."""
    return {
        family: load_base(BaseModelConfig(path=str(folders / family), dtype="float32"), "cpu") for family in FAMILIES
    }


def config_for(folders, family, output, kind="global", **changes) -> TrainConfig:
    data = {"resolution": 32, "bucket_step": 8, "num_workers": 0, "mirror": True, "num_views": 2}
    parts = {
        "recipe": f"tiny-{kind}",
        "base": BaseModelConfig(path=str(folders / family), dtype="float32"),
        "adapter": AdapterConfig(kind=kind, lora_rank=2, image_encoder=str(folders / family / "image_encoder")),
        "data": DataConfig(source=folders / "pictures", **{**data, **changes.pop("data", {})}),
        "features": FeaturesConfig(folder=folders / "features"),
        "optimizer": OptimizerConfig(learning_rate=1e-3),
        "loop": LoopConfig(output=output, num_steps=3, batch_size=4, log_every=1, trackers=(), autocast="no"),
        "validation": ValidationConfig(every=3, sheet_every=0),
    }
    return TrainConfig(**{**parts, **changes})


def run_for(loaded, folders, family, output, kind="global", **changes) -> Run:
    """A run on a base that is loaded already."""
    run = Run(config_for(folders, family, output, kind, **changes))
    run.base = loaded[family]
    return run


def draw_of(run, step=0):
    bucket, samples = run.task.order.at(step)
    return Draw(step, 0, samples, torch.arange(len(samples)), len(samples), bucket)


def loss_of(run):
    with run.task.attachment:
        loss, figures = run.task.loss(run.task.batch(draw_of(run)))
        if loss.requires_grad:
            loss.backward()
    return loss.item(), figures


@pytest.mark.parametrize(("family", "kind"), WHOLE_RUNS)
def test_three_steps_leave_an_adapter_a_log_and_a_report(loaded, folders, tmp_path, family, kind):
    run = run_for(loaded, folders, family, tmp_path / "run", kind)
    start = {name: value.clone() for name, value in run.adapter.state_dict().items()}
    finished = run.train()
    assert finished.step == 3
    found = load_adapter(finished.adapter)
    changed = [name for name, value in found.state_dict().items() if not torch.equal(value, start[name])]
    assert len(changed) > 0.9 * len(start)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert len(losses) == 3 and all(math.isfinite(loss) for loss in losses)
    assert any("validation/reference_gain" in line for line in log)
    assert (tmp_path / "run" / "report.html").is_file()
    assert read_config(tmp_path / "run" / "config.json") == run.config


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_weight_of_the_adapter_and_none_of_the_base(loaded, folders, tmp_path, family, kind):
    run = run_for(loaded, folders, family, tmp_path / "run", kind)
    before = {name: value.clone() for name, value in run.base.denoiser.state_dict().items()}
    loss, _ = loss_of(run)
    assert math.isfinite(loss)
    unreached = {name for name, value in run.adapter.named_parameters() if value.grad is None or not value.grad.any()}
    # Nothing can reach the first matrix of a low-rank change whose second one is still zero.
    assert {name for name in unreached if not name.endswith("_lora.down.weight")} == set()
    assert all(weight.grad is None for weight in run.base.denoiser.parameters())
    assert all(torch.equal(value, before[name]) for name, value in run.base.denoiser.state_dict().items())


@pytest.mark.parametrize(("family", "kind"), [("sd1", "plus"), ("sdxl", "global")])
def test_diffusers_loads_what_was_trained(loaded, folders, tmp_path, family, kind):
    run = run_for(loaded, folders, family, tmp_path / "run", kind)
    with run.task.attachment:
        run.task.export(tmp_path, run.adapter.state_dict())
    pipe = DiffusionPipeline.from_pretrained(folders / family, safety_checker=None)
    pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name=run.adapter_file.name, image_encoder_folder=None)
    theirs = pipe.unet.encoder_hid_proj.image_projection_layers[0]
    expected = sum(value.numel() for name, value in run.adapter.state_dict().items() if name.startswith("image_proj."))
    assert sum(value.numel() for value in theirs.parameters()) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_online_is_what_is_cached(loaded, folders, tmp_path, family):
    """The same loss, up to the formats in which features are kept."""
    losses = []
    for place in ("cached", "online"):
        features = FeaturesConfig(folder=folders / "features", latents=place, references=place)
        data = {"mirror": False, "num_views": 1}
        run = run_for(loaded, folders, family, tmp_path / place, "plus", features=features, data=data)
        losses.append(loss_of(run)[0])
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


def test_gradient_checkpointing_changes_no_gradient(folders, tmp_path):
    gradients = []
    for checkpointing in (False, True):
        base = BaseModelConfig(path=str(folders / "sd1"), dtype="float32", gradient_checkpointing=checkpointing)
        run = Run(config_for(folders, "sd1", tmp_path / str(checkpointing), "plus", base=base))
        loss_of(run)
        gradients.append({name: value.grad for name, value in run.adapter.named_parameters()})
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name])


def test_a_half_precision_base_trains_an_adapter_in_single_precision(folders, tmp_path):
    base = BaseModelConfig(path=str(folders / "sd1"), dtype="bfloat16")
    run = Run(config_for(folders, "sd1", tmp_path / "run", base=base))
    loss, _ = loss_of(run)
    assert {value.dtype for value in run.base.denoiser.parameters()} == {torch.bfloat16}
    assert {value.grad.dtype for value in run.adapter.parameters()} == {torch.float32}
    assert math.isfinite(loss)


def test_several_references_share_one_softmax(loaded, folders, tmp_path):
    """Two references of a group; a third one that would repeat them is masked and changes nothing."""
    outputs = []
    for count in (2, 3):
        data = {"references": "group", "num_references": count}
        run = run_for(loaded, folders, "sd1", tmp_path / str(count), "plus", data=data)
        batch = run.task.batch(draw_of(run))
        assert batch.references.features["features"].shape[1] == count
        outputs.append(batch.references.present.sum(1))
        assert math.isfinite(loss_of(run)[0])
    assert torch.equal(outputs[0], outputs[1])
