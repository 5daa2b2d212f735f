"""The same person in another picture: who it is comes from a face network, everything else from the text.

A folder must hold a detector and an embedder as ONNX files, as InsightFace's packs do (buffalo_l is what FaceID was
trained with): their licences, non-commercial for those packs, are yours to check.

Usage: python face.py person.jpg "a person in a spacesuit"
"""

import sys

import imprompt
from imprompt.encoders.face import FaceEncoder

image, text = sys.argv[1:]
pipe = imprompt.load_pipeline("stable-diffusion-v1-5/stable-diffusion-v1-5", scheduler="ddim")
adapter = imprompt.load_adapter("h94/IP-Adapter-FaceID", "ip-adapter-faceid_sd15.bin")
faces = FaceEncoder.from_folder("buffalo_l", choice="largest")

with imprompt.attach(pipe, adapter, face_encoder=faces) as images:  # its LoRA is on while a face is set, then off
    request = imprompt.Request(prompt=text, image_prompts=[imprompt.ImagePrompt(image, weight=0.8)], num_images=2)
    for path in imprompt.generate(pipe, images, request).save("outputs"):
        print(path)
