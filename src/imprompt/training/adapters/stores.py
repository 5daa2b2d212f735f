"""Which features a run reads, what computes them, and opening them; what is missing is computed first."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprompt.adapter.checkpoint import load_adapter
from imprompt.core.errors import EncoderMismatch
from imprompt.core.weights import resolve_folder
from imprompt.encoders.vision import FILES
from imprompt.generation.pipelines import is_embedded
from imprompt.training.adapters.initial import FACE_WIDTH, LAYER, VARIANTS
from imprompt.training.adapters.inputs import CROP, FEATURES
from imprompt.training.config import AdapterConfig, TrainConfig
from imprompt.training.data.manifest import Manifest, open_manifest
from imprompt.training.features.compute import compute_features
from imprompt.training.features.jobs import FeatureJob, default_root, plan_store
from imprompt.training.features.latents import LatentsJob
from imprompt.training.features.pictures import FaceJob, PictureJob
from imprompt.training.features.store import FeatureStore, find_store
from imprompt.training.features.texts import TextJob
from imprompt.training.features.work import ComputeOptions
from imprompt.training.loop.distributed import Processes
from imprompt.training.loop.meter import feature_bar
from imprompt.training.overrides import ConfigError

LATENTS, TEXT = "latents", "text"
MANIFEST = "manifest.parquet"

# What an autoencoder or an image encoder in a base's folder is made of.
PART_FILES = ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json")
TEXT_FILES = ("model_index.json", "scheduler/*", "text_encoder*/*.json", "text_encoder*/*.safetensors", "tokenizer*/*")


@dataclass(frozen=True)
class Reading:
    """What an adapter reads of a reference, as far as it decides which features are computed.

    Attributes:
        layer: Of the image encoder, or "face_embeds".
        index: Which hidden state.
        width: Of a face embedding.
        normalised: Whether that has unit length.
        crop_index: Which hidden state of the aligned face is read beside the embedding; None if it is not.
    """

    layer: Any
    index: int = LAYER
    width: int = FACE_WIDTH
    normalised: bool = True
    crop_index: int | None = None


def reading_of(config: AdapterConfig) -> Reading:
    """What an adapter will read, told before its base is loaded.

    Raises:
        CheckpointError: The adapter to go on from cannot be read.
    """
    if config.initial is None:
        crop_index = LAYER if config.kind == "faceid-plus" else None
        return Reading(VARIANTS[config.kind].features, crop_index=crop_index)
    spec = load_adapter(config.initial).spec
    features, crop = spec.features, spec.face_crop
    return Reading(
        layer=features.layer,
        index=LAYER if features.index is None else features.index,
        width=features.width,
        normalised=features.normalised,
        crop_index=None if crop is None else LAYER if crop.index is None else crop.index,
    )


def jobs_of(config: TrainConfig) -> dict[str, FeatureJob]:
    """What is to be computed once for a run, by the name under which it is read; no model is loaded.

    Args:
        config: Of the run; features that are "online" have no job.

    Raises:
        DownloadError: The base or an encoder is neither here nor reachable.
        EncoderMismatch: There is no image encoder.
    """
    reading = reading_of(config.adapter)
    jobs: dict[str, FeatureJob] = {}
    if config.features.latents == "cached":
        jobs[LATENTS] = LatentsJob(
            folder=base_part(config, "vae"),
            data=config.data,
            variant=config.base.variant,
            dtype=config.base.dtype,
        )
    if config.features.text == "cached":
        jobs[TEXT] = TextJob(
            folder=base_folder(config),
            template=config.data.prompt_template,
            variant=config.base.variant,
            dtype=config.base.dtype,
        )
    if reading.layer == "face_embeds":  # also "online": what finds faces is no network that trains along
        faces = config.adapter.face_networks
        jobs[FEATURES] = FaceJob(width=reading.width, faces=faces, normalised=reading.normalised)
        if reading.crop_index is not None:
            jobs[CROP] = _picture_job(config, "hidden_states", reading.crop_index, faces=faces)
    elif config.features.references == "cached":
        jobs[FEATURES] = _picture_job(config, reading.layer, reading.index)
    return jobs


def compute_missing(
    config: TrainConfig, manifest: Manifest, jobs: Mapping[str, FeatureJob], processes: Processes
) -> None:
    """Compute this process's share of the features that are not there yet, with a progress bar in the main one.

    Args:
        config: Of the run.
        manifest: Of its samples.
        jobs: What `jobs_of` gave.
        processes: Who shares.

    Raises:
        DataError: More samples cannot be read than may be.
    """
    options = ComputeOptions(device=str(processes.device), bad_samples=config.data.bad_samples)
    for job in jobs.values():
        with feature_bar(job.kind, is_shown=processes.is_main) as on_progress:
            compute_features(
                manifest,
                job,
                feature_root(config, manifest),
                split=(processes.index, processes.count),
                options=options,
                on_progress=on_progress,
            )


def open_stores(config: TrainConfig, manifest: Manifest, jobs: Mapping[str, FeatureJob]) -> dict[str, FeatureStore]:
    """Stores of a run's features, once they are computed.

    Args:
        config: Of the run.
        manifest: Of its samples.
        jobs: What `jobs_of` gave.

    Raises:
        StaleFeatures: They are not there, or are those of other settings.
    """
    root = feature_root(config, manifest)
    found: dict[str, FeatureStore] = {}
    for name, job in jobs.items():
        wanted = plan_store(manifest, job).fingerprint
        found[name] = find_store(root, job.kind, wanted, f"imprompt features {config.recipe} and the run's settings")
    return found


def feature_root(config: TrainConfig, manifest: Manifest) -> Path:
    """Where all features of a run are: where it says, or beside the manifest."""
    return config.features.folder or default_root(manifest)


def manifest_of(config: TrainConfig) -> Manifest:
    """The samples of a run: the manifest that is named, or one in its folder that is made of what is named.

    Raises:
        ConfigError: Nothing is named.
        DataError: It cannot be read.
    """
    if config.data.source is None:
        raise ConfigError("no pictures are named; give data.source=FOLDER (or tars, parquet, JSON, a manifest)")
    return open_manifest(config.data.source, config.loop.output / MANIFEST, bad_samples=config.data.bad_samples)


def base_folder(config: TrainConfig) -> Path:
    """Folder of what the base makes texts of; of a hub repository, only that is fetched."""
    if is_embedded(config.base.path):
        from imprompt.emoji.bundle import bundle_folder

        return bundle_folder()
    return resolve_folder(config.base.path, revision=config.base.revision, patterns=TEXT_FILES)


def base_part(config: TrainConfig, name: str) -> Path:
    """Folder of a part of the base."""
    if is_embedded(config.base.path):
        return base_folder(config) / name
    return resolve_folder(config.base.path, subfolder=name, revision=config.base.revision, patterns=PART_FILES)


def encoder_folder(config: TrainConfig) -> Path:
    """Folder of the image encoder: the one that is named, else the base's own.

    Raises:
        EncoderMismatch: There is neither.
    """
    if config.adapter.image_encoder is not None:
        return resolve_folder(config.adapter.image_encoder, patterns=FILES)
    folder = base_part(config, "image_encoder")
    if not (folder / "config.json").is_file():
        raise EncoderMismatch(
            f"the base '{config.base.path}' has no image encoder of its own; name one, as "
            "adapter.image_encoder=h94/IP-Adapter:models/image_encoder"
        )
    return folder


def _picture_job(config: TrainConfig, layer: Any, index: int, faces: Path | None = None) -> PictureJob:
    return PictureJob(
        kind=layer,
        folder=encoder_folder(config),
        index=index,
        dtype=config.base.dtype,
        storage=config.features.hidden_states if layer == "hidden_states" else "float16",
        mirror=config.data.mirror and config.data.num_views > 1,
        faces=faces,
    )
