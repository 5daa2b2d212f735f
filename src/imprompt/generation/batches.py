"""Which pictures of several requests can be made together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from imprompt.core.errors import PromptError
from imprompt.generation.request import Request
from imprompt.generation.result import Result

SHARED = ("steps", "guidance_scale", "height", "width")  # what the rows of one batch have in common


@dataclass(frozen=True, kw_only=True)
class BatchRow:
    """One picture of a request.

    Attributes:
        number: which request it belongs to.
        request: that request with this picture's seed, and one image.
    """

    number: int
    request: Request


def share_batches(requests: Sequence[Request], batch_size: int) -> list[list[BatchRow]]:
    """All pictures of all requests, in batches of what has steps, guidance and size in common.

    Args:
        requests: with seeds.
        batch_size: how many pictures a batch has at most.

    Raises:
        PromptError: no request, or no room in a batch.
    """
    if not requests:
        raise PromptError("no requests; give at least one")
    if batch_size < 1:
        raise PromptError(f"batch_size is {batch_size}; expected a whole number from 1 up")
    alike: dict[tuple[object, ...], list[BatchRow]] = {}
    for number, request in enumerate(requests):
        key = (*(getattr(request, name) for name in SHARED), request.negative_prompt is None)
        for seed in range(request.seed or 0, (request.seed or 0) + request.num_images):
            row = BatchRow(number=number, request=replace(request, seed=seed, num_images=1))
            alike.setdefault(key, []).append(row)
    return [rows[start : start + batch_size] for rows in alike.values() for start in range(0, len(rows), batch_size)]


def gather(rows: Sequence[BatchRow], made: Sequence[Result], count: int) -> list[Result]:
    """The results of requests, of those of their single pictures.

    Args:
        rows: every picture that was made.
        made: what came out, in the same order.
        count: number of requests.
    """
    parts: list[list[Result]] = [[] for _ in range(count)]
    for row, result in zip(rows, made, strict=True):
        parts[row.number].append(result)
    return [
        Result(
            images=tuple(image for part in each for image in part.images),
            seeds=tuple(seed for part in each for seed in part.seeds),
            provenance=each[0].provenance,
        )
        for each in parts
    ]
