"""Image prompts as plain data: what the user asked, checked when it is written down."""

from imprompt.prompts.image_prompt import FeatureOrigin, ImagePrompt
from imprompt.prompts.masks import Box, Polygon
from imprompt.prompts.noise import Noise
from imprompt.prompts.schedule import window
from imprompt.prompts.text_region import TextRegion

__all__ = ["Box", "FeatureOrigin", "ImagePrompt", "Noise", "Polygon", "TextRegion", "window"]
