"""Stable Diffusion 1.5 with the published adapter, by their hub names: downloads some 8 GB at first use.

Usage: python stable_diffusion.py cat.png "a cat on the moon"
"""

import sys

import imprompt

image, text = sys.argv[1:]
pipe = imprompt.load_pipeline("stable-diffusion-v1-5/stable-diffusion-v1-5", scheduler="ddim")
adapter = imprompt.load_adapter("h94/IP-Adapter", "models/ip-adapter-plus_sd15.safetensors")

with imprompt.attach(pipe, adapter, offload=True) as images:  # finds the image encoder that the adapter names
    request = imprompt.Request(prompt=text, image_prompts=[imprompt.ImagePrompt(image, weight=0.6)], num_images=4)
    for path in imprompt.generate(pipe, images, request).save("outputs"):
        print(path)
