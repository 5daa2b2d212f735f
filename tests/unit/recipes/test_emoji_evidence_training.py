"""Three ways to give the base an image: what each trains, that all see the same, and that runs are finished once."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from imprompt import emoji
from imprompt.core.errors import ImpromptError
from imprompt.emoji.styles import STYLES
from imprompt.generation.attach import attach
from imprompt.generation.pipelines import load_pipeline
from imprompt.prompts.image_prompt import ImagePrompt
from imprompt.recipes.emoji import dataset
from imprompt.recipes.emoji.adapters import build
from imprompt.recipes.emoji.base import load_base
from imprompt.recipes.emoji.evidence import training
from imprompt.recipes.emoji.evidence.ablations import ABLATIONS, prepare
from imprompt.recipes.emoji.evidence.cost import read_cost
from imprompt.recipes.emoji.evidence.references import Reference
from imprompt.recipes.emoji.evidence.settings import EvidenceSettings
from imprompt.recipes.emoji.sources import Subject
from imprompt.training.config import DropoutConfig
from imprompt.training.loop.checkpointing import load_averaged_weights, load_checkpoint, newest_checkpoint
from imprompt.training.loop.optimizers import computes_bfloat16
from imprompt.training.loop.task import Draw

KINDS = tuple(ABLATIONS)
APPENDED = ("concatenated", "finetuned")
SUBJECTS = tuple(
    Subject(hexcode, label, ("thing", "toy"), (), "objects")
    for hexcode, label in (("1F34E", "red apple"), ("1F3B8", "guitar"), ("1F418", "elephant"))
)


@pytest.fixture(scope="module")
def invented():
    images = np.random.default_rng(0).integers(0, 255, (len(SUBJECTS) * len(STYLES), 64, 64, 3), dtype=np.uint8)
    styles = np.repeat(np.arange(len(STYLES)), len(SUBJECTS))
    return dataset.EmojiPictures(images, styles, np.tile(np.arange(len(SUBJECTS)), len(STYLES)), SUBJECTS)


@pytest.fixture(scope="module")
def settings(tmp_path_factory, invented):
    """Of short runs on invented pictures."""
    folder = tmp_path_factory.mktemp("evidence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPROMPT_CACHE", str(folder / "cache"))
        patch.setattr(dataset, "load", lambda *_, **__: invented)
        yield EvidenceSettings(
            bundle=emoji.bundle_folder(),
            work=folder / "work",
            training_seeds=(0,),
            training_steps=4,
            training_batch_size=2,
            num_steps=2,
            batch_size=2,
            num_processes=1,
        )


@pytest.fixture(scope="module")
def trained(settings):
    """The same, with all of it trained."""
    training.train_ablations(settings)
    return settings


@pytest.fixture
def elsewhere(settings, tmp_path):
    """The same in an empty folder."""
    return dataclasses.replace(settings, work=tmp_path)


@pytest.fixture
def task(settings):
    """Makes a task of a kind."""
    loaded = training.load_examples(settings)

    def make(kind):
        config = training.ablation_config(settings, kind, 0)
        return training.AblationTask(load_base(settings.bundle), *loaded, config)

    return make


@pytest.fixture
def seen():
    """What a denoiser may be called with."""
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(2, 8, 8, 8, generator=generator),
        "timestep": torch.tensor([10, 900]),
        "encoder_hidden_states": torch.randn(2, 24, 192, generator=generator),
    }


def first_draw(task):
    _, samples = task.order.at(0)
    return Draw(0, 0, samples, torch.arange(len(samples)), len(samples))


def references(invented, numbers):
    texts = {"split": "held_out_pair", "subject": "guitar", "style": 0, "other": "elephant"}
    return [Reference(number=int(number), pixels=invented.images[number], **texts) for number in numbers]


@pytest.mark.parametrize("kind", APPENDED)
@torch.no_grad()
def test_tokens_that_repeat_the_texts_states_change_nothing(kind, seen):
    unet = load_base().unet
    alone = unet(**seen).sample
    way = prepare(kind, unet)
    way.projector.forward = lambda features: seen["encoder_hidden_states"]  # each key twice: the same softmax
    way.set(torch.zeros(2, 192))
    torch.testing.assert_close(unet(**seen).sample, alone, rtol=1e-4, atol=1e-5)
    way.projector.forward = lambda features: 3 * seen["encoder_hidden_states"].flip(0)
    assert (unet(**seen).sample - alone).abs().max() > 0.01


@torch.no_grad()
def test_decoupled_attention_whose_values_are_zero_changes_nothing(seen):
    unet = load_base().unet
    alone = unet(**seen).sample
    way = prepare("decoupled", unet)
    way.set(torch.randn(2, 192))
    assert (unet(**seen).sample - alone).abs().max() > 0.01
    for site in way.trained.sites:
        site.to_v_ip.weight.zero_()
    way.set(torch.randn(2, 192))
    torch.testing.assert_close(unet(**seen).sample, alone)


@torch.no_grad()
def test_guidances_first_half_follows_no_image(seen):
    unet = load_base().unet
    way = prepare("concatenated", unet)
    doubled = {name: torch.cat([value, value]) for name, value in seen.items()}
    features = torch.randn(2, 192)
    way.set(features)
    negative, positive = unet(**doubled).sample.chunk(2)
    torch.testing.assert_close(unet(**seen).sample, positive)
    way.set(torch.zeros(2, 192))
    torch.testing.assert_close(unet(**seen).sample, negative)


def test_all_ways_see_the_same_and_begin_with_the_same_projector(task):
    tasks = [task(kind) for kind in KINDS]
    batches = [each.batch(first_draw(each)) for each in tasks]
    for batch in batches[1:]:
        for name in ("members", "noisy", "timesteps", "target"):
            assert torch.equal(getattr(batch.noisy, name), getattr(batches[0].noisy, name))
        assert torch.equal(batch.token_ids, batches[0].token_ids)
        assert torch.equal(batch.features, batches[0].features)
    spread = Draw(0, 0, torch.zeros(16, dtype=torch.long), torch.arange(16), 16)
    assert int((tasks[0].batch(spread).noisy.timesteps >= 500).sum()) == 12  # shifted as for the adapters that ship
    projectors = [tasks[0].model.image_proj, *(each.way.projector for each in tasks[1:])]
    assert all(torch.equal(each.proj.weight, projectors[0].proj.weight) for each in projectors)
    configs = [each.config for each in tasks]
    alike = {"learning_rate": 1.0}
    assert len({config.optimizer.model_copy(update=alike).model_dump_json() for config in configs}) == 1
    assert all(
        config.loop.model_copy(update={"output": configs[0].loop.output}) == configs[0].loop for config in configs
    )


def test_features_are_those_of_the_pictures_as_they_are(settings, invented, task):
    made = task("decoupled")
    pipe = load_pipeline(settings.bundle, dtype=torch.float32, device="cpu")
    encoder = training.VisionEncoder(pipe.image_encoder, pipe.feature_extractor)
    for place, number in enumerate(invented.split("train")[:3]):
        reference, *_ = references(invented, [number])
        torch.testing.assert_close(
            made.features[place], encoder.encode([reference.image], layer="image_embeds")[0], rtol=1e-3, atol=1e-4
        )
    draws = [Draw(step, 0, torch.arange(16), torch.arange(16), 16) for step in range(20)]
    batches = [made.batch(draw) for draw in draws]
    features = torch.cat([batch.features for batch in batches])
    kept = made.features[:16].repeat(len(batches), 1)
    no_image = (features == 0).all(dim=1)
    assert torch.equal(features[~no_image], kept[~no_image])
    dropout = made.config.dropout
    assert no_image.float().mean().item() == pytest.approx(dropout.image + dropout.both, abs=0.07)
    no_text = torch.cat([(batch.token_ids == made.examples.token_ids[0]).all(dim=1) for batch in batches])
    assert no_text.float().mean().item() == pytest.approx(dropout.text + dropout.both, abs=0.07)
    assert (no_image & no_text).any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_learns_only_where_it_is_fine_tuned(task, kind):
    made = task(kind)
    loss, _ = made.loss(made.batch(first_draw(made)))
    loss.backward()
    gradients = [value.grad for value in made.base.unet.parameters()]
    if kind == "finetuned":
        assert all(gradient is not None for gradient in gradients)
    else:
        assert all(gradient is None for gradient in gradients)
    assert all(value.grad is None for value in made.base.text_encoder.parameters())
    projector = made.model.image_proj if kind == "decoupled" else made.way.projector
    assert projector.proj.weight.grad.abs().max() > 0


def test_what_a_run_trains_and_costs(trained):
    costs = {}
    for kind in KINDS:
        costs[kind] = training.cost_of(trained, kind, 0)
        weights = load_averaged_weights(training.trained_folder(trained, kind, 0))
        assert sum(value.numel() for value in weights.values()) == costs[kind].num_parameters
        assert costs[kind].num_stored_bytes == 2 * costs[kind].num_parameters
        assert costs[kind].num_pictures == 8
        assert costs[kind].seconds == pytest.approx(4 * costs[kind].seconds_per_step) and costs[kind].seconds > 0
    unet = load_base().unet
    of_projector = build("global", unet).image_proj.state_dict()
    assert costs["concatenated"].num_parameters == sum(value.numel() for value in of_projector.values())
    assert costs["decoupled"].num_parameters == build("global", unet).num_parameters
    of_base = sum(value.numel() for value in unet.parameters())
    assert costs["finetuned"].num_parameters == costs["concatenated"].num_parameters + of_base
    # Forward takes as much; backward, all of it has gradients of the base's weights as well.
    assert costs["finetuned"].operations_per_step > 1.2 * costs["concatenated"].operations_per_step
    moved = load_averaged_weights(training.trained_folder(trained, "finetuned", 0))
    before = unet.state_dict()
    assert any(not torch.equal(moved[f"unet.{name}"], value) for name, value in before.items())


def test_a_finished_run_is_left_as_it_is(trained, monkeypatch):
    folder = training.trained_folder(trained, "concatenated", 0)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(training, "load_base", partial(pytest.fail, "trained again"))
    assert training.train_ablation(trained, "concatenated", 0) == folder
    training.train_ablations(trained)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files
    assert not training.is_trained(dataclasses.replace(trained, training_steps=5), "concatenated", 0)


@pytest.mark.parametrize("changes", [{"training_steps": 3}, {"training_batch_size": 3}, {"num_references": 1}])
def test_with_other_settings_another_run_begins(trained, changes):
    other = dataclasses.replace(trained, **changes)
    for kind in KINDS:
        assert training.is_trained(trained, kind, 0) and not training.is_trained(other, kind, 0)
        assert not training.trained_folder(other, kind, 0).exists()
    before, now = ({arm.needs_training for arm in training.ablation_arms(each)} for each in (trained, other))
    assert not before & now  # so that pictures are drawn anew


def test_at_another_rate_another_run_begins(trained, monkeypatch):
    before = training.trained_folder(trained, "concatenated", 0)
    faster = dataclasses.replace(ABLATIONS["concatenated"], learning_rate=0.02)
    monkeypatch.setitem(ABLATIONS, "concatenated", faster)
    assert [kind for kind in KINDS if not training.is_trained(trained, kind, 0)] == ["concatenated"]
    training.train_ablations(trained)
    assert training.cost_of(trained, "concatenated", 0).learning_rate == 0.02
    old, new = (
        load_averaged_weights(folder) for folder in (before, training.trained_folder(trained, "concatenated", 0))
    )
    assert not all(torch.equal(value, new[name]) for name, value in old.items())


def test_with_other_dropout_another_run_begins(settings, monkeypatch):
    before = training.trained_folder(settings, "decoupled", 0)
    config = training.ablation_config(settings, "decoupled", 0)
    monkeypatch.setattr(training.AblationConfig, "dropout", DropoutConfig(image=0.5))
    assert training.trained_folder(settings, "decoupled", 0) != before
    assert config.dropout != DropoutConfig(image=0.5)


def test_a_killed_run_goes_on_to_the_same_weights(trained, elsewhere, monkeypatch):
    batch = training.AblationTask.batch

    def killed(self, draw):
        if draw.step == 2:
            raise KeyboardInterrupt
        return batch(self, draw)

    with monkeypatch.context() as patch:
        patch.setattr(training.AblationTask, "batch", killed)
        with pytest.raises(KeyboardInterrupt):
            training.train_ablation(elsewhere, "concatenated", 0)
    folder = training.trained_folder(elsewhere, "concatenated", 0)
    assert load_checkpoint(newest_checkpoint(folder / "checkpoints")).counters["step"] == 2
    assert read_cost(folder) is None
    with pytest.raises(ImpromptError, match="not trained to its end"):
        training.open_ablation(elsewhere, "concatenated", 0)
    training.train_ablation(elsewhere, "concatenated", 0)
    resumed, expected = [
        load_averaged_weights(training.trained_folder(each, "concatenated", 0)) for each in (elsewhere, trained)
    ]
    assert all(torch.equal(value, expected[name]) for name, value in resumed.items())


def test_a_run_that_is_told_to_stop_is_not_finished(elsewhere, monkeypatch):
    monkeypatch.setattr(training, "train_stage", lambda *_: 3)
    with pytest.raises(KeyboardInterrupt):
        training.train_ablation(elsewhere, "concatenated", 0)
    assert not training.is_trained(elsewhere, "concatenated", 0)


def test_a_run_whose_time_is_up_is_finished(elsewhere):
    short = dataclasses.replace(elsewhere, training_steps=1000, training_minutes=0.001)
    training.train_ablation(short, "concatenated", 0)
    cost = training.cost_of(short, "concatenated", 0)
    assert cost.num_steps < 1000 and cost.minutes == 0.001
    assert not training.is_trained(dataclasses.replace(short, training_minutes=1.0), "concatenated", 0)


def test_arms_draw_from_references_and_noise(trained, invented):
    arms = training.ablation_arms(trained)
    assert [arm.name for arm in arms] == ["decoupled-0", "concatenated-0", "finetuned-0"]
    for kind, arm in zip(KINDS, arms, strict=True):
        assert arm.needs_training == (training.trained_folder(trained, kind, 0).name,)
        draw = arm.open(trained)
        drawn = draw(references(invented, [1, 2, 3]), [7, 7, 8])
        assert drawn.shape == (3, 3, 64, 64) and drawn.dtype == torch.uint8
        again = draw(references(invented, [3]), [8])[0]
        assert (again.int() - drawn[2].int()).abs().float().mean() < 1  # encoded alone: other rounding, in bfloat16
        assert not torch.equal(drawn[0], drawn[1])  # the same noise, another reference
        assert not torch.equal(draw(references(invented, [1]), [8])[0], drawn[0])


def test_the_decoupled_arm_draws_as_an_attached_adapter_does(trained, invented):
    exact = dataclasses.replace(trained, autocast="no")
    folder = training.train_ablation(exact, "decoupled", 0)
    assert (folder == training.trained_folder(trained, "decoupled", 0)) == (not computes_bfloat16(torch.device("cpu")))
    drawn = training.open_ablation(exact, "decoupled", 0)(references(invented, [5]), [3])
    pipe = load_pipeline(trained.bundle, dtype=torch.float32, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    adapter = build("global", pipe.unet)
    adapter.load_state_dict(load_averaged_weights(folder))
    with attach(pipe, adapter) as images:
        images.set(ImagePrompt(references(invented, [5])[0].image))
        expected = pipe(
            "",
            num_inference_steps=trained.num_steps,
            guidance_scale=trained.guidance_scale,
            generator=torch.Generator().manual_seed(3),
            output_type="np",
        ).images
    difference = drawn[0].permute(1, 2, 0).numpy() / 255 - expected[0]
    assert abs(difference).max() < 0.01
