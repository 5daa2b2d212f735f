"""An oracle for pipelines: record what a pipeline asked its UNet, and answer each question again, row by row.

Which image belongs to a row is told by the *text* that the pipeline put into that row, so the oracle knows nothing of
guidance layouts: a row with the negative text has the null tokens, a row with a prompt's text has that prompt's image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imprompt.adapter.attach import attach
from imprompt.adapter.conditioning import Branch, Conditioning
from tests import tiny


def copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    return type(value)(copied(part) for part in value) if isinstance(value, list | tuple) else value


@dataclass
class Call:
    """One call of the UNet: its arguments and its processors of self-attention (PAG's) as they were, and its output."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    self_attention: dict[str, Any]
    output: Tensor | None = None

    @property
    def text(self) -> Tensor:
        return self.kwargs["encoder_hidden_states"]


class Recorder:
    """Records every call of a pipeline's UNet."""

    def __init__(self, pipe: Any) -> None:
        self.calls: list[Call] = []
        self.handles = [
            pipe.unet.register_forward_pre_hook(self._ask, with_kwargs=True),
            pipe.unet.register_forward_hook(self._answer),
        ]

    def _ask(self, module: Any, args: Any, kwargs: Any) -> None:
        processors = {name: processor for name, processor in module.attn_processors.items() if ".attn1." in name}
        self.calls.append(Call(copied(args), copied(kwargs), processors))

    def _answer(self, _module: Any, _inputs: Any, output: Any) -> None:
        self.calls[-1].output = (output[0] if isinstance(output, tuple) else output.sample).clone()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def text_states(pipe: Any, texts: Sequence[str]) -> list[Tensor]:
    """The text encoder's states for each text, as the pipeline hands them to its UNet."""
    if "text_encoder_2" in pipe.components:
        return [
            pipe.encode_prompt(prompt=text, device="cpu", do_classifier_free_guidance=False)[0][0] for text in texts
        ]
    words = pipe.tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=tiny.TEXT_LENGTH, return_tensors="pt"
    )
    with torch.no_grad():
        return list(pipe.text_encoder(words.input_ids)[0])


def whose(call: Call, states: Sequence[Tensor]) -> list[int]:
    """For every row, which of the texts it carries."""
    rows = []
    for row in call.text:
        found = [number for number, state in enumerate(states) if torch.allclose(row, state, atol=1e-5)]
        assert len(found) == 1, "a row's text is none of the prompts, or two of them"
        rows += found
    return rows


def answer(host: Any, adapter: Any, call: Call, tokens: Sequence[Tensor]) -> Tensor:
    """The host's output for a recorded call when every row has its own tokens [num_tokens, width], said one by one."""
    scale = torch.ones(1, len(adapter.spec.site_indices), len(tokens))
    host.set_attn_processor({**host.attn_processors, **call.self_attention})
    explicit = Branch(tokens=torch.stack(list(tokens)), null_tokens=None, scale=scale)
    with attach(host, adapter, fuse=False) as images, torch.no_grad():
        images.set(Conditioning(branches=(explicit,), rows=len(tokens)))
        kwargs = copied(call.kwargs)
        kwargs["return_dict"] = False
        return host(*call.args, **kwargs)[0]


def check_calls(
    pipe: Any,
    adapter: Any,
    run: Callable[[], Any],
    *,
    prompts: Sequence[str],
    negative: str,
    images: Any,
    host: Any,
) -> int:
    """Run a pipeline with attached images; every row of every call must have had its own image.

    Args:
        pipe: the pipeline, with `images` attached and set to one row for each of `prompts`, of `tiny.branch(adapter)`.
        adapter: the attached adapter.
        run: runs the pipeline with `prompts` and the negative prompt.
        prompts: what each row of images belongs to.
        negative: the negative prompt.
        images: the branch that was set.
        host: an untouched copy of the pipeline's UNet.

    Returns:
        The number of calls.
    """
    states = text_states(pipe, [*prompts, negative])
    null = images.null_tokens[0]
    with Recorder(pipe) as recorder:
        run()
    for call in recorder.calls:
        rows = whose(call, states)
        tokens = [null if row == len(prompts) else images.tokens[row] for row in rows]
        torch.testing.assert_close(answer(host, adapter, call, tokens), call.output, atol=1e-4, rtol=1e-4)
    return len(recorder.calls)
