"""The metrics by name: what each measures, which judge it reads, and which way is better."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from imprompt.evaluation.errors import EvaluationError

Kind = Literal["picture", "group", "set"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric.

    Attributes:
        name: on the command line and in files.
        title: in words.
        definition: what the stored number is.
        judge: slot of the network whose features it reads; None reads pixels.
        kind: a value a picture, a value for the pictures of one case, or one for all of them.
        higher_is_better: None where neither is.
        floor: least pictures that it makes sense for.
    """

    name: str
    title: str
    definition: str
    judge: str | None
    kind: Kind = "picture"
    higher_is_better: bool | None = True
    floor: int = 1


@dataclass(frozen=True, kw_only=True)
class Derived(Metric):
    """A metric on a scale that papers use; it is never stored, for it follows from what is.

    Attributes:
        source: name of the metric that is stored.
        factor: what its values are multiplied by.
        least: what they are taken for where they are lower; None takes them as they are.
    """

    source: str
    factor: float
    least: float | None = None

    def of(self, value: float) -> float:
        """What a stored value is on this scale."""
        return self.factor * (value if self.least is None else max(value, self.least))


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            name="clip_i", title="CLIP-I", judge="clip", definition="cosine of image embeddings: picture, reference"
        ),
        Metric(
            name="clip_t",
            title="CLIP-T",
            judge="clip",
            definition="raw cosine of image and text embeddings: picture, caption",
        ),
        Metric(name="dino", title="DINO", judge="dino", definition="cosine of class tokens: picture, reference"),
        Metric(name="dinov2", title="DINOv2", judge="dinov2", definition="cosine of class tokens: picture, reference"),
        Metric(
            name="mobilenet",
            title="MobileNetV2",
            judge="mobilenet",
            definition="cosine of pooled ImageNet features: picture, reference; needs no hub",
        ),
        Metric(
            name="face",
            title="face similarity",
            judge="face",
            definition="cosine of embeddings of the largest faces; pictures without a face are counted apart",
        ),
        Metric(
            name="style",
            title="style similarity",
            judge="dinov2",
            definition="cosine of mean and deviation over tokens of the last but one layer: picture, style reference",
        ),
        Metric(
            name="csd",
            title="CSD",
            judge="csd",
            definition="cosine of style descriptors (arXiv 2404.01292): picture, style reference; quote the weights",
        ),
        Metric(
            name="content",
            title="CAS",
            judge="dinov2",
            definition="CAS (arXiv 2408.16766) over tokens of the last but one layer: picture, reference",
            higher_is_better=False,
        ),
        Metric(
            name="near_copies",
            title="near-copies",
            judge=None,
            definition="share of pictures whose perceptual hash differs from the reference's in 8 of 64 bits or fewer",
            higher_is_better=False,
        ),
        Metric(
            name="diversity",
            title="diversity",
            judge="clip",
            definition="1 - mean cosine of image embeddings over pairs of seeds of one case",
            kind="group",
            floor=2,
        ),
        Metric(
            name="frechet",
            title="Fréchet distance",
            judge="dinov2",
            definition="FID's formula on DINOv2 class tokens (arXiv 2306.04675): pictures, references",
            kind="set",
            higher_is_better=False,
            floor=2,
        ),
        Metric(
            name="kernel",
            title="kernel distance x 1000",
            judge="dinov2",
            definition="KID's formula on DINOv2 class tokens, 100 subsets of at most 1,000: pictures, references",
            kind="set",
            higher_is_better=False,
            floor=10,
        ),
        Metric(
            name="fid",
            title="FID",
            judge="inception",
            definition="Fréchet distance of Inception features (arXiv 1706.08500): pictures, references",
            kind="set",
            higher_is_better=False,
            floor=2,
        ),
        Metric(
            name="kid",
            title="KID x 1000",
            judge="inception",
            definition="kernel distance of Inception features (arXiv 1801.01401), 100 subsets of at most 1,000",
            kind="set",
            higher_is_better=False,
            floor=10,
        ),
        Metric(
            name="cmmd",
            title="CMMD",
            judge="clip",
            definition="1000 MMD^2 of CLIP embeddings, Gaussian kernel of sigma 10 (arXiv 2401.09603)",
            kind="set",
            higher_is_better=False,
            floor=2,
        ),
    )
}


DERIVED = {
    metric.name: metric
    for metric in (
        Derived(
            name="clip_score",
            title="CLIPScore",
            judge="clip",
            source="clip_t",
            factor=2.5,
            least=0.0,
            definition="2.5 x max(CLIP-T, 0), derived: the formula of arXiv 2104.08718 on the caption as it is; "
            "what the IP-Adapter paper calls CLIP-T",
        ),
        Derived(
            name="clip_t_100",
            title="100 x CLIP-T",
            judge="clip",
            source="clip_t",
            factor=100.0,
            definition="100 x CLIP-T, derived: the scale of DreamBench++ and of torchmetrics",
        ),
    )
}


def with_derived(names: Sequence[str]) -> dict[str, Metric]:
    """Metrics of names, each followed by those that are derived from it."""
    found: dict[str, Metric] = {}
    for name in names:
        found[name] = METRICS[name]
        found |= {each.name: each for each in DERIVED.values() if each.source == name}
    return found


def metrics_named(names: Sequence[str]) -> tuple[Metric, ...]:
    """The metrics of names.

    Raises:
        EvaluationError: one is unknown; the message names the nearest.
    """
    for name in names:
        if name not in METRICS:
            nearest = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.0)[0]
            raise EvaluationError(f"no metric {name!r}; did you mean {nearest!r}? There are {', '.join(METRICS)}.")
    return tuple(METRICS[name] for name in names)
