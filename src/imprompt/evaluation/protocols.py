"""Protocols as data: what is drawn, how, and what is measured."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from imprompt.evaluation.errors import EvaluationError
from imprompt.evaluation.items import Case, Item, items_of
from imprompt.evaluation.layouts import LAYOUTS

SWEEP = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to evaluate.

    Attributes:
        name: on the command line.
        title: what it is, and whose.
        layout: how its pictures lie on disk, a key of `LAYOUTS`.
        metrics: what is measured, keys of `metrics.table.METRICS`.
        num_seeds: pictures of each case.
        scales: weights of the image prompt.
        steps: denoising steps.
        guidance_scale: classifier-free guidance.
        scheduler: sampler, a key of `generation.pipelines.SCHEDULERS`; None takes the base's own.
        negative_prompt: what to keep away from; None leaves it to the pipeline.
        seed: of the first picture of each case.
        prompts: texts of every subject, where the folder has none of its own.
        controls: whether the text alone and the reference handed back are measured beside it.
    """

    name: str
    title: str
    layout: str
    metrics: tuple[str, ...] = ("clip_i", "clip_t", "dino", "dinov2", "diversity", "near_copies")
    num_seeds: int = 4
    scales: tuple[float, ...] = (1.0,)
    steps: int = 50
    guidance_scale: float = 7.5
    scheduler: str | None = "ddim"
    negative_prompt: str | None = None
    seed: int = 0
    prompts: tuple[str, ...] = ()
    controls: bool = True

    def cases(self, folder: Path) -> list[Case]:
        """What is shown, read from a folder in the protocol's layout."""
        return LAYOUTS[self.layout](folder, self.prompts)

    def items(self, cases: list[Case]) -> list[Item]:
        """All pictures, in a fixed order."""
        return items_of(cases, scales=self.scales, num_seeds=self.num_seeds, seed=self.seed, controls=self.controls)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="coco",
            title="IP-Adapter's own (arXiv 2308.06721, section 4.2.1): COCO 2017 validation, the image alone",
            layout="coco",
            metrics=("clip_i", "clip_t", "dino", "dinov2", "diversity", "near_copies", "frechet", "kernel", "cmmd"),
        ),
        Protocol(
            name="dreambench",
            title="Subjects in new scenes, after DreamBooth's benchmark (arXiv 2208.12242): both axes",
            layout="subjects",
            scales=(0.6,),
            prompts=(
                "a {subject} in the jungle",
                "a {subject} in the snow",
                "a {subject} on the beach",
                "a {subject} on a cobblestone street",
                "a {subject} on top of a wooden floor",
                "a {subject} with a city in the background",
                "a {subject} with a mountain in the background",
                "a purple {subject}",
            ),
        ),
        Protocol(
            name="dreambench-plus",
            title="DreamBench++ (arXiv 2406.16855): its pictures and prompts, one seed each; no language model judges",
            layout="dreambench-plus",
            metrics=("clip_i", "clip_t", "dino", "dinov2", "near_copies"),
            num_seeds=1,
            scales=(0.6,),
            steps=100,
            scheduler=None,
            seed=42,
            negative_prompt="deformed, ugly, wrong proportion, low res, bad anatomy, worst quality, low quality",
        ),
        Protocol(
            name="style",
            title="Style of one picture, subject of a text: kept and obeyed",
            layout="style-content",
            metrics=("clip_t", "style", "diversity", "near_copies"),
            scales=(0.6,),
        ),
        Protocol(
            name="sweep",
            title="Likeness to the image against obedience to the text, over the weight",
            layout="subjects",
            scales=SWEEP,
            prompts=("a {subject} in the snow", "a purple {subject}", "a painting of a {subject}"),
        ),
        Protocol(name="folder", title="Pictures of your own, each followed", layout="folder", steps=30, scheduler=None),
    )
}


def protocol_named(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        EvaluationError: there is none; the message names the nearest.
    """
    if name not in PROTOCOLS:
        nearest = difflib.get_close_matches(name, PROTOCOLS, n=1, cutoff=0.0)[0]
        raise EvaluationError(f"no protocol {name!r}; did you mean {nearest!r}? There are {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
