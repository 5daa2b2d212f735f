"""Drawing every arm from every noise, and reading the pictures back: one file for an arm and a noise.

A file tells what decides its pictures. It is whole or not there, and is drawn again where it is damaged or was decided
by anything else than what is asked for.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from imprompt.core.errors import ImpromptError
from imprompt.core.files import atomic_write, sha256_file
from imprompt.recipes.emoji.evidence.arms import Arm, Drawer
from imprompt.recipes.emoji.evidence.processes import in_processes
from imprompt.recipes.emoji.evidence.references import Reference
from imprompt.recipes.emoji.evidence.settings import EvidenceSettings
from imprompt.training.loop.optimizers import autocast_format

logger = logging.getLogger(__name__)

PICTURES = "pictures"
SEED_STRIDE = 100_003
"""More than there are pictures in the data set, so that no two noises are the same."""

_ALWAYS = ("num_steps", "guidance_scale")
_opened: dict[str, Drawer] = {}  # of this process


@dataclass(frozen=True)
class DrawingJob:
    """One file.

    Attributes:
        arm: How it is drawn.
        seed: From which noise.
    """

    arm: Arm
    seed: int


def draw_all(
    settings: EvidenceSettings, arms: Sequence[Arm], references: Sequence[Reference], progress: bool = True
) -> None:
    """Draw what is not there yet of every arm, from every reference and every noise; an interrupted call goes on so.

    Args:
        settings: Where pictures lie, and what decides them.
        arms: All of them; those that need training find it done.
        references: The whole list; every arm draws all of it at once, so that one reference may lend to another.
        progress: Show a bar.

    Raises:
        ImpromptError: Two arms have one name, or an arm drew something else than a picture for each reference.
    """
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ImpromptError(f"several arms are named {', '.join(twice)}; give every arm a name of its own")
    jobs = [DrawingJob(arm, seed) for arm in arms for seed in settings.sampling_seeds]
    missing = [job for job in jobs if not _is_drawn(settings, job, references)]
    work = partial(_draw, settings, tuple(references))
    done = in_processes(work, missing, settings.num_processes)
    total = len(jobs) * len(references)
    _opened.clear()
    with closing(done), tqdm(total=total, desc=PICTURES, unit="picture", disable=not progress) as bar:
        bar.update(total - len(missing) * len(references))
        for number in done:
            bar.update(number)
    _opened.clear()


def pictures_of(settings: EvidenceSettings, arm_name: str, seed: int) -> UInt8[Tensor, "references 3 height width"]:
    """What an arm drew from one noise, in the order of the references.

    Raises:
        ImpromptError: It has not been drawn, or the file is damaged.
    """
    path = picture_file(settings, arm_name, seed)
    found = _read(path)
    if found is None:
        raise ImpromptError(f"no whole pictures at '{path}'; run 'imprompt emoji evidence' to draw them")
    return found[0]


def picture_file(settings: EvidenceSettings, arm_name: str, seed: int) -> Path:
    """Where the pictures of an arm from one noise lie."""
    return settings.work / PICTURES / f"{arm_name}-{seed}.safetensors"


def noise_seed(sampling_seed: int, number: int) -> int:
    """What the noise of a picture is drawn with: the same for a reference, by its number, in every arm."""
    return sampling_seed * SEED_STRIDE + number


def _draw(settings: EvidenceSettings, references: Sequence[Reference], job: DrawingJob) -> int:
    """Draw one file.

    Returns:
        How many pictures it has.
    """
    height, width, _ = references[0].pixels.shape
    expected = [len(references), 3, height, width]
    pictures = _drawer(settings, job.arm)(references, [noise_seed(job.seed, one.number) for one in references])
    if list(pictures.shape) != expected:
        raise ImpromptError(
            f"the arm '{job.arm.name}' drew pictures of shape {list(pictures.shape)}; expected {expected}, one for "
            "each reference; put its `open` right"
        )
    pictures = pictures.contiguous()
    told = {"decided_by": json.dumps(_decided_by(settings, job.arm, references)), "digest": _digest(pictures)}
    with atomic_write(picture_file(settings, job.arm.name, job.seed)) as path:
        save_file({PICTURES: pictures}, path, metadata=told)
    return len(references)


def _drawer(settings: EvidenceSettings, arm: Arm) -> Drawer:
    """An arm, opened unless it is the last one that this process opened; only one is kept in memory."""
    if arm.name not in _opened:
        _opened.clear()
        _opened[arm.name] = arm.open(settings)
    return _opened[arm.name]


def _is_drawn(settings: EvidenceSettings, job: DrawingJob, references: Sequence[Reference]) -> bool:
    path = picture_file(settings, job.arm.name, job.seed)
    found = _read(path)
    if found is None:
        return False
    before, now = found[1], _decided_by(settings, job.arm, references)
    changes = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if changes:
        logger.warning("%s was drawn with other %s and is drawn anew", path.name, ", ".join(changes))
    return not changes


def _read(path: Path) -> tuple[UInt8[Tensor, "references 3 height width"], dict[str, Any]] | None:
    """Pictures and what decided them; None where the file is not there or not whole."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            pictures, told = file.get_tensor(PICTURES), file.metadata()
        if told["digest"] == _digest(pictures):
            return pictures, json.loads(told["decided_by"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        logger.debug("%s cannot be read: %r", path, error)
    logger.warning("%s is damaged", path)
    return None


def _decided_by(settings: EvidenceSettings, arm: Arm, references: Sequence[Reference]) -> dict[str, Any]:
    """Everything that decides the pictures of an arm beside its name and the noise."""
    trained = {"trainings": list(arm.needs_training), "training_minutes": settings.training_minutes}
    return {
        "model": _weights_of(settings.bundle),
        "number format": str(autocast_format(settings.autocast, torch.device(settings.device))),
        "references": [[reference.number, reference.other] for reference in references],
        **{name: getattr(settings, name) for name in _ALWAYS},
        **(trained if arm.needs_training else {}),
    }


@cache
def _weights_of(bundle: Path) -> str:
    """Hash of all weights of a model."""
    files = sorted(bundle.rglob("*.safetensors"))
    return hashlib.sha256("".join(sha256_file(path) for path in files).encode()).hexdigest()[:16]


def _digest(pictures: UInt8[Tensor, "references 3 height width"]) -> str:
    return hashlib.sha256(pictures.numpy().tobytes()).hexdigest()
