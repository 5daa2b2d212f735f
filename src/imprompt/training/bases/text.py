"""Texts as a base's own pipeline encodes them: its `encode_prompt`, called by what it asks for and what it returns."""

import ast
import inspect
import logging
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from imprompt.core.errors import HostMismatch

# What diffusers' `encode_prompt`s may ask for. Guidance needs no second text here: dropped captions are empty ones.
_ANSWERS: dict[str, Any] = {
    "prompt_2": None,
    "prompt_3": None,
    "num_images_per_prompt": 1,
    "do_classifier_free_guidance": False,
    "clean_caption": False,
}


def encode_prompt(pipe: Any, captions: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    """What a pipeline makes of captions, by the names that it has for it.

    Args:
        pipe: A pipeline with an `encode_prompt`.
        captions: One a row.
        device: Where it encodes.

    Returns:
        `prompt_embeds` [rows, tokens, width] and whatever else it returns that is not negative, such as
        `pooled_prompt_embeds`, `prompt_attention_mask` or `text_ids`.

    Raises:
        HostMismatch: Its `encode_prompt` is no ordinary one.
    """
    answers = {"prompt": list(captions), "device": device, **_ANSWERS}
    arguments = {name: answers[name] for name in _asked(type(pipe)) if name in answers}
    with _silenced(type(pipe).__module__):
        returned = pipe.encode_prompt(**arguments)
    named = dict(zip(returned_names(type(pipe)), returned if isinstance(returned, tuple) else (returned,), strict=True))
    return {
        name: value.detach()
        for name, value in named.items()
        if isinstance(value, Tensor) and not name.startswith("negative")
    }


@contextmanager
def _silenced(module: str) -> Iterator[None]:
    """Keep a pipeline from saying at every step that a caption is longer than its encoder reads."""
    logger = logging.getLogger(module)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@cache
def _asked(kind: type) -> tuple[str, ...]:
    """What a pipeline's `encode_prompt` takes.

    Raises:
        HostMismatch: It has none, or one that needs more than a text.
    """
    function = getattr(kind, "encode_prompt", None)
    if function is None:
        raise HostMismatch(f"{kind.__name__} has no encode_prompt; training needs a base that texts can be told")
    parameters = [parameter for name, parameter in inspect.signature(function).parameters.items() if name != "self"]
    foreign = [
        parameter.name
        for parameter in parameters
        if parameter.default is inspect.Parameter.empty
        and parameter.kind is not inspect.Parameter.VAR_KEYWORD
        and parameter.name not in ("prompt", "device", *_ANSWERS)
    ]
    if foreign:
        raise HostMismatch(
            f"{kind.__name__}.encode_prompt wants {', '.join(foreign)} beside a text; training knows bases that are "
            "told texts alone"
        )
    return tuple(parameter.name for parameter in parameters)


@cache
def returned_names(kind: type) -> tuple[str, ...]:
    """Names of what a pipeline's `encode_prompt` returns, read from its last `return`: diffusers gives no others.

    Raises:
        HostMismatch: It does not return names.
    """
    function: Any = inspect.unwrap(kind.encode_prompt)  # pyright: ignore[reportAttributeAccessIssue]
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    returns = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)]
    last = returns[-1] if returns else None
    parts = last.elts if isinstance(last, ast.Tuple) else [last]
    names = tuple(part.id for part in parts if isinstance(part, ast.Name))
    if not names or len(names) < len(parts) or "prompt_embeds" not in names:
        raise HostMismatch(
            f"{kind.__name__}.encode_prompt does not say what it returns; training knows those that return "
            "prompt_embeds and others by name"
        )
    return names
