"""Every row of a batch follows its own images, or none: two regions, a schedule, nothing."""

import torch

import imprompt
from imprompt import ImagePrompt, emoji

first, second, *_ = emoji.reference_pictures().values()
left = torch.zeros(64, 64)
left[:, :32] = 1

rows = [
    [ImagePrompt(first, mask=left), ImagePrompt(second, mask=1 - left)],  # one in each half
    [ImagePrompt(first, end=0.5), ImagePrompt(second, start=0.5)],  # one begins, the other ends
    [ImagePrompt([first, second])],  # both at once
    [],  # the text alone
]

pipe = imprompt.load_pipeline()
with imprompt.attach(pipe, imprompt.load_adapter(emoji.adapter_file("plus"))) as images:
    images.set(rows=rows)
    noise = [torch.Generator().manual_seed(1) for _ in rows]  # the same for all, so that the images alone differ
    pictures = pipe(["tulip"] * len(rows), num_inference_steps=20, guidance_scale=3.0, generator=noise).images

for number, picture in enumerate(pictures):
    picture.save(f"tulip-{number}.png")
