"""Which features a run reads, what computes them, and opening them; what is missing is computed first."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imprompt.adapter.spec import AdapterSpec
from imprompt.core.errors import EncoderMismatch
from imprompt.core.weights import resolve_folder
from imprompt.encoders.vision import FILES
from imprompt.generation.pipelines import is_embedded
from imprompt.training.config import TrainConfig
from imprompt.training.data.manifest import Manifest
from imprompt.training.features.compute import compute_features
from imprompt.training.features.jobs import FeatureJob, default_root, plan_store
from imprompt.training.features.latents import LatentsJob
from imprompt.training.features.pictures import FaceJob, PictureJob
from imprompt.training.features.store import FeatureStore, feature_folder
from imprompt.training.features.work import ComputeOptions
from imprompt.training.inputs import CROP, FEATURES

LATENTS = "latents"


def jobs_of(config: TrainConfig, spec: AdapterSpec) -> dict[str, FeatureJob]:
    """What is to be computed once for a run, by the name under which it is read.

    Args:
        config: Of the run; features that are "online" have no job.
        spec: The adapter.

    Raises:
        DownloadError: The base or an encoder is neither here nor reachable.
    """
    jobs: dict[str, FeatureJob] = {}
    if config.features.latents == "cached":
        jobs[LATENTS] = LatentsJob(
            folder=base_part(config, "vae"),
            data=config.data,
            variant=config.base.variant,
            dtype=config.base.dtype,
        )
    if spec.features.layer == "face_embeds":  # also "online": what finds faces is no network that trains along
        jobs[FEATURES] = FaceJob(width=spec.features.width, faces=config.adapter.face_networks)
        if spec.face_crop is not None:
            jobs[CROP] = _picture_job(config, spec.face_crop, faces=config.adapter.face_networks)
    elif config.features.references == "cached":
        jobs[FEATURES] = _picture_job(config, spec.features)
    return jobs


def open_stores(
    config: TrainConfig, manifest: Manifest, jobs: Mapping[str, FeatureJob], *, compute: bool
) -> dict[str, FeatureStore]:
    """Stores of a run's features.

    Args:
        config: Of the run.
        manifest: Of its samples.
        jobs: What `jobs_of` gave.
        compute: Compute what is missing; in a run of several processes one does, and the others open afterwards.

    Raises:
        DataError: More samples cannot be read than may be.
    """
    root = config.features.folder or default_root(manifest)
    options = ComputeOptions(device=config.loop.device, bad_samples=config.data.bad_samples)
    found: dict[str, FeatureStore] = {}
    for name, job in jobs.items():
        if compute:
            compute_features(manifest, job, root, options=options)
        found[name] = FeatureStore.open(store_folder(manifest, job, root))
    return found


def store_folder(manifest: Manifest, job: FeatureJob, root: Path) -> Path:
    """Where a job's features are."""
    return feature_folder(root, job.kind, plan_store(manifest, job).fingerprint)


def base_part(config: TrainConfig, name: str) -> Path:
    """Folder of a part of the base."""
    if is_embedded(config.base.path):
        from imprompt.emoji.bundle import bundle_folder

        return bundle_folder() / name
    return resolve_folder(config.base.path, subfolder=name, revision=config.base.revision)


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


def _picture_job(config: TrainConfig, features: Any, faces: Path | None = None) -> PictureJob:
    is_sequence = features.layer == "hidden_states"
    return PictureJob(
        kind=features.layer,
        folder=encoder_folder(config),
        index=-2 if features.index is None else features.index,
        dtype=config.base.dtype,
        storage=config.features.hidden_states if is_sequence else "float16",
        mirror=config.data.mirror,
        faces=faces,
    )
