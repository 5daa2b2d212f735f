"""Any pipeline will do: here image-to-image, which redraws one picture in the style of another."""

from diffusers import StableDiffusionImg2ImgPipeline

import imprompt
from imprompt import ImagePrompt, emoji
from imprompt.core.images import load_image

drawing, style, *_ = emoji.reference_pictures().values()
pipe = StableDiffusionImg2ImgPipeline(**imprompt.load_pipeline().components, requires_safety_checker=False)
adapter = imprompt.load_adapter(emoji.adapter_file("global"))

with imprompt.attach(pipe, adapter) as images:
    request = imprompt.Request(image_prompts=[ImagePrompt(style)], steps=20, guidance_scale=3.0, seed=1, num_images=2)
    result = imprompt.generate(pipe, images, request, image=load_image(drawing), strength=0.7)
for path in result.save("redrawn.png"):
    print(path)
