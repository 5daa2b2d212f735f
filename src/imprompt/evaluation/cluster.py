"""Drawing on a Ray cluster: a task draws one share, with a pipeline that its process keeps for the next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

from imprompt.core.ray import join_cluster, num_at_once, run_tasks
from imprompt.evaluation.drawing import Progress
from imprompt.evaluation.items import Item, share_of
from imprompt.evaluation.protocols import Protocol
from imprompt.evaluation.runner import draw_share, models_of, num_missing

TASKS_EACH = 4
"""Tasks for each that runs at a time, so that fast machines draw more and little is repeated where one is lost."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What the tasks are told; it can be sent to any machine that sees the same files.

    Attributes:
        load: gives base and adapter; it is hashable, so that a process calls it once.
        protocol: how pictures are drawn.
        items: all pictures of the run.
        folder: the run's.
        share: number of this command among those that share the work, and how many there are.
        batch_size: pictures at once.
    """

    load: Callable[[], tuple[Any, Any]]
    protocol: Protocol
    items: Sequence[Item]
    folder: Path
    share: tuple[int, int] = (0, 1)
    batch_size: int = 4


def draw_on_ray(drawing: Drawing, progress: Progress) -> tuple[int, dict[str, Any]]:
    """Draw what is missing as tasks of a cluster; see `imprompt.core.ray`.

    Returns:
        How many pictures of all shares are still missing, and base and adapters by hash.

    Raises:
        ImpromptError: Ray is not installed, or a task was lost again and again.
    """
    own = share_of(drawing.items, *drawing.share)
    ray = join_cluster()
    num_tasks = max(1, min(TASKS_EACH * num_at_once(ray), ceil(len(own) / drawing.batch_size)))
    done, models = 0, {}

    def count(result: tuple[int, dict[str, Any]]) -> None:
        nonlocal done
        done += result[0]
        models.update(result[1])
        progress(done, len(own))

    run_tasks(ray, draw_task, (drawing, num_tasks), range(num_tasks), count)
    return num_missing(drawing.items, drawing.folder, drawn=own), models


def draw_task(told: tuple[Drawing, int], number: int) -> tuple[int, dict[str, Any]]:
    """Draw what is missing of one task's share.

    Args:
        told: the drawing, and how many tasks share it.
        number: of this task.

    Returns:
        How many pictures the share has, and base and adapters by hash.
    """
    drawing, num_tasks = told
    pipe, attachment, models = _loaded(drawing.load)
    index, num_shares = drawing.share
    own = draw_share(
        pipe, attachment, drawing.protocol, drawing.items, drawing.folder,
        share=(index + num_shares * number, num_shares * num_tasks), batch_size=drawing.batch_size,
    )  # fmt: skip
    return len(own), models


@lru_cache(maxsize=1)
def _loaded(load: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any, dict[str, Any]]:
    pipe, attachment = load()
    return pipe, attachment, models_of(pipe, attachment)
