"""Stages 1a and 1b: a CLIP pair for 64-pixel pictures, with a real ImageNet network as its teacher.

The vision tower gives adapters their features; the text tower is there for contrast and does not ship. Contrast with
captions alone would let the vision tower forget what adapters need, so heads that do not ship either ask more of it:
the pooled embedding must tell the teacher's features and an 8 x 8 thumbnail, and every patch token of the penultimate
layer the colours of its own patch and, four by four, the teacher's local features.

The denoiser's stage trains a text tower of its own; the vision tower may be trained on, beside a frozen text tower,
until adapters read it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from imprompt.core.errors import ImpromptError
from imprompt.emoji.styles import STYLES
from imprompt.recipes.emoji import dataset
from imprompt.recipes.emoji.augment import draw_mirrored, draw_offsets, may_mirror, mirror, normalise, shift, to_tensor
from imprompt.recipes.emoji.captions import caption_table, full_caption
from imprompt.recipes.emoji.paths import cache_folder, models_folder, stage_folder
from imprompt.recipes.emoji.stage import stage_loop, train_stage
from imprompt.recipes.emoji.teacher import TeacherTargets, teacher_targets
from imprompt.recipes.emoji.tokenizer import END, MAX_LENGTH, START, load_tokenizer
from imprompt.training.config import LoopConfig, OptimizerConfig
from imprompt.training.loop.checkpointing import load_averaged_weights
from imprompt.training.loop.order import BatchOrder
from imprompt.training.loop.task import Draw

WIDTH = 192
IMAGE_SIZE = 64
PATCH_SIZE = 8


@dataclass(frozen=True, kw_only=True)
class CLIPStageConfig:
    """Of the CLIP stage.

    Attributes:
        loop: Length, and what the run leaves.
        optimizer: Pace.
        preview_every: Steps between previews.
        vision_only: Go on from the finished first stage with its text tower frozen.
        thumbnail_weight: Of the thumbnail read off the pooled embedding.
        patch_weight: Of the colours read off the patch tokens.
        teacher_weight: Of the teacher's features, pooled and local.
        everything: Train on all emoji, not only on the things.
    """

    loop: LoopConfig
    optimizer: OptimizerConfig
    preview_every: int = 200
    vision_only: bool = False
    thumbnail_weight: float = 2.0
    patch_weight: float = 2.0
    teacher_weight: float = 1.0
    everything: bool = False


def default_config() -> CLIPStageConfig:
    """The published recipe of both towers."""
    return CLIPStageConfig(loop=_loop("clip", num_steps=1000), optimizer=_optimizer(learning_rate=1e-3))


def vision_config() -> CLIPStageConfig:
    """The published recipe of the vision tower alone, which may follow at any time before the adapters."""
    optimizer = _optimizer(learning_rate=6e-4)
    return CLIPStageConfig(loop=_loop("vision", num_steps=700), optimizer=optimizer, vision_only=True)


def _loop(name: str, num_steps: int) -> LoopConfig:
    return stage_loop(name, num_steps=num_steps, batch_size=64, checkpoint_every=100, log_every=20)


def _optimizer(learning_rate: float) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=learning_rate,
        betas=(0.9, 0.98),
        warmup_steps=100,
        schedule="cosine",
        weight_decay=0.05,
        ema_decay=0.995,
    )


def build_vision() -> CLIPVisionModelWithProjection:
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


def build_text(vocabulary_size: int, start: int, end: int) -> CLIPTextModelWithProjection:
    """The untrained text tower: three layers over at most 24 tokens."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=vocabulary_size,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            projection_dim=WIDTH,
            hidden_act="gelu",
            bos_token_id=start,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


class Heads(nn.Module):
    """What only training needs: linear readings of the vision tower, and the temperature of the contrast."""

    def __init__(self) -> None:
        """Untrained heads for the recipe's widths."""
        super().__init__()
        self.thumbnail = nn.Linear(WIDTH, 3 * 8 * 8)
        self.patch_colours = nn.Linear(WIDTH, 3 * 4 * 4)
        self.pooled_teacher = nn.Linear(WIDTH, 256)
        self.grid_teacher = nn.Linear(WIDTH, 128)
        self.log_temperature = nn.Parameter(torch.tensor(2.5))


