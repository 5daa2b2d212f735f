"""What is wrong with training data, found before anything is paid for: one table, and a budget that it keeps or not."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from imprompt.core.sheet import contact_sheet
from imprompt.training.config import DataConfig
from imprompt.training.data.buckets import Buckets, plan_buckets, upscaling
from imprompt.training.data.looks import Look, near_duplicates, picture_or_none
from imprompt.training.data.manifest import Manifest, ReferenceMode
from imprompt.training.data.quarantine import read_losses
from imprompt.training.data.table import REFERENCE

MAX_TOKENS = 77
LEAST_KEPT = 2 / 3
SHEET_COLUMNS = 6


@dataclass(frozen=True)
class Finding:
    """Samples with the same thing wrong.

    Attributes:
        name: What.
        samples: Their numbers, the worst first.
        example: About the worst of them.
        bad: Whether they cannot be trained on, and so count against the budget.
    """

    name: str
    samples: tuple[int, ...]
    example: str
    bad: bool = False


@dataclass(frozen=True)
class BucketFill:
    """How full a bucket is.

    Attributes:
        height: Of its pictures.
        width: Likewise.
        samples: Targets in it.
        batches: Whole batches that an epoch has of it; what is left over comes first in the next.
    """

    height: int
    width: int
    samples: int
    batches: float


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        num_samples: Rows of the manifest.
        num_lost: Samples that the source should have had.
        lost: The first of them, and why.
        facts: What else is worth knowing, in words.
        findings: What is wrong.
        fills: How full the buckets are.
        budget: Fraction of samples that may be bad.
    """

    num_samples: int
    num_lost: int
    lost: str
    facts: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]
    fills: tuple[BucketFill, ...]
    budget: float

    @property
    def num_bad(self) -> int:
        """Samples that cannot be trained on, each counted once, and those that were lost before."""
        return self.num_lost + len({number for finding in self.findings if finding.bad for number in finding.samples})

    @property
    def passed(self) -> bool:
        """Whether the budget is kept."""
        return self.num_bad <= self.budget * (self.num_samples + self.num_lost)


def check(manifest: Manifest, looks: Sequence[Look] | None, config: DataConfig, batch_size: int) -> Report:
    """Look for all that makes training fail, or learn what it should not.

    Args:
        manifest: What is checked.
        looks: What `look_at_all` saw; None checks only what the manifest tells.
        config: Resolution and buckets, which references are wanted, and how many samples may be bad.
        batch_size: Samples a step.
    """
    targets = np.array([split != REFERENCE for split in manifest.table["split"].to_pylist()], bool)
    buckets = plan_buckets(manifest.sizes, config)
    findings = [*_captions(manifest, targets), *_copies(manifest), *_shapes(manifest, buckets)]
    if looks is not None:
        findings = [*_unreadable(manifest, looks), *_embeds(looks), *findings, *_nearly_copies(manifest, looks)]
    findings += [*_references(manifest, config, targets)]
    fills = _fills(buckets, targets, batch_size)
    findings += _sparse(buckets, fills, targets, batch_size)
    losses = read_losses(manifest.path.with_suffix(".losses.jsonl"))
    return Report(
        num_samples=len(manifest),
        num_lost=manifest.num_lost,
        lost=f"{losses[0].where}: {losses[0].reason}" if losses else "",
        facts=tuple(_facts(manifest, targets)),
        findings=tuple(finding for finding in findings if finding.samples),
        fills=tuple(fills),
        budget=config.bad_samples,
    )


