"""What a training run is, in one typed, complete value: unknown keys are refused, and every checkpoint carries it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from imprompt.training.loop.schedule import Schedule

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]

AdapterKind = Literal["global", "plus", "full", "faceid", "faceid-plus"]
Device = str
"""What torch calls a device, or "auto": the accelerator if there is one."""


class Part(BaseModel):
    """A group of settings: cannot be changed, knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())


class BaseModelConfig(Part):
    """The frozen denoiser and what stands around it.

    Attributes:
        path: Folder in diffusers' layout, hub repository, or "emoji", the embedded model.
        revision: Of the repository.
        variant: Of its files, such as "fp16".
        dtype: Number format of the frozen weights; they are loaded in it, so that no second copy is made.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, a third more time.
        compile: Compile the denoiser's blocks.
        shard: Split the frozen weights over the processes (FSDP2), for a base that does not fit one device.
    """

    path: str = "emoji"
    revision: str | None = None
    variant: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    gradient_checkpointing: bool = False
    compile: bool = False
    shard: bool = False


class AdapterConfig(Part):
    """What is trained.

    Attributes:
        kind: Which projector, and of which features.
        num_tokens: Image tokens a picture; None takes the variant's own number.
        image_encoder: Folder or hub repository of the frozen image encoder; None takes the base's own, or the one the
            published adapter of this kind and base was trained with.
        encoder_name: What messages call that encoder; None takes the name under which it is published.
        face_networks: Folder of the face networks that FaceID adapters read; nothing is downloaded.
        initial: An adapter that `load_adapter` reads, to go on from; None begins a new one whose keys and values are
            copies of the text's where the family has them.
        inner_width: Width inside the resampler of a "plus"; None takes the tokens' own, at most 1280 as published.
        lora_rank: Of the change that a FaceID adapter makes to a UNet's attentions; 0 makes none.
        name: Name of the adapter; None makes one of kind and recipe.
    """

    kind: AdapterKind = "global"
    num_tokens: Count | None = None
    image_encoder: str | None = None
    encoder_name: str | None = None
    face_networks: Path | None = None
    initial: str | None = None
    inner_width: Count | None = None
    lora_rank: Annotated[int, Field(ge=0)] = 128
    name: str | None = None


class DataConfig(Part):
    """Which pictures, and what each is followed from.

    Attributes:
        source: A manifest (parquet), or anything that one is made of: folder, tars, JSON, parquet, datasets folder.
        resolution: Side in pixels of the area that every bucket has.
        buckets: Plan aspect buckets; False crops every picture to the square.
        bucket_step: Sides of buckets are multiples of so many pixels.
        max_aspect: Longest side over the shortest.
        references: "self": the picture itself; "group": another picture of its group; "explicit": those it names.
        num_references: References a target.
        num_views: Views a sample that latents are kept of: the picture, its mirror image, shifted crops of both.
        mirror: Whether views may be mirrored.
        reference_crop: Least part of a reference that its own random crop keeps; 1 takes references whole.
        bad_samples: Fraction of samples that may be unreadable before the run fails; they are listed in quarantine.
        num_workers: Processes that read ahead.
        prompt_template: What becomes of a caption, such as "{caption}".
    """

    source: Path | None = None
    resolution: Count = 512
    buckets: bool = True
    bucket_step: Count = 64
    max_aspect: Annotated[float, Field(ge=1)] = 2.0
    references: Literal["self", "group", "explicit"] = "self"
    num_references: Count = 1
    num_views: Count = 1
    mirror: bool = False
    reference_crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    bad_samples: Fraction = 0.01
    num_workers: Annotated[int, Field(ge=0)] = 2
    prompt_template: str = "{caption}"


class FeaturesConfig(Part):
    """What is computed once and what at every step.

    Attributes:
        folder: Where features are kept; None uses `features/` beside the manifest.
        latents: "cached" or "online".
        references: Features of references; "online" keeps their augmentation.
        hidden_states: Number format in which sequences of hidden states are kept.
        text: Text states; online costs below 1 % of a step and spares terabytes.
    """

    folder: Path | None = None
    latents: Literal["cached", "online"] = "cached"
    references: Literal["cached", "online"] = "cached"
    hidden_states: Literal["int8", "float16"] = "int8"
    text: Literal["online", "cached"] = "online"


