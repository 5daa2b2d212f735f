"""Where the packaged model, its adapters and its reference pictures lie."""

from pathlib import Path
from typing import Literal

from imprompt.core.errors import BundleError

AdapterName = Literal["global", "plus"]

PART_FILES: dict[str, str] = {
    "controlnet": "diffusion_pytorch_model.safetensors",
    "t2i_adapter": "diffusion_pytorch_model.safetensors",
    "lora": "pytorch_lora_weights.safetensors",
}

ADAPTER_FILES: dict[AdapterName, str] = {
    "global": "ip-adapter_emoji.safetensors",
    "plus": "ip-adapter-plus_emoji.safetensors",
}


def bundle_folder() -> Path:
    """Folder of the embedded model, in diffusers' layout.

    Raises:
        BundleError: The weights are not in this installation.
    """
    folder = Path(__file__).parent / "bundle"
    if not (folder / "model_index.json").is_file():
        raise BundleError(
            f"the embedded model is not at '{folder}'; reinstall imprompt, or make it with 'imprompt emoji bundle'"
        )
    return folder


def adapter_file(name: AdapterName = "plus") -> Path:
    """Checkpoint of one of the embedded model's adapters.

    Args:
        name: `global` reads the pooled embedding (4 tokens), `plus` every patch (16 tokens).

    Raises:
        BundleError: The file is not in this installation.
    """
    file = bundle_folder() / "adapters" / ADAPTER_FILES[name]
    if not file.is_file():
        raise BundleError(f"the embedded adapter '{name}' is not at '{file}'; reinstall imprompt")
    return file


def part_folder(name: str) -> Path:
    """Folder of what others add to a base, trained for the embedded one, as diffusers' `from_pretrained` opens it.

    Args:
        name: `controlnet` follows edges (a `ControlNetModel`), `t2i_adapter` a grid of colours (a `T2IAdapter`), and
            `lora` draws in sepia (`pipe.load_lora_weights`).

    Raises:
        BundleError: There is no such part, or it is not in this installation.
    """
    if name not in PART_FILES:
        raise BundleError(f"the embedded model has no part '{name}'; expected one of {', '.join(PART_FILES)}")
    folder = bundle_folder() / name
    if not (folder / PART_FILES[name]).is_file():
        raise BundleError(f"the embedded model's part '{name}' is not at '{folder}'; reinstall imprompt")
    return folder


def reference_pictures() -> dict[str, Path]:
    """Pictures that no stage was trained on, by name: "subject, style" -> PNG file."""
    folder = bundle_folder() / "references"
    return {path.stem.replace("-", " ").replace("_", ", "): path for path in sorted(folder.glob("*.png"))}
