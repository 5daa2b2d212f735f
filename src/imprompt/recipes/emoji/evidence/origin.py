"""Where a page of evidence comes from: commit, machine and versions."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from imprompt.core.files import sha256_file
from imprompt.recipes.emoji.evidence.settings import EvidenceSettings
from imprompt.training.loop.optimizers import autocast_format

PACKAGES = ("imprompt", "torch", "diffusers", "transformers", "peft", "numpy")
UNKNOWN = "unknown: not run from the project's repository"


def origin(settings: EvidenceSettings) -> dict[str, str]:
    """What made the figures, in words.

    Args:
        settings: Of the run.
    """
    device = torch.device(settings.device)
    number_format = autocast_format(settings.autocast, device)
    return {
        "commit": commit(Path(__file__)),
        "base": f"`unet` with SHA-256 {_hash_of(settings.bundle / 'unet')}",
        "machine": f"{_processor()}, {os.cpu_count()} processors{_accelerator(device)}",
        "arithmetic": "float32" if number_format is None else str(number_format).removeprefix("torch."),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
    }


def commit(file: Path) -> str:
    """Commit of the repository that tracks a file, and whether its sources are as committed; or that there is none."""
    where = file.parent
    if _git(where, "ls-files", "--error-unmatch", file.name) is None:
        return UNKNOWN
    head, changes = _git(where, "rev-parse", "HEAD"), _git(where, "status", "--porcelain", "--", ":/src")
    if head is None or changes is None:
        return UNKNOWN
    state = "with changes in `src` that are not committed" if changes.strip() else "`src` as committed"
    return f"{head.strip()}, {state}"


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says; None where it is not installed or refuses."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _processor() -> str:
    """Name of the processor, where the system tells it."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _accelerator(device: torch.device) -> str:
    """The device that drew and trained, where it is no processor."""
    if device.type == "cpu":
        return ""
    return f"; drawn and trained on {torch.cuda.get_device_name(device) if device.type == 'cuda' else device}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _hash_of(folder: Path) -> str:
    """First digits of the hash of a part's weights."""
    return ", ".join(sha256_file(path)[:16] for path in sorted(folder.glob("*.safetensors"))) or "unknown"