class CLIPPair(nn.Module):
    """Both towers and the heads, trained together."""

    def __init__(self, vision: CLIPVisionModelWithProjection, text: CLIPTextModelWithProjection) -> None:
        """Join two towers of one projection width."""
        super().__init__()
        self.vision = vision
        self.text = text
        self.heads = Heads()


@dataclass(frozen=True)
class PairBatch:
    """Pictures in [-1, 1] and captions.

    Attributes:
        images: The pictures.
        token_ids: A caption of each.
        fits: Which captions are true of which pictures.
        targets: What the teacher sees in the pictures.
    """

    images: Float[Tensor, "batch 3 height width"]
    token_ids: Int[Tensor, "batch length"]
    fits: Bool[Tensor, "images captions"]
    targets: TeacherTargets


class CLIPTask:
    """Pictures beside captions; see `imprompt.training.loop.task.Task`."""

    def __init__(self, model: CLIPPair, pictures: dataset.EmojiPictures, config: CLIPStageConfig) -> None:
        """Tokenise all captions and load the teacher's targets."""
        self.model = model
        self.config = config
        self.pictures = pictures
        self.members = torch.from_numpy(pictures.split("train"))
        self.num_examples = len(self.members)
        self.order = BatchOrder(self.num_examples, config.loop.batch_size, config.loop.seed)
        self.images = to_tensor(pictures)
        self.mirrorable = may_mirror(pictures)
        self.captions = caption_table(pictures)
        self.token_ids = tokenise(self.captions.texts)
        self.targets = self._load_targets()
        self.subjects = torch.from_numpy(pictures.subject_indices)
        self.styles = torch.from_numpy(pictures.styles)
        self._weights = {
            "contrast": 1.0,
            "thumbnail": config.thumbnail_weight,
            "colours": config.patch_weight,
            "pooled": config.teacher_weight,
            "local": config.teacher_weight,
        }

    def _load_targets(self) -> TeacherTargets:
        name = "teacher-all" if self.config.everything else "teacher-things"
        return teacher_targets(self.pictures, self.members, cache_folder() / "features" / f"{name}.safetensors")

    def batch(self, draw: Draw) -> PairBatch:
        """Pictures mirrored and shifted, a caption of each, and what the teacher sees."""
        members = self.members[draw.samples]
        mirrored = draw_mirrored(self.mirrorable[members], draw.uniform("mirrored", 1)[:, 0])
        offsets = draw.per_row("offsets", lambda generator, rows: draw_offsets(rows, 3, generator))
        texts, names_style = self.captions.sample(members, draw.uniform("captions", 4))
        return PairBatch(
            images=normalise(shift(mirror(self.images[members], mirrored), offsets)),
            token_ids=self.token_ids[texts],
            fits=caption_fits(self.subjects[members], self.styles[members], names_style),
            targets=TeacherTargets(
                self.targets.pooled[draw.samples], mirror_grid(self.targets.grid[draw.samples], mirrored)
            ),
        )

    def loss(self, batch: PairBatch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Contrast with captions, thumbnail, patch colours, and the teacher's features."""
        seen = self.model.vision(batch.images, output_hidden_states=True)
        written = self.model.text(batch.token_ids).text_embeds
        figures = {
            "contrast": contrastive_loss(seen.image_embeds, written, batch.fits, self.model.heads.log_temperature),
            **self._reading_errors(seen, batch.images, batch.targets),
        }
        total = torch.stack([self._weights[name] * value for name, value in figures.items()]).sum()
        return total, {name: value.detach() for name, value in figures.items()}

    def _reading_errors(
        self, seen: Any, images: Float[Tensor, "batch 3 height width"], targets: TeacherTargets
    ) -> dict[str, Tensor]:
        """How well the heads read the pictures and the teacher's features off the vision tower."""
        heads = self.model.heads
        pooled, patches = seen.image_embeds, seen.hidden_states[-2][:, 1:]
        readings = {
            "thumbnail": (heads.thumbnail(pooled), thumbnails(images)),
            "colours": (heads.patch_colours(patches), patch_colours(images)),
            "pooled": (heads.pooled_teacher(pooled), targets.pooled),
            "local": (heads.grid_teacher(local_means(patches)), targets.grid),
        }
        return {name: functional.mse_loss(read.float(), target) for name, (read, target) in readings.items()}

    def preview(self, step: int) -> None:
        """Write retrieval figures beside the log."""
        with (self.config.loop.output / "retrieval.txt").open("a") as stream:
            stream.write(f"{step} {retrieval(self.model.vision, self.model.text, self.pictures)}\n")


def tokenise(texts: tuple[str, ...], folder: Path | None = None) -> Int[Tensor, "texts length"]:
    """Token ids, padded as the pipeline pads prompts, by the tokenizer in a folder; by default the recipe's own."""
    tokens = load_tokenizer(folder)(list(texts), padding="max_length", truncation=True, max_length=MAX_LENGTH)
    return torch.tensor(tokens.input_ids)


def caption_fits(
    subjects: Int[Tensor, " batch"], styles: Int[Tensor, " batch"], names_style: Bool[Tensor, " batch"]
) -> Bool[Tensor, "images captions"]:
    """Which captions of a batch are true of which pictures: same subject, and same style where one is named."""
    same_subject = subjects[:, None] == subjects[None, :]
    same_style = styles[:, None] == styles[None, :]
    return same_subject & (same_style | ~names_style[None, :])


def contrastive_loss(
    image_embeds: Float[Tensor, "batch width"],
    text_embeds: Float[Tensor, "batch width"],
    fits: Bool[Tensor, "images captions"],
    log_temperature: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy whose target is spread evenly over all fitting partners."""
    images = functional.normalize(image_embeds.float(), dim=-1)
    texts = functional.normalize(text_embeds.float(), dim=-1)
    logits = images @ texts.T * log_temperature.clamp(max=4.6).exp()
    targets = fits.float()
    by_image = functional.cross_entropy(logits, targets / targets.sum(1, keepdim=True))
    by_text = functional.cross_entropy(logits.T, (targets / targets.sum(0, keepdim=True)).T)
    return (by_image + by_text) / 2


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
def retrieval(
    vision: CLIPVisionModelWithProjection, text: CLIPTextModelWithProjection, pictures: dataset.EmojiPictures
) -> dict[str, float]:
    """Top-1 figures on held-out pairs: the full caption among all subjects in that style, and the subject's style."""
    members = pictures.split("held_out_pair")
    images = normalise(to_tensor(pictures)[members]).to(vision.device)
    embeds = functional.normalize(torch.cat([vision(part).image_embeds for part in images.split(64)]), dim=-1)
    texts = tuple(full_caption(subject, style) for style in STYLES for subject in pictures.subjects)
    token_ids = tokenise(texts).to(text.device)
    written = functional.normalize(torch.cat([text(part).text_embeds for part in token_ids.split(256)]), dim=-1)
    table = (embeds @ written.T).cpu().unflatten(1, (len(STYLES), len(pictures.subjects)))
    styles = torch.from_numpy(pictures.styles)[members]
    subjects = torch.from_numpy(pictures.subject_indices)[members]
    rows = torch.arange(len(members))
    return {
        "subject_top1": float((table[rows, styles].argmax(1) == subjects).float().mean()),
        "subject_top5": float((table[rows, styles].topk(5).indices == subjects[:, None]).any(1).float().mean()),
        "style_top1": float((table[rows, :, subjects].argmax(1) == styles).float().mean()),
    }


def run(config: CLIPStageConfig) -> Path:
    """Train both towers and hand on the vision tower's averaged weights in transformers' layout.

    Returns:
        Folder with `image_encoder` and `feature_extractor`.
    """
    torch.manual_seed(config.loop.seed)
    pictures = dataset.load(everything=config.everything)
    vocabulary = load_tokenizer().get_vocab()
    pair = CLIPPair(build_vision(), build_text(len(vocabulary), vocabulary[START], vocabulary[END]))
    if config.vision_only:
        _continue_from_first_stage(pair)
    train_stage(CLIPTask(pair, pictures, config), config)
    return export(pair, config)


def _continue_from_first_stage(pair: CLIPPair) -> None:
    weights = load_averaged_weights(stage_folder("clip"))
    if weights is None:
        raise ImpromptError("the vision tower goes on from the stage 'clip', which has no checkpoint; train it first")
    pair.load_state_dict(weights)
    pair.text.requires_grad_(False)


def export(pair: CLIPPair, config: CLIPStageConfig) -> Path:
    """Write the vision tower where the later stages look for it."""
    weights = load_averaged_weights(config.loop.output)
    if weights is not None:
        pair.load_state_dict(weights)
    target = models_folder()
    pair.vision.save_pretrained(target / "image_encoder")
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