def estimated_tokens(caption: str) -> int:
    """About how many tokens CLIP makes of a caption, its two marks included; long words are several."""
    words = re.findall(r"[a-zA-Z]+|\d|[^\s\w]+|\w", caption)
    return 2 + sum(-(-len(word) // 9) for word in words)


def _facts(manifest: Manifest, targets: np.ndarray) -> Iterable[tuple[str, str]]:
    splits = Counter(manifest.table["split"].to_pylist())
    yield "samples", f"{len(manifest):,} (" + ", ".join(f"{name} {count:,}" for name, count in splits.items()) + ")"
    middle = manifest.sizes[torch.from_numpy(targets)].double().median(0).values.tolist() if targets.any() else [0, 0]
    yield "median size", f"{middle[1]:.0f} x {middle[0]:.0f}"
    tokens = [estimated_tokens(text) for texts in manifest.table["captions"].to_pylist() for text in texts or ()]
    if tokens:
        yield "captions", f"{len(tokens):,}, about {np.median(tokens):.0f} tokens each, at most {max(tokens)}"
    groups = Counter(group for group in manifest.table["group"].to_pylist() if group)
    if groups:
        sizes = sorted(groups.values())
        yield "groups", f"{len(groups):,} of {sizes[0]:,} to {sizes[-1]:,} samples, {sizes.count(1):,} of them of one"


def _unreadable(manifest: Manifest, looks: Sequence[Look]) -> Iterable[Finding]:
    broken = [number for number, look in enumerate(looks) if look.error]
    yield Finding("unreadable", tuple(broken), looks[broken[0]].error if broken else "", bad=True)
    sizes = manifest.sizes.tolist()
    other = [number for number, look in enumerate(looks) if not look.error and list(look.size) != sizes[number]]
    text = ""
    if other:
        (height, width), (told_height, told_width) = looks[other[0]].size, sizes[other[0]]
        text = f"{manifest.sample_id(other[0])} is {width} x {height}, not {told_width} x {told_height}"
    yield Finding("size not as the list tells", tuple(other), text)


def _embeds(looks: Sequence[Look]) -> Iterable[Finding]:
    broken = [number for number, look in enumerate(looks) if look.embed_error]
    yield Finding("face embedding unreadable", tuple(broken), looks[broken[0]].embed_error if broken else "", bad=True)
    lengths = Counter(look.embed for look in looks if look.embed)
    if not lengths:
        return
    usual = lengths.most_common(1)[0][0]
    other = [number for number, look in enumerate(looks) if look.embed not in (0, usual)]
    text = f"{looks[other[0]].embed} numbers, the others have {usual}" if other else ""
    yield Finding("face embedding of another length", tuple(other), text, bad=True)
    without = [number for number, look in enumerate(looks) if not look.embed and not look.embed_error]
    yield Finding("no face embedding", tuple(without), f"the others have one of {usual} numbers")


def _captions(manifest: Manifest, targets: np.ndarray) -> Iterable[Finding]:
    captions = manifest.table["captions"].to_pylist()
    without = [number for number in np.flatnonzero(targets).tolist() if not captions[number]]
    yield Finding("no caption", tuple(without), _named(manifest, without))
    lengths = np.array([max(map(estimated_tokens, texts or ("",))) for texts in captions])
    long = [number for number in np.argsort(-lengths, kind="stable").tolist() if lengths[number] > MAX_TOKENS]
    text = f"{manifest.sample_id(long[0])} has about {lengths[long[0]]}" if long else ""
    yield Finding(f"caption longer than {MAX_TOKENS} tokens", tuple(long), text)


def _copies(manifest: Manifest) -> Iterable[Finding]:
    firsts: dict[str, int] = {}
    again: list[tuple[int, int]] = []
    for number, digest in enumerate(manifest.table["sha256"].to_pylist()):
        first = firsts.setdefault(digest, number) if digest else number
        if first != number:
            again.append((number, first))
    yield Finding("same bytes as another", tuple(number for number, _ in again), _pair(manifest, again))


def _nearly_copies(manifest: Manifest, looks: Sequence[Look]) -> Iterable[Finding]:
    digests = manifest.table["sha256"].to_pylist()
    pairs = [
        (other, one) for one, other in near_duplicates(looks) if not digests[one] or digests[one] != digests[other]
    ]
    yield Finding("looks like another", tuple(dict.fromkeys(chain.from_iterable(pairs))), _pair(manifest, pairs))


def _shapes(manifest: Manifest, buckets: Buckets) -> Iterable[Finding]:
    scales = upscaling(manifest.sizes, buckets)
    small = [number for number in np.argsort(-scales, kind="stable").tolist() if scales[number] > 1]
    text = f"{manifest.sample_id(small[0])} is scaled up {scales[small[0]]:.2g} times" if small else ""
    yield Finding("smaller than its bucket", tuple(small), text)
    kept = _kept(manifest.sizes, buckets)
    cut = [number for number in np.argsort(kept, kind="stable").tolist() if kept[number] < LEAST_KEPT]
    text = f"of {manifest.sample_id(cut[0])}, {kept[cut[0]]:.0%} is kept" if cut else ""
    yield Finding("more than a third is cut away", tuple(cut), text)


def _kept(sizes: Int[Tensor, "samples 2"], buckets: Buckets) -> np.ndarray:
    """Which part of each picture its bucket's crop has: the smaller of two proportions over the larger."""
    shapes = torch.tensor(buckets.shapes)[buckets.bucket_of].double()
    ratio = (shapes[:, 1] / shapes[:, 0]) / (sizes[:, 1] / sizes[:, 0].clamp(min=1)).clamp(min=1e-9)
    return torch.minimum(ratio, 1 / ratio).numpy()


def _references(manifest: Manifest, config: DataConfig, targets: np.ndarray) -> Iterable[Finding]:
    """Targets that are their own reference although others were asked for."""
    mode = config.references
    if mode == "self":
        return
    alone = [number for number in np.flatnonzero(targets).tolist() if _is_alone(manifest, number, mode)]
    name = "alone in its group" if mode == "group" else "names no reference"
    yield Finding(f"{name}, so its own reference", tuple(alone), _named(manifest, alone))


def _is_alone(manifest: Manifest, number: int, mode: ReferenceMode) -> bool:
    if mode == "group":
        return len(manifest.group_members(number)) < 2
    return manifest.reference_ids(number, mode) == [number]


def _fills(buckets: Buckets, targets: np.ndarray, batch_size: int) -> list[BucketFill]:
    counts = torch.bincount(buckets.bucket_of[torch.from_numpy(targets)], minlength=len(buckets.shapes)).tolist()
    pairs = zip(buckets.shapes, counts, strict=True)
    return [BucketFill(height, width, count, count / batch_size) for (height, width), count in pairs]


def _sparse(buckets: Buckets, fills: Sequence[BucketFill], targets: np.ndarray, batch_size: int) -> Iterable[Finding]:
    few = {number for number, fill in enumerate(fills) if 0 < fill.samples < batch_size}
    numbers = [number for number in np.flatnonzero(targets).tolist() if int(buckets.bucket_of[number]) in few]
    text = f"{len(few)} buckets; a sample comes more than once in a batch of {batch_size}"
    yield Finding("in a bucket smaller than a batch", tuple(numbers), text)


def _named(manifest: Manifest, numbers: Sequence[int]) -> str:
    return manifest.sample_id(numbers[0]) if numbers else ""


def _pair(manifest: Manifest, pairs: Sequence[tuple[int, int]]) -> str:
    return " = ".join(manifest.sample_id(number) for number in pairs[0]) if pairs else ""


def describe(report: Report) -> str:
    """The report as a table to read."""
    lines = [f"{name:42s}{text}" for name, text in report.facts]
    lines += ["", f"{'bucket (width x height)':42s}{'samples':>9s}  batches an epoch"]
    lines += [f"{f'{fill.width} x {fill.height}':42s}{fill.samples:9,d}  {fill.batches:.1f}" for fill in report.fills]
    if report.findings or report.num_lost:
        lines += ["", f"{'found':42s}{'samples':>9s}  the worst"]
    if report.num_lost:
        lines.append(f"{'! lost when the manifest was made':42s}{report.num_lost:9,d}  {report.lost}")
    for finding in report.findings:
        name = f"{'! ' if finding.bad else '  '}{finding.name}"
        lines.append(f"{name:42s}{len(finding.samples):9,d}  {finding.example}")
    return "\n".join([*lines, "", _verdict(report)])


def _verdict(report: Report) -> str:
    total = report.num_samples + report.num_lost
    bad, verdict = report.num_bad / max(total, 1), "within" if report.passed else "ABOVE"
    return f"{report.num_bad:,} of {total:,} samples are bad ({bad:.2%}), {verdict} the budget of {report.budget:.2%}."


def worst_sheet(manifest: Manifest, report: Report) -> Image.Image:
    """The worst samples of every finding, a row each; what cannot be read is grey."""
    rows = [
        [picture_or_none(manifest, number) for number in finding.samples[:SHEET_COLUMNS]] for finding in report.findings
    ]
    labels = [f"{finding.name}: {len(finding.samples):,}" for finding in report.findings]
    return contact_sheet(rows or [[None]], row_labels=labels or ["nothing found"])
