"""A run from its configuration: base, adapter, data and feedback put together, trained, and the adapter handed on."""

import hashlib
import logging
import shutil
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from imprompt.adapter.adapter import Adapter
from imprompt.core.errors import CheckpointError, ImageError
from imprompt.core.files import atomic_write
from imprompt.encoders.face import FaceEncoder
from imprompt.encoders.vision import VisionEncoder
from imprompt.prompts.image_prompt import ImagePrompt
from imprompt.training.adapters.initial import initial_adapter
from imprompt.training.adapters.inputs import CROP, FEATURES, AdapterInputs, ReferenceSource, TargetSource
from imprompt.training.adapters.sources import CachedReferences, CachedTargets, PictureReferences, PictureTargets
from imprompt.training.adapters.stores import (
    LATENTS,
    MANIFEST,
    TEXT,
    compute_missing,
    encoder_folder,
    jobs_of,
    manifest_of,
    open_stores,
)
from imprompt.training.adapters.task import AdapterTask, file_name, null_features
from imprompt.training.bases import FrozenBase, load_base
from imprompt.training.config import TrainConfig
from imprompt.training.data.buckets import Buckets, plan_buckets
from imprompt.training.data.manifest import Manifest, is_manifest
from imprompt.training.data.quarantine import Quarantine
from imprompt.training.features.store import FeatureStore
from imprompt.training.feedback.feedback import Feedback
from imprompt.training.feedback.report import CONFIG, QUARANTINE, write_report
from imprompt.training.feedback.sheets import SheetPainter, SheetReference, plan_sheet
from imprompt.training.feedback.validation import plan_validation
from imprompt.training.feedback.visitors import Visitors, idle_parts
from imprompt.training.loop.checkpointing import EXPORT, newest_checkpoint
from imprompt.training.loop.distributed import Processes, connect, shard_frozen
from imprompt.training.loop.order import BatchOrder, generator_at
from imprompt.training.loop.trainer import RunOptions, Trainer
from imprompt.training.objective.noise import noise_process
from imprompt.training.overrides import ConfigError

logger = logging.getLogger(__name__)

NUM_SHEET_REFERENCES = 4


@dataclass(frozen=True)
class Finished:
    """What a run leaves.

    Attributes:
        step: Steps taken since it began.
        adapter: The adapter's file, in the official layout.
        is_main: Whether this is the process that writes and tells, of those that trained.
    """

    step: int
    adapter: Path
    is_main: bool = True


def train(config: TrainConfig) -> Finished:
    """Train, or go on training; see `imprompt.training.loop.trainer.Trainer.train`.

    Args:
        config: The whole run, as a recipe returns it.

    Raises:
        ConfigError: The configuration names no data, or leaves some needed thing out.
        ImpromptError: Base, data or encoder cannot be used, or the run cannot go on.
    """
    return Run(config).train()


