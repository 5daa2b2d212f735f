"""The low-rank change that FaceID adapters make to every attention of their host, while they are attached.

`to_q(x) + scale * up(down(x))`, likewise for keys, values and the output (tencent-ailab/IP-Adapter at 62e4af9,
`attention_processor_faceid.py`; its `network_alpha` is None, so the rank does not enter).

It acts on the rows that follow an image of its adapter, in both halves of guidance, and on no others.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from imprompt.adapter.conditioning import Conditioning
from imprompt.adapter.places import layers_at, place_of

# What is changed: its name in checkpoints, and its path in an attention.
TARGETS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}


class LowRank(nn.Module):
    """One pair of matrices, without biases."""

    def __init__(self, in_width: int, out_width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(in_width, rank, bias=False)
        self.up = nn.Linear(rank, out_width, bias=False)


def low_rank(
    x: Float[Tensor, "*batch in"], down: Float[Tensor, "rank in"], up: Float[Tensor, "out rank"]
) -> Float[Tensor, "*batch out"]:
    """What is added to a layer's output."""
    return functional.linear(functional.linear(x, down), up)


def add_lora(module: Any, *, rank: int, width: int, key_width: int) -> None:
    """Give a module the four pairs of one attention, under the names that checkpoints have for them."""
    for name in TARGETS:
        in_width = key_width if name in ("to_k", "to_v") else width
        setattr(module, f"{name}_lora", LowRank(in_width, width, rank))


class LoraHooks:
    """Adds the low-rank changes of one adapter to a host's layers, and takes them away again.

    Nothing of the host is written to, so it is afterwards what it was, bit for bit. The matrices are taken as they are
    when attached, on the host's device and in its number format, so the adapter itself may go elsewhere; those that are
    being trained are read as they are at every call.

    Attributes:
        rows: how strongly they act in each row [batch, 1, 1] of the present call, one number for all rows, or None.
    """

    def __init__(
        self, host: nn.Module, names: dict[int, str], parts: nn.ModuleDict, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.rows: Tensor | float | None = None
        self._layers = dict(_layers(names, parts))
        self._weights = {
            path: tuple(part.weight.detach().to(device, dtype) for part in (change.down, change.up))
            for path, change in self._layers.items()
        }
        self._places = {path: place_of(host, path) for path in self._layers}
        self._hooked: list[nn.Module] = []
        self._hooks: list[Any] = []

    def install(self) -> None:
        """Hook the layers that are in place now."""
        self.remove()
        self._hooked = layers_at(self._places.values())
        for path, layer in zip(self._places, self._hooked, strict=True):
            self._hooks.append(layer.register_forward_hook(self._hook(path)))

    def remove(self) -> None:
        """Unhook."""
        for hook in self._hooks:
            hook.remove()
        self._hooked, self._hooks = [], []

    @property
    def is_current(self) -> bool:
        """Whether the hooked layers are still the host's: loading another LoRA puts others in their place."""
        now = layers_at(self._places.values())
        return len(now) == len(self._hooked) and all(a is b for a, b in zip(now, self._hooked, strict=True))

    def _hook(self, path: str) -> Any:
        def add(_layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            rows = self.rows
            if rows is None:
                return None
            (x, *_) = inputs
            change = low_rank(x, *self._matrices(path, x)).to(output.dtype)
            return output + (_fitted(rows, change) if isinstance(rows, Tensor) else rows) * change

        return add

    def _matrices(self, path: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two matrices of a layer, in the format and at the place of its input: a pipeline may have moved."""
        layer = self._layers[path]
        trained = layer.down.weight, layer.up.weight
        if any(weight.requires_grad for weight in trained):
            return trained[0].to(x.dtype), trained[1].to(x.dtype)
        down, up = self._weights[path]
        if (down.device, down.dtype) != (x.device, x.dtype):
            down, up = down.to(x.device, x.dtype), up.to(x.device, x.dtype)
            if not torch.compiler.is_compiling():
                self._weights[path] = down, up
        return down, up


def _fitted(rows: Tensor, change: Tensor) -> Tensor:
    """Factors of a change. Some processors (PAG) ask for parts of the batch, each of which has the same rows."""
    return rows[: change.shape[0]].to(change.dtype)


class Loras:
    """The changes of all adapters that are attached together, and in which rows each acts."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self._hooks: dict[int, LoraHooks] = {}
        self._chosen: dict[int, tuple[bool, ...]] = {}
        self._strengths: dict[int, Tensor] = {}
        self._rows: dict[Any, Tensor] = {}
        self._device = torch.device("cpu")

    def install(
        self,
        host: nn.Module,
        names: dict[int, str],
        adapters: Sequence[Any],
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Hook the host for every adapter that changes it."""
        self._device = device
        for number, adapter in enumerate(adapters):
            if adapter.spec.lora is not None:
                self._hooks[number] = LoraHooks(host, names, adapter.ip_adapter, device, dtype)
                self._hooks[number].install()

    def remove(self) -> None:
        """Unhook, and let go of the matrices."""
        for hooks in self._hooks.values():
            hooks.remove()
        self._hooks = {}

    def refresh(self) -> bool:
        """Hook layers that have come in place of others; tells whether there were any."""
        stale = [hooks for hooks in self._hooks.values() if not hooks.is_current]
        for hooks in stale:
            hooks.install()
        return bool(stale)

    def choose(self, conditioning: Conditioning | None) -> None:
        """Say which rows follow an image of each adapter: those where its strength is not zero at all times."""
        self.rest()
        self._chosen, self._strengths, self._rows = {}, {}, {}
        for branch in () if conditioning is None or not self._hooks else conditioning.branches:
            if branch.adapter in self._hooks:
                found = branch.scale.ne(0).flatten(0, -2).any(0).tolist()
                so_far = self._chosen.get(branch.adapter, (False,) * len(found))
                self._chosen[branch.adapter] = tuple(a or b for a, b in zip(found, so_far, strict=True))
        self._strengths = {
            number: torch.tensor(rows, device=self._device).float() * self.scale
            for number, rows in self._chosen.items()
        }

    def rest(self) -> None:
        """Act on no row."""
        for hooks in self._hooks.values():
            hooks.rows = None

    def act(self, rows: Sequence[int] | Tensor, device: torch.device) -> None:
        """Act in the call that begins now.

        Args:
            rows: which row of the conditioning each row of the batch follows; those of the negative half are counted
                after all others. A tensor under `torch.compile`, whose graph then serves every choice of rows.
            device: where the host computes.
        """
        for number, chosen in self._chosen.items():
            hooks, strengths = self._hooks[number], self._strengths[number]
            if isinstance(rows, Tensor):
                index = rows % len(chosen)
                hooks.rows = strengths.to(device).index_select(0, index).view(-1, 1, 1)
            elif any(chosen) and not all(chosen):
                # Tensors made in inference mode serve no call that wants gradients.
                key = (number, tuple(rows), device, torch.is_inference_mode_enabled())
                if key not in self._rows:
                    index = torch.tensor(rows, device=strengths.device) % len(chosen)
                    self._rows[key] = strengths[index].to(device).view(-1, 1, 1)
                hooks.rows = self._rows[key]
            else:
                hooks.rows = self.scale if any(chosen) else None


def _layers(names: dict[int, str], parts: nn.ModuleDict) -> Iterator[tuple[str, Any]]:
    for index, part in parts.items():
        for name, path in TARGETS.items():
            change = getattr(part, f"{name}_lora", None)
            if change is not None:
                yield f"{names[int(index)]}.{path}", change
