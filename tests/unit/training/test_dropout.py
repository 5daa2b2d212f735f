import pytest
import torch
from pydantic import ValidationError

from imprompt.training.config import DropoutConfig
from imprompt.training.loop.task import Draw
from imprompt.training.objective.dropout import draw_dropout


def draw_of(rows, batch_size=100_000, step=0):
    return Draw(step=step, seed=0, samples=rows, rows=rows, batch_size=batch_size)


def test_each_way_to_drop_has_its_rate():
    no_image, no_text = draw_dropout(DropoutConfig(image=0.05, text=0.1, both=0.2), draw_of(torch.arange(100_000)))
    ways = {"image": no_image & ~no_text, "text": ~no_image & no_text, "both": no_image & no_text}
    rates = {way: float(dropped.float().mean()) for way, dropped in ways.items()}
    assert rates == {"image": pytest.approx(0.05, abs=4e-3), "text": pytest.approx(0.1, abs=4e-3),
                     "both": pytest.approx(0.2, abs=5e-3)}  # fmt: skip


@pytest.mark.parametrize("way", ["image", "text", "both"])
def test_a_way_that_is_certain_drops_every_row(way):
    rates = {"image": 0.0, "text": 0.0, "both": 0.0, way: 1.0}
    no_image, no_text = draw_dropout(DropoutConfig(**rates), draw_of(torch.arange(50), batch_size=50))
    assert bool(no_image.all()) == (way != "text")
    assert bool(no_text.all()) == (way != "image")
    assert bool(no_image.any()) == (way != "text")


def test_whose_condition_is_dropped_does_not_depend_on_how_the_batch_is_split():
    config = DropoutConfig(image=0.3, text=0.3, both=0.3)
    whole = draw_dropout(config, draw_of(torch.arange(64), batch_size=64))
    part = draw_dropout(config, draw_of(torch.tensor([40, 3]), batch_size=64))
    for ours, all_rows in zip(part, whole, strict=True):
        assert torch.equal(ours, all_rows[[40, 3]])


@pytest.mark.parametrize("rates", [(0.5, 0.5, 0.5), (-0.1, 0.0, 0.0)])
def test_impossible_rates_are_refused(rates):
    with pytest.raises(ValidationError):
        DropoutConfig(**dict(zip(("image", "text", "both"), rates, strict=True)))