class Run:
    """Everything that a run is made of, each made when it is first wanted."""

    def __init__(self, config: TrainConfig) -> None:
        """Take a configuration; nothing is loaded yet."""
        if config.data.source is None:
            raise ConfigError("no pictures to train on; give data.source=FOLDER (or tars, parquet, JSON, a manifest)")
        if not config.base.path:
            raise ConfigError("no base to train on; give base.path=FOLDER, or a repository")
        self.config = config

    def train(self) -> Finished:
        """Train to the end, or to whatever stops it; hand the adapter on."""
        config = self.config
        if self.processes.is_main:
            save_config(config)
        with self.task.attachment:
            step = Trainer(self.task, config.loop, config.optimizer, self.options).train()
            path = self.processes.on_main(self.hand_on)
        return Finished(step, path or self.adapter_file, self.processes.is_main)

    @cached_property
    def processes(self) -> Processes:
        """This process among those that train together."""
        return connect(self.config.loop.device)

    @cached_property
    def base(self) -> FrozenBase:
        """The frozen base."""
        return load_base(self.config.base, self.processes.device, guidance=self.config.objective.guidance)

    @cached_property
    def encoder(self) -> VisionEncoder | None:
        """The image encoder, where the adapter reads one."""
        if self.config.adapter.kind == "faceid":
            return None
        dtype = getattr(torch, self.config.base.dtype)
        encoder = VisionEncoder.from_folder(encoder_folder(self.config), dtype=dtype, device=self.processes.device)
        name = self.config.adapter.encoder_name
        return encoder if name is None else VisionEncoder(encoder.model, encoder.preprocessing, name=name)

    @cached_property
    def visitors(self) -> Visitors:
        """Models that only contact sheets need, since what they make was computed once."""
        components = self.base.pipeline().components
        online = {"texts": TEXT not in self.stores, "latents": LATENTS not in self.stores}
        models = list(idle_parts(components, **online).values())
        if self.encoder is not None and FEATURES in self.stores:
            models.append(self.encoder.model)
        return Visitors(models, self.processes.device)

    @cached_property
    def adapter(self) -> Adapter:
        """What is trained, as the seed makes it."""
        config = self.config
        with torch.random.fork_rng():
            torch.manual_seed(generator_at(config.loop.seed, "adapter").initial_seed())
            spec = None if self.encoder is None else self.encoder.spec
            return initial_adapter(config.adapter, self.base.denoiser, spec, config.recipe.partition("-")[0])

    @cached_property
    def manifest(self) -> Manifest:
        """All samples."""
        source = self.config.data.source
        assert source is not None
        made = self.processes.on_main(lambda: manifest_of(self.config))
        return made or Manifest.read(source if is_manifest(source) else self.config.loop.output / MANIFEST)

    @cached_property
    def stores(self) -> dict[str, FeatureStore]:
        """Features that were computed once; what was missing is there now."""
        jobs, processes = jobs_of(self.config), self.processes
        self.processes.on_all(lambda: compute_missing(self.config, self.manifest, jobs, processes))
        return open_stores(self.config, self.manifest, jobs)

    @cached_property
    def buckets(self) -> Buckets:
        """Which shape every picture is brought to."""
        return plan_buckets(self.manifest.sizes, self.config.data)

    def members(self, split: str) -> Int[Tensor, " members"]:
        """Numbers of a split's samples that all features are there of."""
        numbers = self.manifest.split(split)
        for store in self.stores.values():
            numbers = numbers[store.available[numbers]]
        return numbers

    @cached_property
    def validation_members(self) -> Int[Tensor, " members"]:
        """The fixed validation: the first samples of its split, spread over the manifest."""
        numbers = self.members("validation")
        most = self.config.validation.num_samples
        return numbers if len(numbers) <= most else numbers[torch.arange(most) * len(numbers) // most]

    @cached_property
    def inputs(self) -> AdapterInputs:
        """What makes batches."""
        config = self.config
        splits = [self.members("train"), self.validation_members]
        following = [successors(self.buckets.bucket_of[members]) for members in splits]
        return AdapterInputs(
            manifest=self.manifest,
            members=torch.cat(splits),
            successors=torch.cat([following[0], len(splits[0]) + following[1]]),
            quarantine=Quarantine(config.loop.output / QUARANTINE, config.data.bad_samples, len(self.manifest)),
            targets=self._targets(),
            references=self._references(),
            noise=noise_process(self.base.scheduler, config.objective),
            token_side=self.base.patch,
            dropout=config.dropout,
            mode=config.data.references,
            num_references=config.data.num_references,
            prompt_template=config.data.prompt_template,
            texts=self.stores.get(TEXT),
        )

    @cached_property
    def task(self) -> AdapterTask:
        """What the loop trains."""
        config = self.config
        trained = self.members("train")
        order = BatchOrder(self.buckets.bucket_of[trained], config.loop.batch_size, config.loop.seed)
        with self.visitors.present():
            nulls = null_features(self.adapter.spec, self.encoder)
        task = AdapterTask(
            self.adapter,
            self.base,
            self.inputs,
            order,
            num_examples=len(trained),
            nulls=nulls,
            encoder=self.encoder,
        )
        task.feedback = self._feedback(task)
        if config.base.shard:
            shard_frozen(self.base.denoiser, self.processes)
        return task

    @property
    def options(self) -> RunOptions:
        """What the loop notes down, and when it asks for feedback."""
        feedback = self.task.feedback
        return RunOptions(
            num_workers=self.config.data.num_workers,
            preview_every=0 if feedback is None else feedback.every,
            preview_first=feedback is not None and feedback.every > 0,
            preview_everywhere=True,
            data=data_of(self.manifest, self.config),
            config=self.config.model_dump(mode="json"),
        )

    @property
    def adapter_file(self) -> Path:
        """Where the trained adapter is handed on."""
        return self.config.loop.output / f"{file_name(self.adapter.spec)}.safetensors"

    def hand_on(self) -> Path:
        """Copy the newest checkpoint's adapter out of it, for users to take away, and write the last report."""
        folder = self.config.loop.output / "checkpoints"
        checkpoint = newest_checkpoint(folder)
        if checkpoint is None:
            raise CheckpointError(f"'{folder}' holds no checkpoint that is whole any more; check the disk")
        with atomic_write(self.adapter_file) as path:
            shutil.copy(checkpoint / EXPORT / self.adapter_file.name, path)
        write_report(self.config.loop.output)
        return self.adapter_file

    def _targets(self) -> TargetSource:
        base, config = self.base, self.config
        shape = {"latent_channels": base.latent_channels, "pixels_per_latent": base.pixels_per_latent}
        if LATENTS in self.stores:
            return CachedTargets(
                self.stores[LATENTS], self.manifest.sizes, self.buckets, mirror=config.data.mirror, **shape
            )
        return PictureTargets(
            self.manifest, self.buckets, num_views=config.data.num_views, mirror=config.data.mirror, **shape
        )

    def _references(self) -> ReferenceSource:
        stores = {name: store for name, store in self.stores.items() if name not in (LATENTS, TEXT)}
        if FEATURES in stores:
            return CachedReferences(stores)
        assert self.encoder is not None
        data = self.config.data
        return PictureReferences(
            self.manifest, FEATURES, self.encoder.preprocessing, data.reference_crop, data.mirror, stores
        )

    def _feedback(self, task: AdapterTask) -> Feedback:
        config = self.config.validation
        members = self.validation_members
        first = len(self.inputs.members) - len(members)
        samples = first + torch.arange(len(members))
        size = self.config.loop.micro_batch_size or self.config.loop.batch_size
        groups = groups_of(self.manifest, members)
        plan = plan_validation(samples, self.buckets.bucket_of[members], groups, size, config.num_samples)
        return Feedback(
            task=task,
            adapter=self.adapter,
            folder=self.config.loop.output,
            processes=self.processes,
            plan=plan if len(members) > 1 else None,
            painter=self._painter(task, members.tolist()),
            validate_every=config.every,
            sheet_every=config.sheet_every,
            report_every=self.config.loop.checkpoint_every,
            num_buckets=config.num_buckets,
            draws_everywhere=self.config.base.shard,
        )

    def _painter(self, task: AdapterTask, numbers: list[int]) -> SheetPainter | None:
        config = self.config
        if not config.validation.sheet_every or not (numbers or config.validation.references):
            return None
        faces = config.adapter.face_networks
        readable = (sample for number in numbers if (sample := self._sheet_reference(number)) is not None)
        samples = list(islice(readable, NUM_SHEET_REFERENCES))
        return SheetPainter(
            self.base.pipeline(),
            plan_sheet(config.validation, samples, size=config.data.resolution),
            image_encoder=self.encoder,
            face_encoder=None if faces is None else FaceEncoder.from_folder(faces),
            training=task.attachment,
            visitors=self.visitors,
        )

    def _sheet_reference(self, number: int) -> SheetReference | None:
        """What a sample is trained to follow, with its caption; kept features where nothing here could embed a face.
        None where it cannot be read.
        """
        followed = self.manifest.reference_ids(number, self.config.data.references)[0]
        try:
            picture = self.manifest.image(followed)
        except ImageError as error:
            logger.warning("no sheet shows a picture that cannot be read: %s", error)
            return None
        prompt = ImagePrompt(picture)
        if self.adapter.spec.features.layer == "face_embeds" and self.config.adapter.face_networks is None:
            first, rows = torch.zeros(1, dtype=torch.long), torch.tensor([followed])
            kept = {name: store.rows(first, rows)[0] for name, store in self.stores.items() if name != LATENTS}
            prompt = ImagePrompt(features=kept[FEATURES], crop_features=kept.get(CROP))
        return SheetReference(prompt, tuple(self.manifest.captions(number)[:1]), picture)


def successors(buckets: Int[Tensor, " members"]) -> Int[Tensor, " members"]:
    """For each member the next one of its bucket, after the last one the first."""
    following = torch.empty_like(buckets)
    for bucket in buckets.unique():
        places = (buckets == bucket).nonzero()[:, 0]
        following[places] = places.roll(-1)
    return following


def data_of(manifest: Manifest, config: TrainConfig) -> str:
    """Fingerprint of what a run's sequence of batches is made of: the samples, and how they are cut and paired."""
    settings = config.data.model_dump_json(exclude={"source", "num_workers", "bad_samples"})
    return hashlib.sha256(f"{manifest.hash}:{settings}".encode()).hexdigest()


def groups_of(manifest: Manifest, members: Int[Tensor, " members"]) -> Int[Tensor, " members"]:
    """A number for each group of pictures that may stand for one another; a picture in none is one of its own."""
    names = [manifest.table["group"][number].as_py() or f"\n{number}" for number in members.tolist()]
    numbers = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names], dtype=torch.long)


def save_config(config: TrainConfig) -> None:
    """Write the resolved configuration into the run's folder; `imprompt train FILE` takes it up again.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    try:
        with atomic_write(config.loop.output / CONFIG) as path:
            path.write_text(config.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise ConfigError(
            f"loop.output is '{config.loop.output}', where nothing can be written ({error.strerror}); give a folder "
            "that can be written to"
        ) from error
