"""From a request to a result, with any diffusers pipeline that holds a denoiser."""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, overload

import torch
from PIL import Image

from imprompt.core.errors import ConditioningError, PromptError
from imprompt.generation.attach import PipelineAttachment
from imprompt.generation.batches import SHARED, gather, share_batches
from imprompt.generation.provenance import (
    describe_adapter,
    describe_options,
    describe_pipeline,
    describe_prompt,
    describe_region,
    versions,
)
from imprompt.generation.region_texts import ENCODING
from imprompt.generation.request import Request
from imprompt.generation.result import Result
from imprompt.generation.sizes import check_negative, check_sizes, parameters_of, picture_size

# Called after every step with the steps done and the steps of the whole run.
Progress = Callable[[int, int], None]


@overload
def generate(
    pipe: Any,
    attachment: PipelineAttachment | None,
    request: Request,
    *,
    batch_size: int = 4,
    progress: Progress | None = None,
    **options: Any,
) -> Result: ...
@overload
def generate(
    pipe: Any,
    attachment: PipelineAttachment | None,
    request: Sequence[Request],
    *,
    batch_size: int = 4,
    progress: Progress | None = None,
    **options: Any,
) -> list[Result]: ...
def generate(
    pipe: Any,
    attachment: PipelineAttachment | None,
    request: Request | Sequence[Request],
    *,
    batch_size: int = 4,
    progress: Progress | None = None,
    **options: Any,
) -> Result | list[Result]:
    """Make the pictures of a request, or of several: those that have steps, guidance and size in common share batches.

    Works with any pipeline: what it needs beside text and sizes (`image`, `mask_image`, `control_image`, `strength`,
    ...) is passed on as it is.

    Args:
        pipe: the pipeline that the adapters are attached to.
        attachment: from `attach`; None for text alone. Its image prompts are taken off again at the end.
        request: what to make; a list of requests, each with its own text, images and seeds, makes a list of results.
        batch_size: how many pictures are made at once. A picture depends on its own seed alone; the batch's size shows
            in rounding at most.
        progress: called after every step with the steps done and their whole number, instead of the pipeline's own bar.
        **options: further arguments of the pipeline's call.

    Raises:
        PromptError: image prompts without an attachment, or a size that the pipeline cannot make.
        ConditioningError: the attachment belongs to another pipeline.

    Example:
        ```python
        with imprompt.attach(pipe, adapter) as images:
            request = imprompt.Request(prompt="on the moon", image_prompts=[imprompt.ImagePrompt("cat.png")], seed=1)
            imprompt.generate(pipe, images, request).save("moon.png")
        ```
    """
    if not isinstance(request, Request):
        return _generate_several(pipe, attachment, request, batch_size, progress, options)
    request = with_seed(request)
    assert request.seed is not None
    seeds = tuple(range(request.seed, request.seed + request.num_images))
    batches = [seeds[start : start + batch_size] for start in range(0, len(seeds), batch_size)]
    pictures: list[Image.Image] = []
    with _prompted(pipe, attachment, [request], options):
        # before sampling, so that no picture is lost to a missing file; after the prompts, which may load an encoder
        provenance = _describe(pipe, attachment, request, options)
        for number, batch in enumerate(batches):
            arguments = {"prompt": request.prompt, "num_images_per_prompt": len(batch), **options}
            if request.negative_prompt is not None:
                arguments["negative_prompt"] = request.negative_prompt
            pictures += _sample(pipe, request, batch, arguments, _part(progress, number, len(batches)))
    return Result(images=tuple(pictures), seeds=seeds, provenance=provenance)


def _generate_several(
    pipe: Any,
    attachment: PipelineAttachment | None,
    requests: Sequence[Request],
    batch_size: int,
    progress: Progress | None,
    options: Mapping[str, Any],
) -> list[Result]:
    seeded = [with_seed(request) for request in requests]
    batches = share_batches(seeded, batch_size)
    made: list[Result] = []
    for number, batch in enumerate(batches):
        made += generate_rows(
            pipe,
            attachment,
            [row.request for row in batch],
            progress=_part(progress, number, len(batches)),
            **options,
        )
    return gather([row for batch in batches for row in batch], made, len(seeded))


