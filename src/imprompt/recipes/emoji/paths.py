"""Where the recipe keeps its data, features and checkpoints: in the user's cache, never in the repository."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Root of everything the recipe writes: `$IMPROMPT_CACHE/emoji`, else `~/.cache/imprompt/emoji`."""
    root = os.environ.get("IMPROMPT_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "imprompt") / "emoji"


def stage_folder(stage: str) -> Path:
    """Run folder of a training stage: checkpoints, log and sample sheets."""
    return cache_folder() / "stages" / stage


def models_folder() -> Path:
    """Finished models, one folder a part, as the bundle will hold them."""
    return cache_folder() / "models"


def earlier_figures_file() -> Path:
    """What the runs behind a restored bundle told of their length and loss."""
    return cache_folder() / "earlier_figures.json"


def quality_file() -> Path:
    """Table of the last quality measurement."""
    return cache_folder() / "quality.md"
