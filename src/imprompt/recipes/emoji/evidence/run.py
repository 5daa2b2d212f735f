"""The whole run: what is not trained is trained, what is not drawn is drawn, everything is judged and told."""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from imprompt.core.errors import ImpromptError, first_line
from imprompt.core.files import sha256_file
from imprompt.emoji.bundle import bundle_folder
from imprompt.evaluation.mobilenet import load_judge
from imprompt.recipes.emoji import dataset
from imprompt.recipes.emoji.evidence.document import write_document
from imprompt.recipes.emoji.evidence.drawing import draw_all
from imprompt.recipes.emoji.evidence.references import references
from imprompt.recipes.emoji.evidence.settings import EvidenceSettings
from imprompt.recipes.emoji.evidence.shipped import prepare, shipped_arms
from imprompt.recipes.emoji.evidence.training import ablation_arms, train_ablations
from imprompt.recipes.emoji.paths import cache_folder
from imprompt.training.loop.distributed import resolve_device

PAGE = "evidence.md"
NETWORKS = ("text_encoder", "image_encoder", "unet", "vae")


def default_settings() -> EvidenceSettings:
    """All references and noises, as they are published; hours on a CPU."""
    return EvidenceSettings(bundle=bundle_folder(), work=work_folder())


def quick_settings() -> EvidenceSettings:
    """So little of everything that nothing can be concluded, but that every part is run; a minute or two on a CPU."""
    return EvidenceSettings(
        bundle=bundle_folder(),
        work=work_folder() / "quick",
        num_references=2,
        sampling_seeds=(0,),
        training_seeds=(0,),
        training_steps=3,
        training_batch_size=8,
        num_steps=2,
    )


def work_folder() -> Path:
    """Where a run keeps what it makes: named by the networks that its trainings stand on."""
    files = [file for part in NETWORKS for file in sorted((bundle_folder() / part).glob("*.safetensors"))]
    digest = hashlib.sha256("".join(sha256_file(file) for file in files).encode())
    return cache_folder() / "evidence" / digest.hexdigest()[:12]


def run(settings: EvidenceSettings, output: Path | None = None) -> Path:
    """Train, draw, judge and write; whatever the work folder holds already is taken from it.

    Args:
        settings: What of, and how much.
        output: The page, Markdown; by default in the work folder.

    Returns:
        The page.

    Raises:
        KeyboardInterrupt: The next call goes on.
        BundleError: The judge's weights are not installed.
        ImpromptError: The device cannot be used.
    """
    settings = on_device(settings)
    load_judge()  # hours of work would wait for it else
    chosen = references(dataset.load(), limit=settings.num_references)
    prepare(settings)
    train_ablations(settings)
    draw_all(settings, [*shipped_arms(), *ablation_arms(settings)], chosen)
    return write_document(settings, chosen, output or settings.work / PAGE)


def on_device(settings: EvidenceSettings) -> EvidenceSettings:
    """The same with the device by its own name; an accelerator is used by one process, which has it whole.

    Raises:
        ImpromptError: There is no such device here.
    """
    device = resolve_device(settings.device)
    try:
        torch.empty(1, device=device)
    except (AssertionError, RuntimeError, NotImplementedError) as error:  # as torch says it, built with it or without
        raise ImpromptError(
            f"the device '{device}' cannot be used here ({first_line(error)}); give '--device cpu', or run where it is"
        ) from error
    num_processes = settings.num_processes if device.type == "cpu" else 1
    return replace(settings, device=str(device), num_processes=num_processes)