def generate_rows(
    pipe: Any,
    attachment: PipelineAttachment | None,
    requests: Sequence[Request],
    *,
    progress: Progress | None = None,
    **options: Any,
) -> list[Result]:
    """Make one picture for each of several requests, all in one batch, each with its own text, images and seed.

    Args:
        pipe: as in `generate`.
        attachment: as in `generate`.
        requests: what to make; steps, guidance and size must be the same in all.
        progress: as in `generate`.
        **options: further arguments of the pipeline's call, for the whole batch.

    Raises:
        PromptError: no requests, or requests that cannot share a batch.
    """
    rows = [with_seed(request) for request in requests]
    _check_shared(rows)
    arguments: dict[str, Any] = {"prompt": [row.prompt for row in rows], **options}
    if any(row.negative_prompt is not None for row in rows):
        arguments["negative_prompt"] = [row.negative_prompt or "" for row in rows]
    seeds = [row.seed for row in rows if row.seed is not None]
    with _prompted(pipe, attachment, rows, options):
        provenances = [_describe(pipe, attachment, row, options) for row in rows]
        pictures = _sample(pipe, rows[0], seeds, arguments, progress)
    return [
        Result(images=(picture,), seeds=(seed,), provenance=provenance)
        for picture, seed, provenance in zip(pictures, seeds, provenances, strict=True)
    ]


def with_seed(request: Request) -> Request:
    """The request with a seed, drawn if it has none."""
    return request if request.seed is not None else replace(request, seed=secrets.randbelow(2**32))


@contextmanager
def _prompted(
    pipe: Any, attachment: PipelineAttachment | None, requests: Sequence[Request], options: Mapping[str, Any]
) -> Iterator[None]:
    """Have the requests' image prompts set, and taken off again whatever happens."""
    rows = [request.image_prompts for request in requests]
    regions = [request.regions for request in requests]
    if attachment is None:
        if any(rows):
            raise PromptError("the request has image prompts, but no attachment; attach an adapter and pass it")
        if any(regions):
            raise PromptError("the request has regions, but no attachment; pass attach(pipe), which needs no adapter")
        yield
        return
    if attachment.pipe is not pipe:
        raise ConditioningError(
            f"the adapters are attached to another pipeline ({type(attachment.pipe).__name__}) than the one that "
            f"generates ({type(pipe).__name__}); attach them to this one"
        )
    encoding = {name: options[name] for name in ENCODING if name in options}
    attachment.set(rows=rows, regions=regions, size=picture_size(pipe, requests[0], options), **encoding)
    try:
        yield
    finally:
        attachment.set(None)


def _sample(
    pipe: Any, request: Request, seeds: Sequence[int], arguments: Mapping[str, Any], progress: Progress | None
) -> list[Image.Image]:
    sizes = {name: getattr(request, name) for name in ("height", "width") if getattr(request, name) is not None}
    check_sizes(pipe, sizes)
    check_negative(pipe, arguments)
    arguments = {
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance_scale,
        # A generator a picture, on the processor, so that a seed means the same noise on every device.
        "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        **sizes,
        **arguments,
    }
    with _reported(pipe, progress, request.steps) as reporting:
        return list(pipe(**{**reporting, **arguments}).images)


@contextmanager
def _reported(pipe: Any, progress: Progress | None, steps: int) -> Iterator[dict[str, Any]]:
    """Arguments that make a pipeline report its steps; its own bar is hidden meanwhile."""
    if progress is None:
        yield {}
        return

    def report(pipe: Any, step: int, _timestep: Any, _tensors: Any) -> dict[str, Any]:
        progress(step + 1, getattr(pipe, "num_timesteps", steps))
        return {}

    own_bar = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(disable=True)
    try:
        yield {"callback_on_step_end": report} if "callback_on_step_end" in parameters_of(pipe) else {}
    finally:
        pipe.set_progress_bar_config(**(own_bar or {}))


def _part(progress: Progress | None, number: int, count: int) -> Progress | None:
    """Progress of one batch as a part of all of them."""
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, count * total)


def _check_shared(rows: Sequence[Request]) -> None:
    if not rows:
        raise PromptError("no requests; give at least one")
    for name in SHARED:
        values = {getattr(row, name) for row in rows}
        if len(values) > 1:
            raise PromptError(f"the requests of one batch have different {name} ({values}); give all the same")
    if any(row.num_images != 1 for row in rows):
        raise PromptError("a request in a batch asks for several images; repeat the request instead")


def _describe(
    pipe: Any, attachment: PipelineAttachment | None, request: Request, options: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "image_prompts": [describe_prompt(prompt) for prompt in request.image_prompts],
        **({"regions": [describe_region(region) for region in request.regions]} if request.regions else {}),
        **{name: getattr(request, name) for name in SHARED},
        "options": describe_options(options),
        "base": describe_pipeline(pipe),
        "adapters": [] if attachment is None else [describe_adapter(adapter) for adapter in attachment.adapters],
        "image_encoders": [] if attachment is None else attachment.describe_encoders(),
        "versions": versions(),
    }
