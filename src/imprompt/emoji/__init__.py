"""The embedded default model: its packaged weights, held-out reference pictures, and the names of its styles."""

from imprompt.emoji.bundle import (
    ADAPTER_FILES,
    PART_FILES,
    adapter_file,
    bundle_folder,
    part_folder,
    reference_pictures,
)
from imprompt.emoji.conditions import colour_grid, edges
from imprompt.emoji.styles import STYLES, Style

__all__ = [
    "ADAPTER_FILES",
    "PART_FILES",
    "STYLES",
    "Style",
    "adapter_file",
    "bundle_folder",
    "colour_grid",
    "edges",
    "part_folder",
    "reference_pictures",
]
