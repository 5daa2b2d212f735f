"""What an evidence run draws, trains and writes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class EvidenceSettings:
    """Of one run; whatever it makes lies in `work` and is not made again.

    Attributes:
        bundle: Folder of the embedded model.
        work: Where trained ablations, pictures and figures lie; another base has another folder.
        num_references: References of each held-out split; None takes one of every subject. Where it is told, few
            pictures of the training split are read as well.
        sampling_seeds: Noises that every reference is drawn from.
        training_seeds: Runs of every ablation.
        training_steps: Length of an ablation's run.
        training_batch_size: Pictures a step of it.
        training_minutes: Time after which each run stops at the latest; None trains to the end.
        num_steps: Of the sampler.
        guidance_scale: Classifier-free guidance.
        batch_size: Pictures drawn together.
        num_processes: That draw or train at the same time, with one thread each on a processor.
        device: Where to compute.
        autocast: Number format of the arithmetic of drawing and training; "auto" is bfloat16 where the device computes
            in it, which is hardly seen.
    """

    bundle: Path
    work: Path
    num_references: int | None = None
    sampling_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    training_seeds: tuple[int, ...] = (0, 1, 2)
    training_steps: int = 400
    training_batch_size: int = 32
    training_minutes: float | None = None
    num_steps: int = 12
    guidance_scale: float = 3.0
    batch_size: int = 32
    num_processes: int = 2
    device: str = "cpu"
    autocast: Literal["auto", "no", "bfloat16"] = "auto"
