"""Training every way to give the base an image at the same budget, and drawing with what comes of it.

The ways share samples, noise, timesteps, captions and what is dropped: a batch depends on seed and step alone.
"""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from imprompt.core.errors import ImpromptError
from imprompt.core.files import atomic_write
from imprompt.encoders.vision import VisionEncoder
from imprompt.recipes.emoji import dataset
from imprompt.recipes.emoji.augment import normalise, to_tensor
from imprompt.recipes.emoji.base import base_pipeline, load_base
from imprompt.recipes.emoji.custom import some_of
from imprompt.recipes.emoji.evidence.ablations import ABLATIONS, Kind, prepare
from imprompt.recipes.emoji.evidence.arms import Arm, Drawer
from imprompt.recipes.emoji.evidence.cost import Cost, measure_cost, read_cost, write_cost
from imprompt.recipes.emoji.evidence.processes import in_processes
from imprompt.recipes.emoji.evidence.references import Reference
from imprompt.recipes.emoji.evidence.sampling import sample
from imprompt.recipes.emoji.evidence.settings import EvidenceSettings
from imprompt.recipes.emoji.examples import CaptionedBatch, DiffusionExamples
from imprompt.recipes.emoji.recipe import recipe
from imprompt.recipes.emoji.stage import stage_loop, train_stage
from imprompt.recipes.emoji.unet import Denoiser
from imprompt.training.config import DropoutConfig, LoopConfig, OptimizerConfig
from imprompt.training.loop.checkpointing import load_averaged_weights
from imprompt.training.loop.distributed import resolve_device
from imprompt.training.loop.optimizers import autocast_format
from imprompt.training.loop.order import BatchOrder
from imprompt.training.loop.task import Draw
from imprompt.training.objective.dropout import draw_dropout

logger = logging.getLogger(__name__)

STYLED_CAPTIONS = 0.3
"""How often a caption names the style: as often as those that the adapters which ship are trained on."""

PICTURES_PER_REFERENCE = 100
"""Of the data set, where the number of references of a split is told."""


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """Of one run.

    Attributes:
        kind: Which way is trained.
        loop: Length and seed, and what the run leaves.
        optimizer: Pace.
        preview_every: Steps between previews, of which there are none.
        dropout: How often the image, the text and both are dropped; as often as for the adapters that ship.
        timestep_shift: Towards strong noise, as for the adapters that ship.
    """

    kind: Kind
    loop: LoopConfig
    optimizer: OptimizerConfig
    preview_every: int = 0
    dropout: DropoutConfig = recipe("global").dropout
    timestep_shift: float = recipe("global").objective.timestep_shift or 1.0


@dataclass(frozen=True)
class PromptedBatch(CaptionedBatch):
    """A batch with an image for each picture.

    Attributes:
        features: What the image encoder sees in the picture; zeros where the image is dropped.
    """

    features: Float[Tensor, "batch width"]


