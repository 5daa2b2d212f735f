"""What an evidence run draws, trains and writes, and how pictures are drawn by it and by the measure of quality."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

NumberFormat: TypeAlias = Literal["auto", "no", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class DrawingSettings:
    """How pictures are drawn.

    Attributes:
        bundle: Folder of the embedded model.
        num_steps: Of the sampler.
        guidance_scale: Classifier-free guidance.
        batch_size: Pictures drawn together.
        device: Where to compute.
        autocast: Number format of the arithmetic; "auto" is bfloat16 where the device computes in it, which is hardly
            seen.
    """

    bundle: Path
    num_steps: int = 12
    guidance_scale: float = 3.0
    batch_size: int = 32
    device: str = "cpu"
    autocast: NumberFormat = "auto"


@dataclass(frozen=True, kw_only=True)
class EvidenceSettings(DrawingSettings):
    """Of one run; whatever it makes lies in `work` and is not made again. Trainings share device and number format.

    Attributes:
        work: Where trained ablations, pictures and figures lie; another base has another folder.
        num_references: References of each held-out split; None takes one of every subject. Where it is told, few
            pictures of the training split are read as well.
        sampling_seeds: Noises that every reference is drawn from.
        training_seeds: Runs of every ablation.
        training_steps: Length of an ablation's run.
        training_batch_size: Pictures a step of it.
        training_minutes: Time after which each run stops at the latest; None trains to the end.
        num_processes: That draw or train at the same time, with one thread each on a processor.
    """

    work: Path
    num_references: int | None = None
    sampling_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    training_seeds: tuple[int, ...] = (0, 1, 2)
    training_steps: int = 400
    training_batch_size: int = 32
    training_minutes: float | None = None
    num_processes: int = 2
