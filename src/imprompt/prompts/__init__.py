"""Image prompts as plain data: what the user asked, checked when it is written down."""

from imprompt.prompts.image_prompt import ImagePrompt
from imprompt.prompts.schedule import window

__all__ = ["ImagePrompt", "window"]
