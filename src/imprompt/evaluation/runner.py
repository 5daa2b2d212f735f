"""An evaluation from its folder of references to `results.json` and `report.html`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from imprompt.evaluation.drawing import Progress, claim, draw, is_drawn, picture_file
from imprompt.evaluation.errors import EvaluationError
from imprompt.evaluation.items import Item, share_of
from imprompt.evaluation.judges import load_judges
from imprompt.evaluation.metrics.table import Metric, metrics_named
from imprompt.evaluation.protocols import Protocol
from imprompt.evaluation.report import write_report
from imprompt.evaluation.results import Results, measure
from imprompt.evaluation.scoring import check_enough
from imprompt.generation.provenance import describe_adapter, describe_pipeline, versions


def draw_share(
    pipe: Any,
    attachment: Any,
    protocol: Protocol,
    items: Sequence[Item],
    folder: Path,
    *,
    share: tuple[int, int] = (0, 1),
    batch_size: int = 4,
    progress: Progress | None = None,
) -> list[Item]:
    """Draw what is missing of a protocol's pictures, or one process's share of it.

    Args:
        pipe: the base.
        attachment: the adapter on it.
        protocol: how they are drawn.
        items: all pictures of the run; see `items_in`.
        folder: the run's.
        share: number of this process, and how many there are.
        batch_size: pictures at once.
        progress: called with pictures there and wanted.

    Returns:
        The share, all of which is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder, protocol, models_of(pipe, attachment), list(dict.fromkeys(item.case for item in items)))
    own = share_of(items, *share)
    draw(pipe, attachment, own, protocol, folder, batch_size=batch_size, progress=progress)
    return own


def num_missing(items: Sequence[Item], folder: Path, *, drawn: Sequence[Item] = ()) -> int:
    """Pictures that are still to be drawn.

    Args:
        items: all pictures of the run.
        folder: the run's.
        drawn: those that were checked or written just now, and are not looked at again.
    """
    known = {item.key for item in drawn if item.arm != "copy"}
    return sum(not is_drawn(folder, item) for item in items if item.key not in known)


def score(
    protocol: Protocol, items: Sequence[Item], folder: Path, models: Mapping[str, Any], *, judges: Mapping[str, str]
) -> Results:
    """Measure what was drawn; write `results.json` and `report.html`.

    Args:
        protocol: what is measured.
        items: all pictures of the run, which are there.
        folder: the run's.
        models: base and adapters by hash; see `models_of`.
        judges: networks that judge, by slot.

    Raises:
        EvaluationError: pictures are missing, or a metric cannot be measured.
    """
    if missing := num_missing(items, folder):
        raise EvaluationError(f"{missing} of {len(items)} pictures are not drawn yet; run the same command to go on")
    metrics = metrics_named(protocol.metrics)
    loaded = load_judges(judges, slots_of(metrics), folder / "features")
    files = {item.key: picture_file(folder, item) for item in items}
    rows, groups, sets = measure(items, files, metrics, loaded, folder)
    results = Results(
        protocol=asdict(protocol),
        models=dict(models),
        judges={slot: judge.describe() for slot, judge in loaded.items()},
        rows=rows,
        groups=groups,
        sets=sets,
        versions=versions(),
    )
    results.save(folder / "results.json")
    write_report(
        results, {(item.case.subject, item.case.prompt_name): item.case.references[0] for item in items}, folder
    )
    return results


def items_in(protocol: Protocol, source: Path, limit: int | None) -> list[Item]:
    """All pictures of a protocol.

    Args:
        protocol: what is drawn.
        source: folder of references in the protocol's layout.
        limit: how many of the first subjects to take; None takes all.
    """
    cases = protocol.cases(source)
    if limit is not None:
        subjects = list(dict.fromkeys(case.subject for case in cases))[:limit]
        cases = [case for case in cases if case.subject in subjects]
    return protocol.items(cases)


def check_numbers(protocol: Protocol, items: Sequence[Item]) -> None:
    """Tell before hours of drawing what cannot be measured of so few pictures.

    Raises:
        EvaluationError: a metric of kind "set" wants more pictures or references.
    """
    num_references = len({item.case.references[0] for item in items})
    smallest = min(Counter((item.arm, item.scale) for item in items if item.arm != "copy").values())
    for metric in metrics_named(protocol.metrics):
        if metric.kind == "set":
            check_enough(metric, smallest, num_references)


def check_judges(protocol: Protocol, items: Sequence[Item], judges: Mapping[str, str]) -> None:
    """Load what will judge once, and let it go, so that what is wrong is told before hours of drawing.

    Raises:
        EvaluationError: a slot is unknown, or a judge cannot be had or cannot judge what is measured.
        ImpromptError: the weights of a judge are missing, damaged or another network's.
    """
    loaded = load_judges(judges, slots_of(metrics_named(protocol.metrics)), None)
    if "clip_t" in protocol.metrics and any(item.case.caption for item in items):
        loaded["clip"].text(["a picture"])


def models_of(pipe: Any, attachment: Any) -> dict[str, Any]:
    """Base, adapters and image encoders by hash; an encoder that is fetched by name is fetched now.

    Raises:
        EncoderMismatch: an adapter has no encoder.
        DownloadError: one is neither here nor reachable.
        CheckpointError: one is here and cannot be read.
    """
    attachment.load_encoders()
    return {
        "base": describe_pipeline(pipe),
        "adapters": [describe_adapter(each) for each in attachment.adapters],
        "image_encoders": attachment.describe_encoders(),
    }


def slots_of(metrics: Sequence[Metric]) -> list[str]:
    """Judges that metrics read."""
    return list(dict.fromkeys(metric.judge for metric in metrics if metric.judge is not None))
