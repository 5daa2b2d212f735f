"""Stage 1: the vision tower, in CLIP's form, for 64-pixel pictures, with a real ImageNet network as its teacher.

Contrast with captions, as CLIP's, asks of some thousands of pictures little more than palette and outline: the pooled
embedding falls into a few directions. So the captions' part is played by the subject and the style as classes, and the
teacher asks for the rest: from the pooled embedding its features of the whole picture, told apart from those of the
other pictures of the batch, and a thumbnail; from every patch token of the penultimate layer, which "plus" adapters
read, the colours of its own patch and, four by four, the teacher's local features. What reads all this off the tower
are linear heads, which do not ship.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from imprompt.emoji.styles import STYLES
from imprompt.recipes.emoji import dataset
from imprompt.recipes.emoji.augment import draw_mirrored, draw_offsets, may_mirror, mirror, normalise, shift, to_tensor
from imprompt.recipes.emoji.paths import cache_folder, models_folder
from imprompt.recipes.emoji.stage import stage_loop, train_stage
from imprompt.recipes.emoji.teacher import TeacherTargets, teacher_targets
from imprompt.training.config import LoopConfig, OptimizerConfig
from imprompt.training.loop.checkpointing import load_averaged_weights
from imprompt.training.loop.order import BatchOrder
from imprompt.training.loop.task import Draw

WIDTH = 192
IMAGE_SIZE = 64
PATCH_SIZE = 8
CONTRAST_SCALE = 12.0
"""Of the cosines between what the tower and what the teacher sees; the inverse of a temperature."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Of the vision stage.

    Attributes:
        loop: Length, and what the run leaves.
        optimizer: Pace.
        preview_every: Steps between retrieval figures.
        contrast_weight: Of telling the teacher's features of a picture from those of the batch's others.
        class_weight: Of the subject's class, and of the style's.
        thumbnail_weight: Of the thumbnail read off the pooled embedding.
        patch_weight: Of the colours read off the patch tokens.
        teacher_weight: Of the teacher's features, pooled and local.
        everything: Train on all emoji, not only on the things.
    """

    loop: LoopConfig
    optimizer: OptimizerConfig
    preview_every: int = 500
    contrast_weight: float = 1.0
    class_weight: float = 0.3
    thumbnail_weight: float = 2.0
    patch_weight: float = 2.0
    teacher_weight: float = 1.0
    everything: bool = False


def default_config() -> VisionConfig:
    """The published recipe."""
    return VisionConfig(
        loop=stage_loop("vision", num_steps=3000, batch_size=64, checkpoint_every=250),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            betas=(0.9, 0.98),
            warmup_steps=100,
            schedule="cosine",
            weight_decay=0.05,
            ema_decay=0.995,
        ),
    )


def build() -> CLIPVisionModelWithProjection:
    """The untrained vision tower: 64 patches of 8 x 8 pixels and a class token, four layers."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            projection_dim=WIDTH,
            hidden_act="gelu",
        )
    )


class Pupil(nn.Module):
    """The vision tower and the linear heads that only training needs."""

    def __init__(self, vision: CLIPVisionModelWithProjection, num_subjects: int) -> None:
        """Untrained heads for the tower's widths."""
        super().__init__()
        self.vision = vision
        self.heads = nn.ModuleDict(
            {
                "contrast": nn.Linear(WIDTH, 256),
                "subject": nn.Linear(WIDTH, num_subjects),
                "style": nn.Linear(WIDTH, len(STYLES)),
                "thumbnail": nn.Linear(WIDTH, 3 * 8 * 8),
                "colours": nn.Linear(WIDTH, 3 * 4 * 4),
                "pooled": nn.Linear(WIDTH, 256),
                "local": nn.Linear(WIDTH, 128),
            }
        )


@dataclass(frozen=True)
class SeenBatch:
    """Pictures in [-1, 1] and what is to be seen in them.

    Attributes:
        images: The pictures.
        subjects: Their subjects.
        styles: Their styles.
        targets: What the teacher sees.
    """

    images: Float[Tensor, "batch 3 height width"]
    subjects: Int[Tensor, " batch"]
    styles: Int[Tensor, " batch"]
    targets: TeacherTargets


