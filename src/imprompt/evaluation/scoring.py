"""From pictures on disk to values: a value a picture, a group of seeds, or a set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imprompt.core.images import load_image
from imprompt.evaluation.errors import EvaluationError
from imprompt.evaluation.items import Item
from imprompt.evaluation.metrics.copies import differing_bits, is_near_copy
from imprompt.evaluation.metrics.distances import cmmd, frechet_distance, kernel_distance
from imprompt.evaluation.metrics.left_out import cmmd_left_out, frechet_left_out, kernel_left_out
from imprompt.evaluation.metrics.similarity import cosine, diversity
from imprompt.evaluation.metrics.style import content_alignment, style_similarity
from imprompt.evaluation.metrics.table import Metric

Values = list[float | None]
"""One for each picture, None where it cannot be measured (no caption, no face)."""
_NUM_SUBSETS, _KERNEL_SCALE = 100, 1000.0
_PATCHES = 32  # pictures whose patch features are held at a time


def score_pictures(metric: Metric, items: Sequence[Item], files: Sequence[Path], judges: Mapping[str, Any]) -> Values:
    """A metric of kind "picture" of every picture.

    Raises:
        EvaluationError: the judge cannot tell it.
    """
    references = [_reference(metric, item) for item in items]
    judge: Any = judges.get(metric.judge or "")
    if metric.name == "clip_t":
        return _text_similarity(items, files, judge)
    if metric.name == "face":
        return _face_similarity(files, references, judge)
    if metric.name == "near_copies":
        return [_is_copy(file, reference) for file, reference in zip(files, references, strict=True)]
    if metric.name in ("style", "content"):
        return _of_patches(style_similarity if metric.name == "style" else content_alignment, files, references, judge)
    return cosine(judge.pooled(files), _pooled_once(judge, references)).tolist()


def score_groups(
    metric: Metric, groups: Mapping[tuple[str, str], Sequence[Path]], judges: Mapping[str, Any]
) -> dict[tuple[str, str], float]:
    """A metric of kind "group": a value for the pictures of each subject and prompt that has enough of them."""
    judge = judges[metric.judge or ""]
    large = {place: files for place, files in groups.items() if len(files) >= metric.floor}
    return {place: diversity(judge.pooled(list(files))) for place, files in large.items()}


def check_enough(metric: Metric, num_pictures: int, num_references: int) -> None:
    """Refuse a metric of kind "set" of too few.

    Raises:
        EvaluationError: there are fewer than its floor.
    """
    if min(num_pictures, num_references) < metric.floor:
        raise EvaluationError(
            f"{metric.title} of {num_pictures} pictures against {num_references} references; it wants {metric.floor} "
            f"or more of each: leave {metric.name!r} out of --metrics, or give more"
        )


def set_features(
    metric: Metric, files: Sequence[Path], references: Sequence[Path], judges: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Features of all pictures and of all references, for a metric of kind "set".

    Raises:
        EvaluationError: there are too few of them.
    """
    check_enough(metric, len(files), len(references))
    judge = judges[metric.judge or ""]
    return judge.pooled(list(files)), judge.pooled(list(references))


def set_value(metric: Metric, made: Tensor, real: Tensor) -> tuple[float, float]:
    """A metric of kind "set": one value for all pictures against all references, as it was published.

    Returns:
        The value, and its standard error by subsets drawn at random, of which a kernel distance is the mean.
    """
    if metric.name in ("frechet", "fid"):
        return frechet_distance(made, real), 0.0
    if metric.name in ("kernel", "kid"):
        size = min(1000, len(made), len(real))
        mean, deviation = kernel_distance(made, real, num_subsets=_NUM_SUBSETS, subset_size=size)
        return _KERNEL_SCALE * mean, _KERNEL_SCALE * deviation / _NUM_SUBSETS**0.5
    return cmmd(made, real), 0.0


def leave_out(metric: Metric, made: Tensor, real: Tensor, groups: Tensor, reference_groups: Tensor) -> list[float]:
    """A metric of kind "set" of all pictures, then without each group; a kernel distance without subsets.

    Args:
        metric: which.
        made: features of pictures.
        real: features of references.
        groups: number of the group of each picture.
        reference_groups: of each reference.
    """
    if metric.name in ("frechet", "fid"):
        return [frechet_distance(made, real), *frechet_left_out(made, real, groups, reference_groups)]
    if metric.name in ("kernel", "kid"):
        return [_KERNEL_SCALE * value for value in kernel_left_out(made, real, groups, reference_groups)]
    return cmmd_left_out(made, real, groups, reference_groups)


def _reference(metric: Metric, item: Item) -> Path:
    if metric.name in ("style", "csd") and item.case.style is not None:
        return item.case.style
    return item.case.references[0]


def _pooled_once(judge: Any, paths: Sequence[Path]) -> Tensor:
    """Pooled features of paths many of which are the same picture."""
    distinct = list(dict.fromkeys(paths))
    features = dict(zip(distinct, judge.pooled(distinct), strict=True))
    return torch.stack([features[path] for path in paths])


def _text_similarity(items: Sequence[Item], files: Sequence[Path], judge: Any) -> Values:
    told = [index for index, item in enumerate(items) if item.case.caption]
    values: Values = [None] * len(items)
    if told:
        captions = list(dict.fromkeys(items[index].case.caption for index in told))
        texts = dict(zip(captions, judge.text(captions), strict=True))
        wanted = torch.stack([texts[items[index].case.caption] for index in told])
        similarities = cosine(judge.pooled([files[index] for index in told]), wanted).tolist()
        for index, similarity in zip(told, similarities, strict=True):
            values[index] = similarity
    return values


def _face_similarity(files: Sequence[Path], references: Sequence[Path], judge: Any) -> Values:
    distinct = list(dict.fromkeys(references))
    known = dict(zip(distinct, judge.faces(distinct), strict=True))
    if missing := [path.name for path, face in known.items() if face is None]:
        raise EvaluationError(f"references without a face: {', '.join(missing[:5])}; face similarity wants one in each")
    return [
        None if face is None else cosine(face[None], known[reference][None]).item()
        for face, reference in zip(judge.faces(files), references, strict=True)
    ]


def _is_copy(file: Path, reference: Path) -> float:
    return float(is_near_copy(differing_bits(load_image(file), load_image(reference))))


def _of_patches(measure: Any, files: Sequence[Path], references: Sequence[Path], judge: Any) -> Values:
    values: Values = []
    for start in range(0, len(files), _PATCHES):
        part = slice(start, start + _PATCHES)
        values += measure(judge.patches(files[part]), judge.patches(references[part])).tolist()
    return values
