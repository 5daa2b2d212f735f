"""Image prompts for diffusion models: attach adapters, combine references, train and measure.

Names are resolved on first use, so that `import imprompt` loads no model library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imprompt.adapter.adapter import Adapter
    from imprompt.adapter.checkpoint import load_adapter, save_adapter
    from imprompt.adapter.spec import AdapterSpec
    from imprompt.core.errors import ImpromptError
    from imprompt.generation.attach import attach
    from imprompt.generation.generate import Request, generate
    from imprompt.generation.pipelines import load_pipeline
    from imprompt.generation.result import Result
    from imprompt.prompts.image_prompt import ImagePrompt

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "AdapterSpec",
    "ImagePrompt",
    "ImpromptError",
    "Request",
    "Result",
    "__version__",
    "attach",
    "generate",
    "load_adapter",
    "load_pipeline",
    "save_adapter",
]

_HOMES = {
    "Adapter": "imprompt.adapter.adapter",
    "AdapterSpec": "imprompt.adapter.spec",
    "ImagePrompt": "imprompt.prompts.image_prompt",
    "ImpromptError": "imprompt.core.errors",
    "Request": "imprompt.generation.generate",
    "Result": "imprompt.generation.result",
    "attach": "imprompt.generation.attach",
    "generate": "imprompt.generation.generate",
    "load_adapter": "imprompt.adapter.checkpoint",
    "load_pipeline": "imprompt.generation.pipelines",
    "save_adapter": "imprompt.adapter.checkpoint",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'imprompt' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
