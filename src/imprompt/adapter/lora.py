"""The low-rank change that FaceID adapters make to every attention of their host, while they are attached.

`to_q(x) + scale * up(down(x))`, likewise for keys, values and the output (tencent-ailab/IP-Adapter at 62e4af9,
`attention_processor_faceid.py`; its `network_alpha` is None, so the rank does not enter).
"""

from collections.abc import Iterator
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from imprompt.adapter.sites import submodule

# What is changed: its name in checkpoints, and its path in an attention.
TARGETS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}


class LowRank(nn.Module):
    """One pair of matrices, without biases."""

    def __init__(self, in_width: int, out_width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(in_width, rank, bias=False)
        self.up = nn.Linear(rank, out_width, bias=False)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """What is added to the layer's output."""
        return self.up(self.down(x.to(self.down.weight.dtype))).to(x.dtype)


def add_lora(module: Any, *, rank: int, width: int, key_width: int) -> None:
    """Give a module the four pairs of one attention, under the names that checkpoints have for them."""
    for name in TARGETS:
        in_width = key_width if name in ("to_k", "to_v") else width
        setattr(module, f"{name}_lora", LowRank(in_width, width, rank))


class LoraHooks:
    """Adds the low-rank changes of one adapter to a host's layers, and takes them away again.

    Nothing of the host is written to, so it is afterwards what it was, bit for bit.

    Attributes:
        scale: how strongly they act; 1 as trained.
    """

    def __init__(self, host: nn.Module, names: dict[int, str], parts: nn.ModuleDict, scale: float) -> None:
        self.scale = scale
        self._host = host
        self._layers = dict(_layers(names, parts))
        self._hooks: list[tuple[nn.Module, Any]] = []
        self.install()

    def install(self) -> None:
        """Hook the layers that are in place now."""
        self.remove()
        for path, change in self._layers.items():
            layer = submodule(self._host, path)
            self._hooks.append((layer, layer.register_forward_hook(self._hook(change))))

    def remove(self) -> None:
        """Unhook."""
        for _, hook in self._hooks:
            hook.remove()
        self._hooks = []

    @property
    def is_current(self) -> bool:
        """Whether the hooked layers are still the host's: loading another LoRA puts others in their place."""
        places = zip(self._layers, self._hooks, strict=True)
        return all(submodule(self._host, path) is layer for path, (layer, _) in places)

    def _hook(self, change: nn.Module) -> Any:
        def add(_layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            return output + self.scale * change(inputs[0])

        return add


def _layers(names: dict[int, str], parts: nn.ModuleDict) -> Iterator[tuple[str, nn.Module]]:
    for index, part in parts.items():
        for name, path in TARGETS.items():
            change = getattr(part, f"{name}_lora", None)
            if change is not None:
                yield f"{names[int(index)]}.{path}", change
