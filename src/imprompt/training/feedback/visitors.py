"""Frozen models that no step needs: they wait in the CPU's memory and come to the device while something is drawn."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

TEXT_ENCODER = "text_encoder"
UNUSED = ("image_encoder", "safety_checker")
"""Models of pipelines that training has no use for: references have an encoder of their own."""


class Visitors:
    """Models that are on the device only while they are asked to be."""

    def __init__(self, models: Sequence[nn.Module], device: torch.device) -> None:
        """Send the models away; on the CPU they stay where they are.

        Args:
            models: Frozen models.
            device: Where they will visit.
        """
        self.models = list(models)
        self.device = device
        self._move(torch.device("cpu"))

    @contextmanager
    def present(self) -> Iterator[None]:
        """All of them on the device, and away again afterwards."""
        self._move(self.device)
        try:
            yield
        finally:
            self._move(torch.device("cpu"))

    def _move(self, device: torch.device) -> None:
        if self.device.type != "cpu":
            for model in self.models:
                model.to(device)


def idle_parts(components: Mapping[str, Any], *, texts: bool, latents: bool) -> dict[str, nn.Module]:
    """Models of a pipeline that no training step computes with, by name.

    Args:
        components: Of the pipeline.
        texts: Whether captions are encoded at every step.
        latents: Whether pictures are.
    """
    models = {name: part for name, part in components.items() if isinstance(part, nn.Module)}
    return {
        name: model
        for name, model in models.items()
        if name in UNUSED or (name == "vae" and not latents) or (name.startswith(TEXT_ENCODER) and not texts)
    }
