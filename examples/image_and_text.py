"""An image prompt beside a text: the picture says how it looks, the text says what it is.

Runs on the embedded model; nothing is downloaded.
"""

import imprompt
from imprompt import ImagePrompt, emoji

name, reference = next(iter(emoji.reference_pictures().items()))
pipe = imprompt.load_pipeline()
adapter = imprompt.load_adapter(emoji.adapter_file("plus"))
print(adapter)

with imprompt.attach(pipe, adapter) as images:
    for weight in (0.0, 0.4, 0.8):
        request = imprompt.Request(
            prompt="rocket",
            image_prompts=[ImagePrompt(reference, weight=weight)],
            steps=20,
            guidance_scale=3.0,
            seed=1,
        )
        (path,) = imprompt.generate(pipe, images, request).save(f"rocket-{weight}.png")
        print(f"{path}: a rocket, and {weight} of {name}")