class ObjectiveConfig(Part):
    """What is minimised; what the base predicts is read from its scheduler.

    Attributes:
        min_snr_gamma: Where min-SNR weights (arXiv 2303.09556) stop growing; None counts every timestep alike.
        snr_offset: Added to the signal-to-noise ratio first; 1 also trains pure noise under zero terminal SNR.
        noise_offset: Deviation of one number a channel added to the noise.
        timesteps: How they are drawn; "logit_normal" and "mode" are those of Stable Diffusion 3, "sigmoid" is
            "logit_normal" with mean 0 and deviation 1.
        logit_mean: Mean of the normal number whose sigmoid "logit_normal" draws.
        logit_deviation: Its deviation.
        mode_scale: Of "mode".
        weighting: What errors of a flow count by noise level: SD3's "sigma_sqrt" or "cosmap"; "none" counts all alike.
        timestep_shift: Above 1, more timesteps of strong noise: places t become s t / (1 + (s - 1) t). None takes the
            scheduler's own of flow matching, and 1 of diffusion.
        guidance: What a guidance-distilled base is told in training.
    """

    min_snr_gamma: Annotated[float, Field(gt=0)] | None = None
    snr_offset: Annotated[float, Field(ge=0)] = 0.0
    noise_offset: Annotated[float, Field(ge=0)] = 0.0
    timesteps: Literal["uniform", "logit_normal", "mode", "sigmoid"] = "uniform"
    logit_mean: float = 0.0
    logit_deviation: Annotated[float, Field(gt=0)] = 1.0
    mode_scale: Annotated[float, Field(ge=-1, le=1.75)] = 1.29
    weighting: Literal["none", "sigma_sqrt", "cosmap"] = "none"
    timestep_shift: Annotated[float, Field(gt=0)] | None = None
    guidance: float = 1.0


class DropoutConfig(Part):
    """How often conditions are dropped; the published recipe drops each way five times in a hundred.

    Attributes:
        image: Only the image.
        text: Only the text.
        both: Both.
    """

    image: Fraction = 0.05
    text: Fraction = 0.05
    both: Fraction = 0.05

    @model_validator(mode="after")
    def _sums_to_at_most_one(self) -> "DropoutConfig":
        if self.image + self.text + self.both > 1:
            raise ValueError(f"image, text and both sum to {self.image + self.text + self.both:g}; expected at most 1")
        return self


class OptimizerConfig(Part):
    """How weights move.

    Attributes:
        name: "adamw", or "adamw8bit" (bitsandbytes, on an accelerator).
        learning_rate: Its peak.
        betas: Of Adam.
        weight_decay: On matrices and kernels; vectors are spared.
        warmup_steps: Steps of the linear rise.
        schedule: What follows the rise.
        max_gradient_norm: Gradients are clipped to this norm.
        ema_decay: Of the averaged weights, which are what a run hands on; 0 keeps no average.
    """

    name: Literal["adamw", "adamw8bit"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Schedule = "constant"
    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0
    ema_decay: Fraction = 0.0


class LoopConfig(Part):
    """How long a run is and what it leaves.

    Attributes:
        output: Run folder: `checkpoints/`, `log.jsonl`, `sheets/`, `report.html`.
        num_steps: Steps of the whole run.
        batch_size: Samples a step over all processes: what the result depends on.
        micro_batch_size: Samples that one device takes at a time: what memory depends on. None takes its whole share.
        seed: Decides data order, noise, timesteps, dropout and views.
        device: Where to train.
        autocast: Number format of the trained part's arithmetic; "auto" is bfloat16 where the device computes in it.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: How many of the newest stay.
        log_every: Steps between log lines.
        minutes: Time after which this call stops at a checkpoint; None trains to the end.
        trackers: Besides `log.jsonl`: "tensorboard", "wandb", "trackio".
    """

    output: Path
    num_steps: Count = 100_000
    batch_size: Count = 64
    micro_batch_size: Count | None = None
    seed: int = 0
    device: Device = "auto"
    autocast: Literal["auto", "no", "bfloat16", "float16"] = "auto"
    checkpoint_every: Count = 1000
    keep_checkpoints: Count = 3
    log_every: Count = 10
    minutes: Annotated[float, Field(gt=0)] | None = None
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)


class ValidationConfig(Part):
    """Feedback that the training loss does not give.

    Attributes:
        every: Steps between validations; 0 never validates.
        num_samples: Rows of the fixed validation; where fewer samples are held out, each has several, with other noise.
        num_buckets: Equal parts of the schedule that its loss is told for.
        sheet_every: Steps between contact sheets; 0 draws none.
        prompts: Texts of the sheet, beside the image alone; none takes captions of validation samples.
        references: Pictures of the sheet; none takes validation samples.
        scales: Weights of the image prompt, one column each.
        steps: Denoising steps of the sheet's pictures.
        guidance_scale: Of the sheet's pictures.
    """

    every: Annotated[int, Field(ge=0)] = 1000
    num_samples: Count = 256
    num_buckets: Count = 8
    sheet_every: Annotated[int, Field(ge=0)] = 1000
    prompts: tuple[str, ...] = ()
    references: tuple[Path, ...] = ()
    scales: tuple[float, ...] = (0.0, 0.5, 1.0)
    steps: Count = 30
    guidance_scale: Annotated[float, Field(ge=0)] = 7.5


class TrainConfig(Part):
    """A whole run. Recipes return one; `key=value` arguments change single fields of it by their dotted names."""

    recipe: str
    base: BaseModelConfig = BaseModelConfig()
    adapter: AdapterConfig = AdapterConfig()
    data: DataConfig = DataConfig()
    features: FeaturesConfig = FeaturesConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    dropout: DropoutConfig = DropoutConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig
    validation: ValidationConfig = ValidationConfig()
