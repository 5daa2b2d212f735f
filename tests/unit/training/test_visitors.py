"""Models that only sheets need wait elsewhere; on the CPU nothing moves."""

import torch
from torch import nn

from imprompt.training.feedback.visitors import Visitors, idle_parts
from tests import tiny


class Watched(nn.Linear):
    """A layer that notes where it is sent."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.sent: list[str] = []

    def to(self, device: torch.device) -> "Watched":  # type: ignore[override]
        self.sent.append(device.type)
        return self


def test_visitors_come_and_go() -> None:
    model = Watched()
    visitors = Visitors([model], torch.device("cuda"))
    assert model.sent == ["cpu"]
    try:
        with visitors.present():
            assert model.sent == ["cpu", "cuda"]
            raise KeyError
    except KeyError:
        assert model.sent == ["cpu", "cuda", "cpu"]


def test_on_the_cpu_nothing_moves() -> None:
    model = Watched()
    with Visitors([model], torch.device("cpu")).present():
        pass
    assert model.sent == []


def test_idle_is_what_no_step_computes_with() -> None:
    parts = tiny.pipeline(image_encoder=tiny.vision_tower(), feature_extractor=tiny.image_processor()).components
    assert set(idle_parts(parts, texts=True, latents=True)) == {"image_encoder"}
    assert set(idle_parts(parts, texts=True, latents=False)) == {"image_encoder", "vae"}
    assert set(idle_parts(parts, texts=False, latents=False)) == {"image_encoder", "text_encoder", "vae"}
