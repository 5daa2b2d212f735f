"""Shipped image prompt adapters, unchanged, on what people do to a base: structure, other weights, other starts.

Figures are means over six held-out references and fixed seeds; margins are about half of what was measured.
"""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import imprompt
from imprompt import ImagePrompt, emoji
from imprompt.emoji.styles import STYLES
from imprompt.prompts import Box
from imprompt.recipes.emoji import custom, dataset
from imprompt.recipes.emoji.looks import BLUEPRINT, SEPIA
from imprompt.recipes.emoji.sources import Subject
from tests.e2e.measures import as_tensor, colour_error, distance_from_look, edge_agreement, likeness, told

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The decode_latents method:FutureWarning"),  # diffusers' own, of T2I-Adapters
]

COUNT, NUM_STEPS = 6, 6
ENCODER = emoji.bundle_folder() / "image_encoder"  # diffusers' pipeline of T2I-Adapters has no place for one
PICTURES = {name: Image.open(path).convert("RGB") for name, path in emoji.reference_pictures().items()}
REFERENCES, SHAPES = list(PICTURES.values())[:COUNT], list(PICTURES.values())[-COUNT:]
EDGES, GRIDS = [emoji.edges(shape) for shape in SHAPES], [emoji.colour_grid(shape) for shape in SHAPES]


def pipeline(kind="", **parts):
    """A pipeline of the embedded model's parts; `kind` is the middle of a class's name in diffusers."""
    base = imprompt.load_pipeline(device="cpu")
    pipe = getattr(diffusers, f"StableDiffusion{kind}Pipeline").from_pipe(base, **{"vae": base.vae, **parts})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, **options):
    """Pictures without a text, as bytes [pictures, 3, 64, 64]."""
    generators = [torch.Generator().manual_seed(row) for row in range(COUNT)]
    options = {"num_inference_steps": NUM_STEPS, "guidance_scale": 3.0, "generator": generators, **options}
    made = pipe([""] * COUNT, output_type="np", **options).images
    return torch.from_numpy(np.round(255 * made).astype(np.uint8)).permute(0, 3, 1, 2)


def follow(pipe, *names, rows=None, **options):
    """The same with an image prompt for each picture, to one adapter or shared by several."""
    names = names or ("plus",)
    adapters = [imprompt.load_adapter(emoji.adapter_file(name)) for name in names]
    with imprompt.attach(pipe, *adapters, image_encoder=ENCODER) as images:
        shares = [{"adapter": number, "weight": 1 / len(names)} for number in range(len(names))]
        images.set(rows=rows or [[ImagePrompt(reference, **share) for share in shares] for reference in REFERENCES])
        return sample(pipe, **options)


@pytest.fixture(scope="module")
def like_references():
    encoder = imprompt.load_pipeline(device="cpu").image_encoder
    return lambda pictures: likeness(encoder, pictures, as_tensor(REFERENCES))


@pytest.fixture(scope="module")
def plain():
    """Pictures that follow references on the base itself."""
    return follow(pipeline())


@pytest.fixture(scope="module")
def controlnet():
    return diffusers.ControlNetModel.from_pretrained(emoji.part_folder("controlnet"))


@pytest.fixture(scope="module")
def t2i_adapter():
    return diffusers.T2IAdapter.from_pretrained(emoji.part_folder("t2i_adapter"))


@pytest.fixture(scope="module")
def lora():
    pipe = pipeline()
    pipe.load_lora_weights(emoji.part_folder("lora"))
    return pipe


def test_references_alone_are_followed(plain, like_references):
    assert like_references(plain) > 0.6


def test_a_controlnet_gives_the_edges_and_the_image_prompt_the_rest(controlnet, plain, like_references):
    pipe, edges = pipeline("ControlNet", controlnet=controlnet), as_tensor(EDGES)
    alone = like_references(sample(pipe, image=EDGES))
    for names in (("plus",), ("global", "plus")):
        made = follow(pipe, *names, image=EDGES)
        assert edge_agreement(made, edges) > edge_agreement(plain, edges) + 0.15
        assert like_references(made) > alone + 0.3


def test_a_t2i_adapter_gives_the_colours_and_the_image_prompt_the_rest(t2i_adapter, plain, like_references):
    pipe, grids = pipeline("Adapter", adapter=t2i_adapter), as_tensor(GRIDS)
    made, alone = follow(pipe, image=GRIDS), sample(pipe, image=GRIDS)
    assert colour_error(alone, grids) < colour_error(plain, grids) - 0.035
    assert like_references(made) > like_references(alone) + 0.3
    lighter = [[ImagePrompt(reference, weight=0.3)] for reference in REFERENCES]
    both, prompted = follow(pipe, rows=lighter, image=GRIDS), follow(pipeline(), rows=lighter)
    assert colour_error(both, grids) < colour_error(prompted, grids) - 0.014
    assert like_references(both) > like_references(alone) + 0.3


