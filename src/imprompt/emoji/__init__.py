"""The embedded default model: its packaged weights, held-out reference pictures, and the names of its styles."""

from imprompt.emoji.bundle import ADAPTER_FILES, adapter_file, bundle_folder, reference_pictures
from imprompt.emoji.styles import STYLES, Style

__all__ = ["ADAPTER_FILES", "STYLES", "Style", "adapter_file", "bundle_folder", "reference_pictures"]
