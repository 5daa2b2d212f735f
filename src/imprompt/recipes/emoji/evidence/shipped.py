"""Arms that draw with what ships: the base, its two adapters, and what people add to a base.

None of what is added was trained with an image prompt, and the adapters are used on all of it unchanged.
"""

import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.adapter import T2IAdapter
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusers.pipelines.t2i_adapter.pipeline_stable_diffusion_adapter import StableDiffusionAdapterPipeline
from jaxtyping import Float, UInt8
from torch import Tensor

from imprompt.adapter.checkpoint import load_adapter
from imprompt.emoji.bundle import ADAPTER_FILES, AdapterName, bundle_folder
from imprompt.emoji.conditions import as_control, colour_cells, edge_maps
from imprompt.emoji.styles import STYLES
from imprompt.generation.attach import attach
from imprompt.prompts.image_prompt import ImagePrompt
from imprompt.recipes.emoji import custom
from imprompt.recipes.emoji.base import base_pipeline
from imprompt.recipes.emoji.captions import STYLED
from imprompt.recipes.emoji.evidence.arms import Arm, Drawer
from imprompt.recipes.emoji.evidence.references import Reference
from imprompt.recipes.emoji.evidence.sampling import sample
from imprompt.recipes.emoji.evidence.settings import DrawingSettings, EvidenceSettings
from imprompt.recipes.emoji.stages import changed

Text = Literal["nothing", "caption", "other"]
Base = Literal["packaged", "finetuned", "lora"]
Structure = Literal["controlnet", "t2i"]