def test_a_lora_gives_the_look_and_the_image_prompt_the_subject(lora, plain, like_references):
    made, alone = follow(lora), sample(lora)
    assert distance_from_look(made, SEPIA) < distance_from_look(plain, SEPIA) / 2
    assert like_references(made) > like_references(alone) + 0.12


def test_a_finetuned_base_gives_the_look_and_the_image_prompt_steers_it(finetuned, plain, like_references):
    """How little of the reference is left there is for the evidence to tell."""
    made, alone = follow(finetuned), sample(finetuned)
    assert distance_from_look(made, BLUEPRINT) < 0.7 * distance_from_look(plain, BLUEPRINT)
    assert told("change by the image prompt", (made / 255 - alone / 255).abs().mean()) > 0.04
    like_references(made), like_references(alone)


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    """The base, all of it trained for some seconds on the bundle's own references in blue and white."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPROMPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(dataset, "load", lambda **_: _references_as_data())
        config = custom.default_config("finetune")
        pace = {"warmup_steps": 5, "learning_rate": 6e-4, "ema_decay": 0.7}
        config = replace(
            config,
            loop=config.loop.model_copy(update={"num_steps": 24, "batch_size": 8}),
            optimizer=config.optimizer.model_copy(update=pace),
            preview_every=0,
        )
        folder = custom.run(config)
    return pipeline(unet=diffusers.UNet2DConditionModel.from_pretrained(folder))


def _references_as_data():
    words = [style.word for style in STYLES]
    names = [name.split(", ") for name in PICTURES]
    return dataset.EmojiPictures(
        images=np.stack([np.asarray(picture) for picture in PICTURES.values()]),
        styles=np.array([words.index(word) for _, word in names]),
        subject_indices=np.arange(len(names)),
        subjects=tuple(Subject(label, label, (), (), "objects") for label, _ in names),
    )


def test_controlnet_t2i_adapter_lora_and_two_adapters_at_once(lora, controlnet, t2i_adapter, plain, like_references):
    """No pipeline of diffusers takes a ControlNet and a T2I-Adapter; the denoiser does."""
    pipe = pipeline("ControlNet", unet=lora.unet, controlnet=controlnet)
    with torch.no_grad():
        maps = t2i_adapter(torch.cat([as_tensor(GRIDS) / 255] * 2))

    def add_maps(unet, args, kwargs):
        return args, {**kwargs, "down_intrablock_additional_residuals": list(maps)}

    hook = pipe.unet.register_forward_pre_hook(add_maps, with_kwargs=True)
    made = follow(pipe, "global", "plus", image=EDGES, controlnet_conditioning_scale=1.5)
    hook.remove()
    assert edge_agreement(made, as_tensor(EDGES)) > edge_agreement(plain, as_tensor(EDGES)) + 0.07
    assert distance_from_look(made, SEPIA) < distance_from_look(plain, SEPIA) / 2
    assert like_references(made) > 0.09


def test_image_to_image_goes_from_one_picture_towards_another(plain, like_references):
    pipe = pipeline("Img2Img")
    options = {"image": SHAPES, "strength": 0.5, "num_inference_steps": 12}
    made, alone = follow(pipe, **options), sample(pipe, **options)
    like_start, without = (likeness(pipe.image_encoder, pictures, as_tensor(SHAPES)) for pictures in (made, plain))
    assert like_start > without + 0.09
    assert like_references(made) > like_references(alone) + 0.35


def test_inpainting_changes_the_masked_half_alone():
    pipe = pipeline("Inpaint")
    pipe.unet.register_to_config(in_channels=4)  # the pipeline knows denoisers of 4 and of 9 channels
    mask = Image.new("L", (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    options = {"image": SHAPES, "mask_image": mask, "strength": 1.0}
    made, alone = (part / 255 for part in (follow(pipe, **options), sample(pipe, **options)))
    shapes, change = as_tensor(SHAPES) / 255, (made - alone).abs()
    assert (made - shapes)[..., :24].abs().mean() < 0.06  # what the autoencoder loses
    assert told("change outside", change[..., :24].mean()) < 0.01
    assert told("change inside", change[..., 40:].mean()) > 0.06


def test_regions_confine_references_on_a_lora(lora):
    left, right = Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 1.0, 1.0)

    def beside(others):
        pairs = zip(REFERENCES, others, strict=True)
        return follow(lora, rows=[[ImagePrompt([one, other], mask=[left, right])] for one, other in pairs]).float()

    change = (beside(SHAPES) - beside(REFERENCES)).abs()
    assert told("change inside", change[..., 40:].mean()) > 2.5 * told("change outside", change[..., :24].mean())
