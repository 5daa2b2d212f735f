"""Texts of regions resolved into numbers: what a pipeline's text encoders make of them, and each one's share."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from imprompt.adapter.conditioning import TextBranch
from imprompt.core.errors import PromptError
from imprompt.generation.regions import share_places
from imprompt.generation.resolve import pad_tokens
from imprompt.generation.scales import by_noise, time_table
from imprompt.prompts.text_region import TextRegion

Regions = Sequence[Sequence[TextRegion]]

# Arguments of a pipeline's call that say how it encodes a text.
ENCODING = ("clip_skip", "max_sequence_length")


def encode_texts(pipe: Any, rows: Regions, device: torch.device, **options: Any) -> list[list[TextRegion]]:
    """The regions of every row with embeds in place of texts: all texts are encoded together, each once.

    Args:
        pipe: the pipeline, which encodes them as it does its prompt; None for a bare denoiser.
        rows: the regions of every row.
        device: where it computes.
        **options: arguments of the pipeline's call, of which those are passed on that say how a text is encoded.

    Raises:
        PromptError: there are texts, and nothing that encodes them.
    """
    texts = list(dict.fromkeys(region.text for row in rows for region in row if region.text is not None))
    if not texts:
        return [list(row) for row in rows]
    embeds = dict(zip(texts, _encoded(pipe, texts, device, options), strict=True))
    return [
        [region if region.text is None else replace(region, text=None, embeds=embeds[region.text]) for region in row]
        for row in rows
    ]


def _encoded(
    pipe: Any, texts: list[str], device: torch.device, options: Mapping[str, Any]
) -> Float[Tensor, "texts tokens width"]:
    encode = getattr(pipe, "encode_prompt", None)
    tokenizers = [getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2")]
    if encode is None or all(tokenizer is None for tokenizer in tokenizers):
        raise PromptError(
            f"{'a bare denoiser' if pipe is None else type(pipe).__name__} has nothing that encodes the text of a "
            "region; attach to a pipeline with text encoders, or give embeds"
        )
    known = inspect.signature(encode).parameters
    chosen = {name: options[name] for name in ENCODING if name in known and options.get(name) is not None}
    made = encode(texts, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False, **chosen)
    return made[0] if isinstance(made, tuple) else made


def resolve_texts(rows: Regions, *, size: tuple[int, int] | None = None) -> tuple[TextBranch, ...]:
    """The branches of encoded regions: the k-th of each row share one, in which a row that has fewer has no share.

    Args:
        rows: the regions of every row, with embeds; a row may have none.
        size: height and width of the picture to be made, in pixels; masks of another shape are refused then.

    Raises:
        ImageError: a mask cannot be used.
        PromptError: embeds of different widths.
    """
    if not any(rows):
        return ()
    columns = [[row[place] if place < len(row) else None for row in rows] for place in range(max(map(len, rows)))]
    return tuple(_branch(column, share) for column, share in zip(columns, share_places(rows, size), strict=True))


def _branch(column: Sequence[TextRegion | None], share: Float[Tensor, "rows height width"]) -> TextBranch:
    embeds = [None if region is None else region.embeds for region in column]
    widths = {each.shape[-1] for each in embeds if each is not None}
    if len(widths) > 1:
        raise PromptError(f"the embeds of regions have widths {sorted(widths)}; encode all with the same text encoders")
    first = next(each for each in embeds if each is not None)
    states, token_mask = pad_tokens([None if each is None else each.to(first) for each in embeds])
    return TextBranch(
        states=states,
        share=share,
        token_mask=token_mask,
        scale=time_table(column).clamp(0.0, 1.0),
        by_noise=by_noise(column),
    )
