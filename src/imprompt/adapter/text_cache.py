"""Keys and values of the text, kept for the length of a run: they are as constant as the image's."""

from typing import Any

import torch
from torch import Tensor, nn

from imprompt.adapter.own import KeysHook


def is_plain(linear: nn.Module) -> bool:
    """Whether a projection is a bare linear layer: no LoRA, no quantisation, no hook that acts, no replaced forward.

    Only then is its output a function of its input and its parameters alone. (An inference tensor counts no versions,
    so a change in place would not show.)
    """
    return (
        type(linear) is nn.Linear
        and not linear.weight.is_inference()
        and all(isinstance(hook, KeysHook) for hook in linear._forward_hooks.values())
        and not linear._forward_pre_hooks
        and "forward" not in linear.__dict__
    )


def _fingerprint(tensor: Tensor | None) -> tuple[Any, ...]:
    if tensor is None:
        return (None,)
    return (tensor, tensor._version, tensor.data_ptr(), tensor.dtype, tensor.device)


def _same(old: tuple[Any, ...], new: tuple[Any, ...]) -> bool:
    return len(old) == len(new) and all(
        a is b if isinstance(a, Tensor) or isinstance(b, Tensor) else a == b for a, b in zip(old, new, strict=True)
    )


class TextCache:
    """Remembers one site's text keys and values while nothing that they depend on has changed.

    The key holds, by identity, the text states, both weights and the run; their versions, addresses, dtypes and
    devices; and autocast's state. Strong references keep an identity from being reused. An in-place change through
    `.data` leaves no trace in a version, which is why nothing outlives its run and why a LoRA layer (which merges that
    way) is never cached.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._value: tuple[Tensor, Tensor] | None = None

    def get(self, attention: Any, text: Tensor, run: object | None) -> tuple[Tensor, Tensor]:
        """Keys and values of the text, [batch, length, width] each.

        Args:
            attention: the host's attention module.
            text: the text states.
            run: an object that is replaced at every run; None forbids caching.
        """
        if run is None or not self._may_cache(attention, text):
            if not torch.compiler.is_compiling():
                self.clear()  # what hinders caching, say a LoRA, may change the weights and be gone at the next step
            return attention.to_k(text), attention.to_v(text)
        key = self._key_of(attention, text, run)
        if self._value is None or not _same(self._key, key):
            self._key, self._value = key, (attention.to_k(text), attention.to_v(text))
        return self._value

    def clear(self) -> None:
        """Forget."""
        self._key, self._value = (), None

    @staticmethod
    def _may_cache(attention: Any, text: Tensor) -> bool:
        return (
            not torch.compiler.is_compiling()
            and not torch.is_grad_enabled()
            and not text.is_inference()
            and is_plain(attention.to_k)
            and is_plain(attention.to_v)
        )

    @staticmethod
    def _key_of(attention: Any, text: Tensor, run: object) -> tuple[Any, ...]:
        device = text.device.type
        autocasts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        autocast = torch.get_autocast_dtype(device) if autocasts else None
        tensors = (text, attention.to_k.weight, attention.to_k.bias, attention.to_v.weight, attention.to_v.bias)
        return (run, autocast, *(part for tensor in tensors for part in _fingerprint(tensor)))
