"""Adapters of the embedded model: small enough to train on a processor, of pictures of one's own too."""

from imprompt.recipes.paper import RUNS
from imprompt.training.config import (
    AdapterConfig,
    AdapterKind,
    BaseModelConfig,
    DataConfig,
    DropoutConfig,
    LoopConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)

ENCODER = "imprompt emoji CLIP ViT-64/8"
SIZE = 64


def recipe(kind: AdapterKind) -> TrainConfig:
    """4,000 steps of 32 pictures, averaged weights; what ships had more, as its card says.

    No picture is mirrored: the base has seen them one way round only, and would have to be overruled in half of the
    rows. And the pooled embedding, which the global adapter reads, is nearly the same for a picture and its mirror
    image; at strong noise the best prediction would be the mean of both, a symmetrical blob.

    Min-SNR weights reach pure noise, which decides subject and palette under the base's zero terminal signal. The
    paper's learning rate of 1e-4 is for a million steps of 64; here are thousands of 32. For the same reason the text
    is dropped more often than five times in a hundred: the image alone would else be learnt from too few rows. And
    three rows of four lie in the noisier half of the schedule: in the other half a reference gains next to nothing.
    """
    return TrainConfig(
        recipe=f"emoji-{kind}",
        base=BaseModelConfig(path="emoji", dtype="float32"),
        # Depth and width of heads are those of every published resampler, which other programs take for granted.
        adapter=AdapterConfig(
            kind=kind, encoder_name=ENCODER, inner_width=64 if kind == "plus" else None, lora_rank=16
        ),
        data=DataConfig(resolution=SIZE, buckets=False, bucket_step=8, num_workers=0),
        objective=ObjectiveConfig(min_snr_gamma=5.0, snr_offset=1.0, timestep_shift=3.0),
        dropout=DropoutConfig(text=0.3),
        optimizer=OptimizerConfig(learning_rate=5e-4, betas=(0.9, 0.99), warmup_steps=100, ema_decay=0.998),
        loop=LoopConfig(
            output=RUNS / f"emoji-{kind}", num_steps=4000, batch_size=32, checkpoint_every=250, log_every=50
        ),
        validation=ValidationConfig(every=500, num_samples=128, sheet_every=1000, steps=20, guidance_scale=3.0),
    )
