"""Exponential moving average of trained parameters."""

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """Keeps the averaged copy of every trainable parameter; all else of the state is the model's own.

    The decay rises as `(1 + step) / (10 + step)` until it reaches its final value, so that the random start is
    forgotten quickly.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start the average at the model's present parameters."""
        self.decay = decay
        self._parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._averages = {name: value.detach().clone() for name, value in self._parameters.items()}
        self._model = model

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the parameters after the step of the given number."""
        decay = min(self.decay, (1 + step) / (10 + step))
        parameters = [value.detach() for value in self._parameters.values()]
        averages = [*self._averages.values()]
        torch._foreach_lerp_(averages, parameters, 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def state_dict(self) -> dict[str, Tensor]:
        """State of the model with averaged parameters."""
        return {**self._model.state_dict(), **self._averages}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the averages from a state that `state_dict` gave."""
        for name, average in self._averages.items():
            average.copy_(state[name])
