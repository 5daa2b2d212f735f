import numpy as np
import pytest
import torch

from imprompt.adapter.attach import attach as attach_tokens
from imprompt.core.errors import EncoderMismatch, PromptError
from imprompt.generation.attach import attach
from imprompt.generation.generate import generate
from imprompt.generation.request import Request
from imprompt.prompts.image_prompt import ImagePrompt
from imprompt.training.config import ValidationConfig
from imprompt.training.feedback import sheets
from imprompt.training.feedback.sheets import SheetPainter, SheetReference, plan_sheet
from tests import tiny

CONFIG = ValidationConfig(steps=2, guidance_scale=3.0)


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline(
        family="small", image_encoder=tiny.vision_tower(), feature_extractor=tiny.image_processor()
    )  # fmt: skip


@pytest.fixture(scope="module")
def adapter(pipe):
    return tiny.adapter(pipe.unet).requires_grad_(True).train()


def samples():
    texts = ("a cat", "a street")
    return [SheetReference(ImagePrompt(tiny.picture(seed=number)), (text,)) for number, text in enumerate(texts)]


@pytest.fixture
def drawn(monkeypatch):
    """Rows and labels that sheets are made of."""
    calls = []
    make = sheets.contact_sheet
    monkeypatch.setattr(sheets, "contact_sheet", lambda *args, **named: calls.append(args) or make(*args, **named))
    return calls


def alone(pipe, adapter, prompt, text, weight):
    """The picture that a fresh attachment makes of one cell."""
    request = Request(
        prompt=text,
        image_prompts=[ImagePrompt(prompt.image, weight=weight)],
        steps=2,
        guidance_scale=3.0,
        seed=0,
        height=tiny.PIXELS,
        width=tiny.PIXELS,
    )
    with attach(pipe, adapter) as images:
        return generate(pipe, images, request).images[0]


def test_rows_are_references_alone_and_with_text_and_columns_are_weights(pipe, adapter, drawn):
    plan = plan_sheet(CONFIG, samples(), size=tiny.PIXELS)
    sheet = SheetPainter(pipe, plan).draw(adapter)
    (rows, columns, labels), = drawn  # fmt: skip
    assert columns == ["reference", "weight 0", "weight 0.5", "weight 1"]
    assert labels == ["image alone", "a cat", "image alone", "a street"]
    assert sheet.size[0] > 4 * sheets.CELL and sheet.size[1] > 4 * sheets.CELL
    for (reference, text), row in zip(plan.rows(), rows, strict=True):
        assert row[0].tobytes() == reference.shown().tobytes()
        for weight, picture in zip(plan.scales, row[1:], strict=True):
            expected = np.asarray(alone(pipe, adapter, reference.prompt, text, weight), dtype=int)
            assert np.abs(np.asarray(picture, dtype=int) - expected).max() <= 1  # batches round


def test_training_computes_as_before_through_the_same_attachment(pipe, adapter):
    training = attach_tokens(pipe.unet, adapter)
    inputs = tiny.host_inputs(pipe.unet, 2)

    def step():
        training.set(tiny.conditioning(tiny.branch(adapter, 2, null=False)))
        loss = pipe.unet(**inputs).sample.square().mean()
        adapter.zero_grad()
        loss.backward()
        return loss.detach(), [value.grad.clone() for value in adapter.parameters()]

    before = step()
    expected = SheetPainter(tiny.pipeline(
        family="small", image_encoder=tiny.vision_tower(), feature_extractor=tiny.image_processor()
    ), plan_sheet(CONFIG, samples(), size=tiny.PIXELS)).draw(adapter)  # fmt: skip
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        made = SheetPainter(pipe, plan_sheet(CONFIG, samples(), size=tiny.PIXELS), training=training).draw(adapter)
    after_random = torch.rand(2)
    after = step()
    training.detach()
    torch.manual_seed(3)
    assert torch.equal(after_random, torch.rand(2))
    assert made.tobytes() == expected.tobytes()  # no trace of training's attachment, nor of autocast
    assert torch.equal(after[0], before[0])
    for ours, theirs in zip(after[1], before[1], strict=True):
        assert torch.equal(ours, theirs)
    assert adapter.training and all(value.requires_grad for value in adapter.parameters())


def test_a_base_in_half_precision_draws_too():
    pipe = tiny.pipeline(family="small", image_encoder=tiny.vision_tower(), feature_extractor=tiny.image_processor())
    pipe.to(torch.bfloat16)
    adapter = tiny.adapter(pipe.unet)
    plan = plan_sheet(CONFIG, samples()[:1], size=tiny.PIXELS)
    SheetPainter(pipe, plan).draw(adapter)
    assert {value.dtype for value in adapter.parameters()} == {torch.float32}


def test_each_different_picture_is_made_once(pipe, adapter, monkeypatch):
    made = []
    monkeypatch.setattr(
        sheets, "generate", lambda pipe, images, requests, **named: made.extend(requests) or generate(
            pipe, images, requests, **named
        )
    )  # fmt: skip
    SheetPainter(pipe, plan_sheet(CONFIG, samples(), size=tiny.PIXELS)).draw(adapter)
    assert len(made) == 3 + 4 * 2  # weight 0 does not look at the reference: once for each text


def test_pictures_are_encoded_once_in_a_run(pipe, adapter, monkeypatch):
    painter = SheetPainter(pipe, plan_sheet(CONFIG, samples(), size=tiny.PIXELS))
    painter.draw(adapter)
    monkeypatch.setattr(type(pipe.image_encoder), "forward", None)
    painter.draw(adapter)


def test_configured_references_and_prompts_go_before_those_of_samples(tmp_path):
    tiny.picture().save(tmp_path / "cat.png")
    config = ValidationConfig(references=(tmp_path / "cat.png",), prompts=("in the rain", "in the sun"))
    assert [text for _, text in plan_sheet(config, samples()).rows()] == ["", "in the rain", "in the sun"]
    config = ValidationConfig(references=(tmp_path / "cat.png",))
    assert [text for _, text in plan_sheet(config, samples()).rows()] == ["", "a cat"]
    config = ValidationConfig(prompts=("in the rain",))
    assert [text for _, text in plan_sheet(config, samples()).rows()] == ["", "in the rain"] * 2


def test_without_any_reference_there_is_no_sheet():
    with pytest.raises(PromptError, match="validation.references"):
        plan_sheet(ValidationConfig(), [])


def test_features_stand_in_for_an_encoder_that_is_not_at_hand(adapter):
    pipe = tiny.pipeline(family="small")
    plan = plan_sheet(CONFIG, samples()[:1], size=tiny.PIXELS)
    with pytest.raises(EncoderMismatch, match="image_encoder"):
        SheetPainter(pipe, plan).draw(adapter)
    reference = SheetReference(ImagePrompt(features=torch.ones(tiny.VISION_PROJECTION)), ("a cat",), tiny.picture())
    plan = plan_sheet(CONFIG, [reference], size=tiny.PIXELS)
    assert SheetPainter(pipe, plan).draw(adapter).size[0] > 4 * sheets.CELL


def test_long_texts_are_cut_beside_their_rows(pipe, adapter, drawn):
    reference = SheetReference(ImagePrompt(tiny.picture()), ("word " * 40,))
    plan = plan_sheet(ValidationConfig(steps=1, scales=(0.0,)), [reference], size=tiny.PIXELS)
    SheetPainter(pipe, plan).draw(adapter)
    label = drawn[0][2][1]
    assert label.startswith("word word") and label.endswith("word…") and len(label) <= sheets.MOST_LETTERS
