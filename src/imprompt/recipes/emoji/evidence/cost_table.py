"""What each way to give a base an image costs: trained parameters, pictures seen, arithmetic and bytes."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import safe_open

from imprompt.emoji.bundle import ADAPTER_FILES
from imprompt.recipes.emoji.card import read_figures
from imprompt.recipes.emoji.evidence.ablations import ABLATIONS
from imprompt.recipes.emoji.evidence.cost import read_cost
from imprompt.recipes.emoji.evidence.settings import EvidenceSettings
from imprompt.recipes.emoji.evidence.training import trained_folder

PAPER_PARAMETERS, PAPER_BASE, PAPER_BYTES = 22_319_616, 860_000_000, 44_642_768
PAPER_PICTURES = 64_000_000
"""A million steps of 8 pictures on each of 8 GPUs."""


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """Cost of one model; None where it is not known.

    Attributes:
        title: What it is.
        num_parameters: Trained.
        share: Of the parameters of the base's denoiser.
        num_steps: Of the training.
        num_pictures: Seen.
        minutes: Of arithmetic.
        seconds_per_step: Of arithmetic.
        operations_per_step: Floating-point operations.
        num_bytes: Of what is to be kept, in half precision.
    """

    title: str
    num_parameters: int
    share: float
    num_steps: int | None
    num_pictures: int | None
    minutes: float | None
    seconds_per_step: float | None
    operations_per_step: int | None
    num_bytes: int


def cost_rows(settings: EvidenceSettings) -> list[CostRow]:
    """Every finished ablation, the adapters that ship, and what the paper tells of its own."""
    base = sum(num_parameters(path) for path in sorted((settings.bundle / "unet").glob("*.safetensors")))
    return [*_ablations(settings, base), *_shipped(settings, base), _paper()]


def num_parameters(file: Path) -> int:
    """Numbers in a safetensors file, read from its header."""
    with safe_open(file, "pt") as tensors:
        return sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())


def _ablations(settings: EvidenceSettings, base: int) -> list[CostRow]:
    rows = []
    for kind, ablation in ABLATIONS.items():
        for seed in settings.training_seeds:
            cost = read_cost(trained_folder(settings, kind, seed))
            if cost is None:
                continue
            rows.append(
                CostRow(
                    title=f"{ablation.title}, training seed {seed}",
                    num_parameters=cost.num_parameters,
                    share=cost.num_parameters / base,
                    num_steps=cost.num_steps,
                    num_pictures=cost.num_pictures,
                    minutes=cost.seconds / 60,
                    seconds_per_step=cost.seconds_per_step,
                    operations_per_step=cost.operations_per_step,
                    num_bytes=cost.num_stored_bytes,
                )
            )
    return rows


def _shipped(settings: EvidenceSettings, base: int) -> list[CostRow]:
    """Steps and pictures as the model's card tells them."""
    card = settings.bundle / "README.md"
    stages = read_figures(card.read_text(encoding="utf-8")) if card.exists() else {}
    rows = []
    for name, file in ADAPTER_FILES.items():
        path, stage = settings.bundle / "adapters" / file, stages.get(f"adapter-{name}", {})
        number = num_parameters(path)
        rows.append(
            CostRow(
                title=f"shipped: {name} adapter",
                num_parameters=number,
                share=number / base,
                num_steps=stage.get("step"),
                num_pictures=stage.get("samples"),
                minutes=None,
                seconds_per_step=None,
                operations_per_step=None,
                num_bytes=path.stat().st_size,
            )
        )
    return rows


def _paper() -> CostRow:
    return CostRow(
        title="the paper's, for SD 1.5",
        num_parameters=PAPER_PARAMETERS,
        share=PAPER_PARAMETERS / PAPER_BASE,
        num_steps=1_000_000,
        num_pictures=PAPER_PICTURES,
        minutes=None,
        seconds_per_step=None,
        operations_per_step=None,
        num_bytes=PAPER_BYTES,
    )