ADAPTERS: tuple[AdapterName, ...] = ("global", "plus")
WEIGHTS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Of the image prompt where a text names another subject; the text alone is the arm `text-other`."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a picture is drawn with.

    Attributes:
        adapter: Which one follows the reference; None: nothing does.
        weight: Of the image prompt.
        text: Whether the text says nothing, all about the reference, or names the other subject.
        base: The packaged denoiser, all of it trained on blueprints, or with the LoRA of sepia pictures.
        structure: What follows another reference's edges, or its colours.
    """

    adapter: AdapterName | None = None
    weight: float = 1.0
    text: Text = "nothing"
    base: Base = "packaged"
    structure: Structure | None = None


def shipped_arms() -> list[Arm]:
    """All of them, the controls without an image first."""
    return [
        _arm("text", "text alone", Setting(text="caption")),
        _arm("text-other", "text alone, another subject", Setting(text="other")),
        *(_arm(name, f"{name} adapter", Setting(adapter=name)) for name in ADAPTERS),
        *(arm for name in ADAPTERS for arm in _with_another_text(name)),
        *(arm for name in ADAPTERS for arm in _on_custom_models(name)),
        *_with_structure(),
    ]


def _with_another_text(name: AdapterName) -> list[Arm]:
    title = "{} adapter at {}, text of another subject"
    return [
        _arm(f"{name}-other-{weight}", title.format(name, weight), Setting(adapter=name, weight=weight, text="other"))
        for weight in WEIGHTS
    ]


def _on_custom_models(name: AdapterName) -> list[Arm]:
    return [
        _arm(f"{name}-finetuned", f"{name} adapter, fine-tuned base", Setting(adapter=name, base="finetuned")),
        _arm(f"{name}-lora", f"{name} adapter, LoRA", Setting(adapter=name, base="lora")),
    ]


def _with_structure() -> list[Arm]:
    return [
        _arm("controlnet", "ControlNet alone", Setting(structure="controlnet")),
        _arm("controlnet-plus", "ControlNet and plus adapter", Setting(structure="controlnet", adapter="plus")),
        _arm("t2i", "T2I-Adapter alone", Setting(structure="t2i")),
        _arm("t2i-plus", "T2I-Adapter and plus adapter", Setting(structure="t2i", adapter="plus")),
    ]


def _arm(name: str, title: str, setting: Setting) -> Arm:
    return Arm(name=name, title=title, open=partial(open_setting, setting=setting))


def open_setting(settings: EvidenceSettings, setting: Setting) -> Drawer:
    """Load what a setting draws with; see `Arm.open`."""
    return drawer(_pipeline(settings, setting), settings, setting)


def drawer(pipe: Any, settings: DrawingSettings, setting: Setting) -> Drawer:
    """What draws with a pipeline, to which the setting's adapter stays attached.

    Args:
        pipe: Of the setting's base and structure.
        settings: How pictures are drawn.
        setting: What with.
    """
    images = None if setting.adapter is None else _attached(pipe, settings, setting.adapter)

    def draw(references: Sequence[Reference], seeds: Sequence[int]) -> UInt8[Tensor, "references 3 height width"]:
        control = None if setting.structure is None else _control(setting.structure, references)

        def before(part: slice) -> dict[str, Any]:
            if images is not None:
                images.set(rows=[[ImagePrompt(one.image, weight=setting.weight)] for one in references[part]])
            return {} if control is None else {"image": control[part]}

        with warnings.catch_warnings():
            # diffusers' own, of its pipeline for T2I-Adapters
            warnings.filterwarnings("ignore", "The decode_latents method", FutureWarning)
            return sample(pipe, settings, [text_of(one, setting.text) for one in references], seeds, before)

    return draw


def text_of(reference: Reference, text: Text) -> str:
    """What the text says."""
    if text == "caption":
        return STYLED[0].format(name=reference.subject, word=STYLES[reference.style].word)
    return reference.other if text == "other" else ""


def structure_of(references: Sequence[Reference]) -> list[Reference]:
    """For each reference another one, whose edges or colours its picture takes over: half the whole list further on."""
    half = len(references) // 2
    return [*references[half:], *references[:half]]


def _control(structure: Structure, references: Sequence[Reference]) -> Float[Tensor, "references 3 64 64"]:
    pixels = torch.from_numpy(np.stack([one.pixels for one in structure_of(references)])).permute(0, 3, 1, 2)
    return as_control(edge_maps(pixels) if structure == "controlnet" else colour_cells(pixels))


def _attached(pipe: Any, settings: DrawingSettings, name: AdapterName) -> Any:
    """Attached for as long as the pipeline lives; the encoder is named, as not every pipeline has a place for one."""
    adapter = load_adapter(settings.bundle / "adapters" / ADAPTER_FILES[name])
    return attach(pipe, adapter, image_encoder=settings.bundle / "image_encoder")


def _pipeline(settings: EvidenceSettings, setting: Setting) -> Any:
    pipe = base_pipeline(bundle=settings.bundle).to(settings.device)
    if setting.base == "finetuned":
        unet = UNet2DConditionModel.from_pretrained(finetuned_folder(settings), torch_dtype=torch.float32)
        pipe.unet = unet.to(settings.device)  # pyright: ignore[reportArgumentType]  (torch's own `to`)
    if setting.base == "lora":
        pipe.load_lora_weights(settings.bundle / "lora")
    if setting.structure is not None:
        pipe = _STRUCTURES[setting.structure](pipe, settings)
        pipe.set_progress_bar_config(disable=True)
    return pipe


def _with_controlnet(pipe: Any, settings: EvidenceSettings) -> Any:
    controlnet = ControlNetModel.from_pretrained(settings.bundle / "controlnet", torch_dtype=torch.float32)
    pipe = StableDiffusionControlNetPipeline.from_pipe(pipe, vae=pipe.vae, controlnet=controlnet)
    return pipe.to(settings.device)


def _with_t2i_adapter(pipe: Any, settings: EvidenceSettings) -> Any:
    adapter = T2IAdapter.from_pretrained(settings.bundle / "t2i_adapter", torch_dtype=torch.float32)
    return StableDiffusionAdapterPipeline.from_pipe(pipe, vae=pipe.vae, adapter=adapter).to(settings.device)


_STRUCTURES: dict[Structure, Callable[[Any, EvidenceSettings], Any]] = {
    "controlnet": _with_controlnet,
    "t2i": _with_t2i_adapter,
}


def finetuned_folder(settings: EvidenceSettings) -> Path:
    """Where the run keeps the base that was trained on blueprints, which does not ship."""
    return settings.work / "finetuned"


def prepare(settings: EvidenceSettings) -> None:
    """Train the base on blueprints where the run has none yet: the stage `finetune`, in a short run some steps of it.

    A run of that stage on the packaged base is gone on with, or taken as it is where it is finished.

    Raises:
        KeyboardInterrupt: Training was stopped; the next call goes on with it.
    """
    target = finetuned_folder(settings)
    if target.exists():
        return
    config = _finetuning(settings)
    unet, num_steps = custom.trained(config)
    if num_steps < config.loop.num_steps:  # the loop ends well when it is told to stop
        raise KeyboardInterrupt
    building = target.with_name(f".{target.name}.part")
    shutil.rmtree(building, ignore_errors=True)
    unet.save_pretrained(building)
    building.rename(target)


def _finetuning(settings: EvidenceSettings) -> custom.CustomConfig:
    config = replace(custom.default_config("finetune"), bundle=settings.bundle, preview_every=0)
    num_steps = min(settings.training_steps, config.loop.num_steps)
    changes: dict[str, Any] = {"device": settings.device, "num_steps": num_steps}
    is_stage = num_steps == config.loop.num_steps and settings.bundle == bundle_folder()
    changes |= {} if is_stage else {"output": settings.work / "finetuning"}
    return replace(
        config,
        num_pictures=min(config.num_pictures, settings.training_steps * config.loop.batch_size),
        loop=changed(config.loop, changes),
    )
