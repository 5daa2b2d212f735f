"""Three ways to give the base an image, which the paper compares (arXiv 2308.06721, sections 4.1 and 4.4.1).

All begin with the same projector on the same base, and are alike in everything but where the image's tokens go and
what of the base learns with them.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.attach import attach
from imprompt.adapter.conditioning import Branch, Conditioning
from imprompt.recipes.emoji.adapters import build

Kind = Literal["decoupled", "concatenated", "finetuned"]


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One way, as it is trained.

    Attributes:
        kind: Which.
        title: In tables.
        learning_rate: Its peak.
    """

    kind: Kind
    title: str
    learning_rate: float


ABLATIONS: dict[str, Ablation] = {
    "decoupled": Ablation(kind="decoupled", title="decoupled cross-attention", learning_rate=1e-3),
    "concatenated": Ablation(kind="concatenated", title="image tokens behind the text's", learning_rate=1e-3),
    # What suits a fresh projector is too much for weights that are trained already.
    "finetuned": Ablation(kind="finetuned", title="image tokens behind the text's, all trained", learning_rate=4e-4),
}


@runtime_checkable
class Way(Protocol):
    """An image's way into a denoiser, which is called as ever."""

    @property
    def trained(self) -> nn.Module:
        """All that is trained, and nothing else."""
        ...

    def set(self, features: Float[Tensor, "rows width"]) -> None:
        """Say which image each row of the next calls follows; zeros stand for none."""
        ...


class Decoupled:
    """An IP-Adapter: keys and values of the image's own, beside those of the text; the base is frozen."""

    def __init__(self, unet: UNet2DConditionModel, pipe: Any = None) -> None:
        """Attach a fresh adapter.

        Args:
            unet: The denoiser.
            pipe: The pipeline around it, where one draws.
        """
        self.trained: Adapter = build("global", unet).to(unet.device)
        self._is_guided = pipe is not None
        self._attachment = attach(unet if pipe is None else pipe, self.trained)

    def set(self, features: Float[Tensor, "rows width"]) -> None:
        """See `Way.set`."""
        rows = len(features)
        branch = Branch(
            tokens=self.trained.project(features),
            null_tokens=self.trained.project(torch.zeros_like(features)) if self._is_guided else None,
            scale=torch.ones(1, len(self._attachment.sites), rows),
        )
        self._attachment.set(Conditioning(branches=(branch,), rows=rows))


class Concatenated:
    """The image's tokens behind the text's states, so that the base's own cross-attention reads both."""

    def __init__(self, unet: UNet2DConditionModel, *, trains_denoiser: bool) -> None:
        """Put a fresh projector in front of the denoiser.

        Args:
            unet: The denoiser.
            trains_denoiser: Whether it is trained together with the projector.
        """
        self.projector = build("global", unet).image_proj.to(unet.device)
        parts = {"projector": self.projector}
        self.trained: nn.Module = nn.ModuleDict(
            {**parts, "unet": unet.requires_grad_(True)} if trains_denoiser else parts
        )
        self._features: Tensor | None = None
        unet.register_forward_pre_hook(self._append, with_kwargs=True)

    def set(self, features: Float[Tensor, "rows width"]) -> None:
        """See `Way.set`."""
        self._features = features

    def _append(self, _: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
        """The call with longer states; with guidance its first half is for no image."""
        states, features = options["encoder_hidden_states"], self._features
        assert features is not None
        if len(states) == 2 * len(features):
            features = torch.cat([torch.zeros_like(features), features])
        tokens = self.projector(features).to(states.dtype)
        return arguments, {**options, "encoder_hidden_states": torch.cat([states, tokens], dim=1)}


def prepare(kind: Kind, unet: UNet2DConditionModel, pipe: Any = None) -> Way:
    """A fresh way into a denoiser; the same for the same seed of torch.

    Args:
        kind: Which.
        unet: The denoiser, frozen; it is changed.
        pipe: The pipeline around it, where one draws.
    """
    if kind == "decoupled":
        return Decoupled(unet, pipe)
    return Concatenated(unet, trains_denoiser=kind == "finetuned")
