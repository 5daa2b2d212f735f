"""Loading pipelines: the embedded one, a folder, or a hub repository; number format and device are chosen."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.checkpoint import load_adapter
from imprompt.core.devices import chosen_device
from imprompt.core.errors import BundleError, DownloadError, PromptError, first_line
from imprompt.core.weights import resolve_file

EMBEDDED = "emoji"  # the name of the embedded model

SCHEDULERS: dict[str, str] = {
    "ddim": "DDIMScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "lcm": "LCMScheduler",
    "unipc": "UniPCMultistepScheduler",
}

# Those that can follow flows, which FLUX, Stable Diffusion 3 and most transformers predict in place of noise.
FLOW_SCHEDULERS: dict[str, str] = {
    "dpm": "DPMSolverMultistepScheduler",
    "euler": "FlowMatchEulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
}

# What the embedded model was measured with.
EMBEDDED_SETTINGS: dict[str, Any] = {"steps": 20, "guidance_scale": 3.0}

# Everything that diffusers, transformers and safetensors raise for files that are missing, damaged or foreign.
_LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)


def load_pipeline(
    base: str | Path | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    scheduler: str | None = None,
    **options: Any,
) -> Any:
    """Load a diffusers pipeline.

    Args:
        base: a folder in diffusers' layout, a hub repository, or "emoji", the embedded model, which is the default.
        dtype: number format; by default float16 on an accelerator that is good at it, else float32.
        device: where it shall compute; by default the accelerator if there is one.
        scheduler: the sampler in place of the model's own, one of `SCHEDULERS`.
        **options: further arguments of diffusers' `from_pretrained`, e.g. `variant="fp16"` or `revision`.

    Returns:
        A `DiffusionPipeline` of whichever class the base names.

    Raises:
        BundleError: the embedded model is missing or damaged.
        DownloadError: any other base is neither here nor reachable, or cannot be read.
        PromptError: the scheduler is unknown.

    Example:
        ```python
        pipe = imprompt.load_pipeline()  # the embedded model
        pipe = imprompt.load_pipeline("stable-diffusion-v1-5/stable-diffusion-v1-5")
        ```
    """
    if scheduler is not None and scheduler not in SCHEDULERS:
        raise PromptError(f"unknown scheduler {scheduler!r}; expected one of {', '.join(SCHEDULERS)}")
    device = torch.device(device) if device is not None else default_device()
    source = _embedded_folder() if base is None or is_embedded(base) else base
    try:
        pipe = _load(source, default_dtype(device) if dtype is None else dtype, options)
    except _LOADING_ERRORS as error:
        kind = BundleError if source is not base else DownloadError
        raise kind(
            f"the pipeline in {str(source)!r} cannot be loaded ({first_line(error)}); "
            + ("install imprompt again" if source is not base else "get it again, or name another base")
        ) from error
    if scheduler is not None:
        set_scheduler(pipe, scheduler)
    return pipe.to(device)


def is_embedded(base: str | Path | None) -> bool:
    """Whether a base is the embedded model."""
    return base is None or str(base) == EMBEDDED


def settings_for(base: str | Path | None, **given: Any) -> dict[str, Any]:
    """Arguments of a `Request`: those given that are not None, over those that suit the base."""
    suitable = EMBEDDED_SETTINGS if is_embedded(base) else {}
    return {**suitable, **{name: value for name, value in given.items() if value is not None}}


def load_embedded_adapter(name: str = "plus") -> Adapter:
    """Load an adapter of the embedded model.

    Args:
        name: "global" (4 tokens, the picture at large) or "plus" (16 tokens, its details).

    Raises:
        PromptError: there is no adapter of that name.
        BundleError: its file is missing.
    """
    from imprompt.emoji.bundle import ADAPTER_FILES, adapter_file

    if name not in ADAPTER_FILES:
        raise PromptError(f"the embedded model has no adapter {name!r}; expected one of {', '.join(ADAPTER_FILES)}")
    return load_adapter(adapter_file(name))


def set_scheduler(pipe: Any, name: str) -> None:
    """Give a pipeline another sampler, on the noise schedule that it was trained with.

    Raises:
        PromptError: its denoiser predicts flows, and the sampler knows noise alone.
    """
    import diffusers

    config = pipe.scheduler.config
    if not ("FlowMatch" in type(pipe.scheduler).__name__ or config.get("use_flow_sigmas")):
        pipe.scheduler = getattr(diffusers, SCHEDULERS[name]).from_config(config)
        return
    if name not in FLOW_SCHEDULERS:
        raise PromptError(
            f"the scheduler {name!r} is not for {type(pipe).__name__}, whose denoiser predicts flows; expected one of "
            f"{', '.join(FLOW_SCHEDULERS)}"
        )
    shift = config.get("shift", config.get("flow_shift", 1.0))
    flows: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    changes = {"shift": shift} if name == "euler" else flows
    pipe.scheduler = getattr(diffusers, FLOW_SCHEDULERS[name]).from_config(config, **changes)


def default_device() -> torch.device:
    """The accelerator if there is one, of several the one whose turn it is under a launcher; else the processor."""
    return chosen_device()


def default_dtype(device: torch.device) -> torch.dtype:
    """Half precision where it is fast and safe."""
    return torch.float16 if device.type in ("cuda", "xpu") else torch.float32


def _load(source: str | Path, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    index = json.loads(resolve_file(_named(source), "model_index.json", revision=options.get("revision")).read_text())
    # Asked for only where the pipeline has one: others would warn that they do not know it.
    checker = {"safety_checker": None, "requires_safety_checker": False} if "safety_checker" in index else {}
    return DiffusionPipeline.from_pretrained(str(source), dtype=dtype, **{**checker, **options})


def _named(source: str | Path) -> str | Path:
    path = Path(source).expanduser()
    if path.is_file():
        raise DownloadError(
            f"{str(source)!r} is a single file; convert it to a folder with diffusers' "
            "StableDiffusionPipeline.from_single_file(...).save_pretrained(...)"
        )
    return source


def _embedded_folder() -> Path:
    from imprompt.emoji.bundle import bundle_folder

    return bundle_folder()