class VisionTask:
    """Pictures and what there is to see in them; see `imprompt.training.loop.task.Task`."""

    def __init__(self, model: Pupil, pictures: dataset.EmojiPictures, config: VisionConfig) -> None:
        """Load the teacher's targets."""
        self.model = model
        self.config = config
        self.pictures = pictures
        self.members = torch.from_numpy(pictures.split("train"))
        self.num_examples = len(self.members)
        self.order = BatchOrder(self.num_examples, config.loop.batch_size, config.loop.seed)
        self.images = to_tensor(pictures)
        self.mirrorable = may_mirror(pictures)
        self.targets = self._load_targets()
        self.subjects = torch.from_numpy(pictures.subject_indices)
        self.styles = torch.from_numpy(pictures.styles)
        self._weights = {
            "contrast": config.contrast_weight,
            "subject": config.class_weight,
            "style": config.class_weight,
            "thumbnail": config.thumbnail_weight,
            "colours": config.patch_weight,
            "pooled": config.teacher_weight,
            "local": config.teacher_weight,
        }

    def _load_targets(self) -> TeacherTargets:
        name = "teacher-all" if self.config.everything else "teacher-things"
        targets = teacher_targets(self.pictures, self.members, cache_folder() / "features" / f"{name}.safetensors")
        return TeacherTargets(levelled(targets.pooled), targets.grid)

    def batch(self, draw: Draw) -> SeenBatch:
        """Pictures mirrored and shifted, and what the teacher sees."""
        members = self.members[draw.samples]
        mirrored = draw_mirrored(self.mirrorable[members], draw.uniform("mirrored", 1)[:, 0])
        offsets = draw.per_row("offsets", lambda generator, rows: draw_offsets(rows, 3, generator))
        pooled, grid = self.targets.pooled[draw.samples], self.targets.grid[draw.samples]
        return SeenBatch(
            images=normalise(shift(mirror(self.images[members], mirrored), offsets)),
            subjects=self.subjects[members],
            styles=self.styles[members],
            targets=TeacherTargets(pooled, mirror_grid(grid, mirrored)),
        )

    def loss(self, batch: SeenBatch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Classes, contrast with the teacher, and how well everything else can be read off the tower."""
        seen = self.model.vision(batch.images, output_hidden_states=True)
        pooled, patches = seen.image_embeds, seen.hidden_states[-2][:, 1:]
        heads = self.model.heads
        classes = {"subject": batch.subjects, "style": batch.styles}
        readings = {
            "thumbnail": (pooled, thumbnails(batch.images)),
            "colours": (patches, patch_colours(batch.images)),
            "pooled": (pooled, batch.targets.pooled),
            "local": (local_means(patches), batch.targets.grid),
        }
        figures = {"contrast": contrastive_loss(heads["contrast"](pooled), batch.targets.pooled)}
        for name, target in classes.items():
            figures[name] = functional.cross_entropy(heads[name](pooled).float(), target, label_smoothing=0.1)
        for name, (features, target) in readings.items():
            figures[name] = functional.mse_loss(heads[name](features).float(), target)
        total = torch.stack([self._weights[name] * value for name, value in figures.items()]).sum()
        return total, {name: value.detach() for name, value in figures.items()}

    def preview(self, step: int) -> None:
        """Write retrieval figures beside the log."""
        with (self.config.loop.output / "retrieval.txt").open("a") as stream:
            stream.write(f"{step} {retrieval(self.model.vision, self.pictures)}\n")


def contrastive_loss(seen: Float[Tensor, "batch width"], taught: Float[Tensor, "batch width"]) -> Float[Tensor, ""]:
    """Symmetric cross-entropy of finding the partner of the same row by cosine."""
    seen, taught = functional.normalize(seen.float(), dim=-1), functional.normalize(taught.float(), dim=-1)
    logits = CONTRAST_SCALE * seen @ taught.T
    rows = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, rows) + functional.cross_entropy(logits.T, rows)) / 2


def levelled(components: Float[Tensor, "pictures width"]) -> Float[Tensor, "pictures width"]:
    """Principal components divided by the root of their deviation, so that the later ones count; unit mean square."""
    flatter = components / components.std(dim=0).clamp(min=1e-3).sqrt()
    return flatter / flatter.square().mean().sqrt()


def thumbnails(images: Float[Tensor, "batch 3 64 64"]) -> Float[Tensor, "batch 192"]:
    """Mean colours of 8 x 8 cells."""
    return functional.avg_pool2d(images, 8).flatten(1)


def patch_colours(images: Float[Tensor, "batch 3 64 64"]) -> Float[Tensor, "batch 64 48"]:
    """Mean colours of the 4 x 4 cells of every patch, patches row by row."""
    cells = functional.avg_pool2d(images, 2)
    return functional.unfold(cells, kernel_size=4, stride=4).transpose(1, 2)


def local_means(patches: Float[Tensor, "batch 64 width"]) -> Float[Tensor, "batch 16 width"]:
    """Patch tokens averaged two by two, to the teacher's grid of 4 x 4."""
    grid = patches.transpose(1, 2).unflatten(2, (8, 8))
    return functional.avg_pool2d(grid, 2).flatten(2).transpose(1, 2)


def mirror_grid(
    grid: Float[Tensor, "batch 16 width"], mirrored: Bool[Tensor, " batch"]
) -> Float[Tensor, "batch 16 width"]:
    """The teacher's grid as it lies in the mirrored picture."""
    turned = grid.unflatten(1, (4, 4)).flip(2).flatten(1, 2)
    return torch.where(mirrored[:, None, None], turned, grid)


@torch.no_grad()
def retrieval(vision: CLIPVisionModelWithProjection, pictures: dataset.EmojiPictures) -> dict[str, float]:
    """Figures of `neighbours` on pictures of held-out subjects."""
    members = torch.from_numpy(pictures.split("held_out_subject"))
    images = normalise(to_tensor(pictures)[members]).to(vision.device)
    embeds = torch.cat([vision(part).image_embeds for part in images.split(64)]).float().cpu()
    labels = {"subject": pictures.subject_indices, "style": pictures.styles}
    return neighbours(embeds, {name: torch.from_numpy(label)[members] for name, label in labels.items()})


def neighbours(
    embeds: Float[Tensor, "pictures width"], labels: Mapping[str, Int[Tensor, " pictures"]]
) -> dict[str, float]:
    """How well embeddings find their like.

    Returns:
        For every kind of label the share of pictures whose nearest neighbour (cosine, centred) has the same one, and
        `dimensions`, the participation ratio of the embeddings' variances: 1 where all lie on a line.
    """
    centred = embeds - embeds.mean(dim=0)
    unit = functional.normalize(centred, dim=-1)
    nearest = (unit @ unit.T).fill_diagonal_(-2.0).argmax(dim=1)
    shares = {name: float((label[nearest] == label).float().mean()) for name, label in labels.items()}
    variances = torch.linalg.svdvals(centred).square()
    return {**shares, "dimensions": float(variances.sum().square() / variances.square().sum())}


def run(config: VisionConfig) -> Path:
    """Train the vision tower and hand on its averaged weights in transformers' layout.

    A tower that the models hold already, such as a restored one, is where training begins.

    Returns:
        Folder with `image_encoder` and `feature_extractor`.
    """
    torch.manual_seed(config.loop.seed)
    pictures = dataset.load(everything=config.everything)
    target = models_folder()
    finished = target / "image_encoder"
    vision: Any = CLIPVisionModelWithProjection.from_pretrained(finished) if finished.exists() else build()
    pupil = Pupil(vision, len(pictures.subjects))
    train_stage(VisionTask(pupil, pictures, config), config)
    weights = load_averaged_weights(config.loop.output)
    if weights is not None:
        pupil.load_state_dict(weights)
    pupil.vision.eval().save_pretrained(finished)
    image_processor().save_pretrained(target / "feature_extractor")
    return target


def image_processor() -> CLIPImageProcessorPil:
    """Preprocessing of the vision tower: 64 pixels, centre crop, values in [-1, 1]."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
