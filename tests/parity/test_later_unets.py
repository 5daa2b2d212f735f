"""UNets into which something was put later: an adapter of the UNet attaches unchanged, by its official numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.controlnets.controlnet_xs import ControlNetXSAdapter, UNetControlNetXSModel
from diffusers.models.unets.unet_motion_model import MotionAdapter, UNetMotionModel
from diffusers.pipelines.animatediff.pipeline_animatediff import AnimateDiffPipeline

from imprompt.adapter.attach import attach
from imprompt.adapter.checkpoint import load_adapter, save_adapter
from imprompt.adapter.conditioning import Branch
from imprompt.adapter.families import family_of
from tests import tiny
from tests.parity.native import largest_difference
from tests.unit.adapter.test_identify import meta_unet

LIMIT = 1e-5
FRAMES = 3


def motion(unet: Any) -> MotionAdapter:
    widths = tuple(unet.config.block_out_channels)
    return tiny.seeded(
        lambda: MotionAdapter(
            block_out_channels=widths,
            motion_layers_per_block=unet.config.layers_per_block,
            motion_num_attention_heads=2,
            motion_norm_num_groups=4,
            motion_max_seq_length=8,
        ),
        20,
    )


def animated() -> Any:
    parts = {name: part for name, part in tiny.components().items() if "safety" not in name}
    pipe = AnimateDiffPipeline(**parts, motion_adapter=motion(parts["unet"]))
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.unet, UNetMotionModel)
    return pipe


def frames(pipe: Any, **options: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 2, "generator": generator, "output_type": "latent", **options}
    size = {"height": tiny.PIXELS, "width": tiny.PIXELS, "num_frames": FRAMES, "guidance_scale": 3.0}
    return pipe("a cat", **size, **options).frames


def test_the_same_sites_have_the_same_numbers() -> None:
    unet = tiny.unet()
    places = {site.index: (site.block, site.query_width) for site in family_of(unet).sites(unet)}
    hosts: list[Any] = [UNetMotionModel.from_unet2d(unet, motion(unet)), controlled(unet)]
    for host in hosts:
        sites = family_of(host).sites(host)
        assert {site.index: (site.block, site.query_width) for site in sites} == places
        assert family_of(host).lora_names(host).keys() == family_of(unet).lora_names(unet).keys()  # pyright: ignore


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_they_are_of_the_family_of_their_unet(family: str) -> None:
    unet = meta_unet(family)
    with torch.device("meta"):
        adapter = MotionAdapter(block_out_channels=tuple(unet.config.block_out_channels))
        control = ControlNetXSAdapter.from_unet(unet, size_ratio=0.1)
        hosts: list[Any] = [UNetMotionModel.from_unet2d(unet, adapter, load_weights=False), xs(unet, control)]
    assert [family_of(host).name for host in hosts] == [family, family]


@pytest.mark.parametrize("kind", tiny.PROJECTORS)
def test_animatediff(kind: str, tmp_path: Path) -> None:
    """A file of the picture's UNet, in diffusers and here."""
    pipe = animated()
    path = save_adapter(tiny.adapter(tiny.unet(), kind, official=True), tmp_path / "adapter.safetensors")
    adapter = load_adapter(path)
    features, null = (tiny.features(adapter, seed=seed) for seed in (0, 9))
    scale = torch.full((1, 16, 1), 0.7)
    plain = frames(pipe)
    with attach(pipe, adapter) as images:
        branch = Branch(tokens=adapter.project(features), null_tokens=adapter.project(null), scale=scale)
        images.set(tiny.conditioning(branch))
        output = frames(pipe)
    pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name=path.name, image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.7)
    theirs = frames(pipe, ip_adapter_image_embeds=[torch.stack([null, features])])
    assert output.shape[2] == FRAMES
    assert largest_difference(output, plain) > 0.1
    assert largest_difference(output, theirs) <= LIMIT


def controlled(unet: Any) -> Any:
    return tiny.seeded(lambda: xs(unet, ControlNetXSAdapter.from_unet(unet, size_ratio=1.0)), 21)


def xs(unet: Any, control: Any) -> Any:
    return UNetControlNetXSModel.from_unet(unet, control)


@pytest.mark.parametrize("kind", tiny.PROJECTORS)
def test_controlnet_xs(kind: str) -> None:
    """Fresh, its control adds zeros: the UNet's own output, with the same adapter."""
    unet = tiny.unet()
    host = controlled(unet)
    for norm in (*unet.modules(), *host.modules()):  # diffusers builds those of ControlNet-XS with another epsilon
        if isinstance(norm, torch.nn.GroupNorm):
            norm.eps = 1e-6
    adapter = tiny.adapter(unet, kind)
    inputs = tiny.host_inputs(unet, 2)
    outputs = []
    control = {"controlnet_cond": tiny.rand(2, 3, 128, 128)}
    for each, more in ((unet, {}), (host, control)):
        with attach(each, adapter) as images:
            images.set(tiny.conditioning(tiny.branch(adapter, 2)))
            outputs.append(tiny.call(each, {**inputs, **more}))
    assert largest_difference(outputs[0], tiny.call(unet, inputs)) > 0.1
    assert largest_difference(*outputs) <= LIMIT