class AblationTask:
    """Noisy latents, captions and images of pictures as they are; see `imprompt.training.loop.task.Task`."""

    def __init__(
        self,
        base: Denoiser,
        examples: DiffusionExamples,
        features: Float[Tensor, "members width"],
        config: AblationConfig,
    ) -> None:
        """Prepare a fresh way into the base, the same for the same seed.

        Args:
            base: A copy of the base that nobody else uses.
            examples: The training pictures.
            features: What the image encoder sees in them.
            config: Of the run.
        """
        torch.manual_seed(config.loop.seed)
        self.config = config
        self.base = base.to(resolve_device(config.loop.device))
        self.way = prepare(config.kind, self.base.unet)
        self.model = self.way.trained
        self.examples = examples
        self.features = features
        self.num_examples = len(examples)
        self.order = BatchOrder(self.num_examples, config.loop.batch_size, config.loop.seed)

    def batch(self, draw: Draw) -> PromptedBatch:
        """Pictures at random timesteps, with their captions and images, some of which are dropped."""
        no_image, no_text = draw_dropout(self.config.dropout, draw)
        token_ids = self.examples.captions_of(draw, no_text, styled_probability=STYLED_CAPTIONS)
        noisy = self.examples.noisy_batch(draw, timestep_shift=self.config.timestep_shift)
        features = self.features[draw.samples].masked_fill(no_image[:, None], 0.0)
        return PromptedBatch(noisy, token_ids, features)

    def loss(self, batch: PromptedBatch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Weighted error of the velocity."""
        noisy = batch.noisy
        states = self.base.text_encoder(batch.token_ids).last_hidden_state
        self.way.set(batch.features)
        return noisy.loss(self.base.unet(noisy.noisy, noisy.timesteps, encoder_hidden_states=states).sample)

    def preview(self, step: int) -> None:
        """Nothing is drawn between steps."""


def trained_name(kind: str, seed: int) -> str:
    """How files and arms call one run."""
    return f"{kind}-{seed}"


def trained_folder(settings: EvidenceSettings, kind: str, seed: int) -> Path:
    """Folder of one run, named by what decides what it learns: with other settings another run begins."""
    return settings.work / "ablations" / f"{trained_name(kind, seed)}-{_fingerprint(settings, kind)}"


def train_ablations(settings: EvidenceSettings) -> None:
    """Train whatever is not trained yet of every kind and seed, several at a time; see `train_ablation`."""
    jobs = [(kind, seed) for seed in settings.training_seeds for kind in ABLATIONS]
    missing = [job for job in jobs if not is_trained(settings, *job)]
    if missing:
        load_examples(settings)  # so that processes find latents and features and do not all compute them
    for name in in_processes(partial(_train, settings), missing, settings.num_processes):
        logger.info("%s is trained", name)


def train_ablation(settings: EvidenceSettings, kind: str, seed: int) -> Path:
    """Train one way, or go on with it; a finished run is left as it is.

    Returns:
        Folder of the run, with `cost.json` and the checkpoint that `load_averaged_weights` reads.

    Raises:
        KeyboardInterrupt: Training was stopped; the next call goes on with it.
        ImpromptError: The folder holds another run.
    """
    folder = trained_folder(settings, kind, seed)
    if is_trained(settings, kind, seed):
        return folder
    task = AblationTask(load_base(settings.bundle), *load_examples(settings), ablation_config(settings, kind, seed))
    begun = time.monotonic()
    num_steps = train_stage(task, task.config)
    if num_steps < settings.training_steps and not _is_time_up(settings, time.monotonic() - begun):
        raise KeyboardInterrupt  # the loop ends well when it is told to stop
    write_cost(folder, measure_cost(task, task.config, num_steps))
    return folder


def is_trained(settings: EvidenceSettings, kind: str, seed: int) -> bool:
    """Whether a run has taken all its steps, or all its time."""
    cost, allowed = read_cost(trained_folder(settings, kind, seed)), settings.training_minutes
    if cost is None:
        return False
    took_all_time = allowed is not None and cost.minutes is not None and cost.minutes >= allowed
    return took_all_time or cost.num_steps == settings.training_steps


def cost_of(settings: EvidenceSettings, kind: str, seed: int) -> Cost:
    """What a finished run has taken.

    Raises:
        ImpromptError: It is not finished.
    """
    cost = read_cost(trained_folder(settings, kind, seed))
    if cost is None or not is_trained(settings, kind, seed):
        raise ImpromptError(
            f"'{trained_name(kind, seed)}' is not trained to its end in '{settings.work}'; run 'imprompt emoji "
            "evidence' to train it"
        )
    return cost


def ablation_config(settings: EvidenceSettings, kind: str, seed: int) -> AblationConfig:
    """The same for every kind but for the learning rate."""
    num_steps = settings.training_steps
    return AblationConfig(
        kind=ABLATIONS[kind].kind,
        loop=stage_loop(
            trained_name(kind, seed),
            output=trained_folder(settings, kind, seed),
            num_steps=num_steps,
            batch_size=settings.training_batch_size,
            seed=seed,
            device=settings.device,
            autocast=settings.autocast,
            checkpoint_every=max(1, num_steps // 5),
            keep_checkpoints=1,
            minutes=settings.training_minutes,
            trackers=(),
        ),
        optimizer=_optimizer(settings, kind),
    )


def _optimizer(settings: EvidenceSettings, kind: str) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=ABLATIONS[kind].learning_rate,
        betas=(0.9, 0.99),
        warmup_steps=min(50, settings.training_steps // 10),
        schedule="cosine",
        ema_decay=0.98,
    )


def _fingerprint(settings: EvidenceSettings, kind: str) -> str:
    """First digits of the hash of what decides, beside kind, seed and base, what a run learns.

    Its time is not in it: a run that is given more of it goes on.
    """
    decides = {
        "optimizer": _optimizer(settings, kind).model_dump(mode="json"),
        "dropout": AblationConfig.dropout.model_dump(mode="json"),
        "styled captions": STYLED_CAPTIONS,
        "references": settings.num_references,
        "steps": settings.training_steps,
        "batch size": settings.training_batch_size,
        "number format": str(autocast_format(settings.autocast, torch.device(settings.device))),
        "timestep shift": AblationConfig.timestep_shift,
        "views": 1,  # of each picture
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]


def load_examples(settings: EvidenceSettings) -> tuple[DiffusionExamples, Float[Tensor, "members width"]]:
    """The training pictures, and what the image encoder sees in them; computed once and kept.

    A run on few references reads few of them, as nothing that it trains is meant to be good.
    """
    pictures, few = dataset.load(), settings.num_references
    if few is not None:
        pictures = some_of(pictures, PICTURES_PER_REFERENCE * few)
    return DiffusionExamples(pictures, settings.bundle), pooled_features(settings, pictures)


def pooled_features(settings: EvidenceSettings, pictures: dataset.EmojiPictures) -> Float[Tensor, "members width"]:
    """What the image encoder sees in the training pictures, pooled; kept in a file."""
    encoder = VisionEncoder(
        CLIPVisionModelWithProjection.from_pretrained(settings.bundle / "image_encoder", dtype=torch.float32),
        CLIPImageProcessorPil.from_pretrained(settings.bundle / "feature_extractor"),
    )
    members = torch.from_numpy(pictures.split("train"))
    name = f"pooled-{encoder.spec.fingerprint[:12]}-{len(members)}.safetensors"
    file = settings.work / "ablations" / name
    if not file.exists():
        encoder.model.to(resolve_device(settings.device))
        parts = tqdm(to_tensor(pictures)[members].split(256), desc="features", mininterval=10)
        seen = [encoder.encode_pixels(normalise(part), "image_embeds").cpu() for part in parts]
        with atomic_write(file) as path:
            save_file({"values": torch.cat(seen)}, path)
    return load_file(file)["values"]


def ablation_arms(settings: EvidenceSettings) -> list[Arm]:
    """One for every kind and training seed: the image alone, without a word."""
    return [
        Arm(
            name=trained_name(kind, seed),
            title=f"{ablation.title}, training {seed}",
            open=partial(open_ablation, kind=kind, seed=seed),
            needs_training=(trained_folder(settings, kind, seed).name,),
        )
        for kind, ablation in ABLATIONS.items()
        for seed in settings.training_seeds
    ]


def open_ablation(settings: EvidenceSettings, kind: str, seed: int) -> Drawer:
    """Load what a run has learnt; see `Arm.open`.

    Raises:
        ImpromptError: The run is not finished.
    """
    cost_of(settings, kind, seed)
    pipe = base_pipeline(bundle=settings.bundle).to(settings.device)
    way = prepare(ABLATIONS[kind].kind, pipe.unet, pipe)
    weights = load_averaged_weights(trained_folder(settings, kind, seed))
    assert weights is not None
    way.trained.load_state_dict(weights)
    way.trained.eval()
    encoder = VisionEncoder(pipe.image_encoder, pipe.feature_extractor)

    def draw(references: Sequence[Reference], seeds: Sequence[int]) -> UInt8[Tensor, "references 3 height width"]:
        features = encoder.encode([one.image for one in references], layer="image_embeds")

        def before(part: slice) -> dict[str, Any]:
            way.set(features[part])
            return {}

        return sample(pipe, settings, [""] * len(references), seeds, before)

    return draw


def _train(settings: EvidenceSettings, job: tuple[str, int]) -> str:
    return train_ablation(settings, *job).name


def _is_time_up(settings: EvidenceSettings, seconds: float) -> bool:
    return settings.training_minutes is not None and seconds >= 60 * settings.training_minutes
