"""The frozen networks that judge pictures. None of them should be the adapter's own encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from imprompt.core.errors import FaceError
from imprompt.core.images import fit_square, load_image
from imprompt.core.weights import resolve_folder
from imprompt.encoders.base import ImageEncoder
from imprompt.encoders.cache import CachedEncoder, FeatureCache
from imprompt.encoders.face import FaceEncoder
from imprompt.encoders.preprocess import BICUBIC, IMAGENET_MEAN, IMAGENET_STD, Preprocessing, prepare_pixels
from imprompt.encoders.vision import FILES, VisionEncoder, half_config
from imprompt.evaluation.errors import EvaluationError
from imprompt.evaluation.mobilenet import JUDGE_SIZE, PACKAGE, feature_maps

ADDRESSES: dict[str, str] = {
    "clip": "openai/clip-vit-large-patch14",
    "dino": "facebook/dino-vits16",
    "dinov2": "facebook/dinov2-small",
}
"""What judges where the caller names no other; faces and CSD have no default, for their licences are the caller's."""

SLOTS = (*ADDRESSES, "face", "mobilenet")
_BATCH = 32


class Judge(Protocol):
    """Pictures in, features out."""

    def pooled(self, paths: Sequence[Path]) -> Tensor:
        """One vector a picture, float32 on the CPU."""
        ...

    def patches(self, paths: Sequence[Path]) -> Tensor:
        """A sequence of patch features a picture."""
        ...

    def describe(self) -> dict[str, Any]:
        """Name, fingerprint and preprocessing, for the record."""
        ...


@dataclass
class VisionJudge:
    """A vision tower of any kind that imprompt knows; features of a picture are computed once.

    Attributes:
        encoder: the tower.
        texts: the text tower of the same space, where there is one.
    """

    encoder: ImageEncoder
    texts: "TextTower | None" = None

    def pooled(self, paths: Sequence[Path]) -> Tensor:
        """Pooled features: projected in CLIP, the normed class token in DINOv2."""
        return _in_batches(paths, lambda images: self.encoder.encode(images, layer="image_embeds"))

    def patches(self, paths: Sequence[Path]) -> Tensor:
        """The last but one hidden layer, what stands before the patches included."""
        return _in_batches(paths, lambda images: self.encoder.encode(images, layer="hidden_states"))

    def text(self, texts: Sequence[str]) -> Tensor:
        """Texts in the space of the pooled features.

        Raises:
            EvaluationError: this judge reads no texts.
        """
        if self.texts is None:
            raise EvaluationError(
                f"the judge {self.encoder.spec.name!r} reads no texts; give the folder of a whole CLIP"
            )
        return self.texts.encode(texts)

    def describe(self) -> dict[str, Any]:
        """As `Judge.describe` says."""
        inner = self.encoder.encoder if isinstance(self.encoder, CachedEncoder) else self.encoder
        preprocessing = getattr(inner, "preprocessing", None)
        said = asdict(preprocessing) if preprocessing is not None else None
        return {**asdict(self.encoder.spec), "preprocessing": said, "reads_texts": self.texts is not None}


class TextTower:
    """The text half of a CLIP, projected into the space it shares with pictures."""

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        """Take a `CLIPTextModelWithProjection` and its tokenizer as they stand."""
        self.model: Any = model.eval()
        self.tokenizer = tokenizer

    @classmethod
    def from_folder(cls, folder: Path) -> "TextTower":
        """Load the text half of a CLIP's folder; its vision half is left out."""
        from transformers import AutoTokenizer, CLIPTextModelWithProjection

        config = half_config(folder, CLIPTextModelWithProjection.config_class)
        model = CLIPTextModelWithProjection.from_pretrained(folder, config=config, use_safetensors=True)
        return cls(model, AutoTokenizer.from_pretrained(folder))

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """One vector a text; what exceeds the tower's length (77 tokens in CLIP) is cut."""
        length = self.model.config.max_position_embeddings
        made = []
        for start in range(0, len(texts), _BATCH):
            part = list(texts[start : start + _BATCH])
            ids = self.tokenizer(part, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            made.append(self.model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).text_embeds)
        return torch.cat(made).float()


class DinoJudge:
    """DINO's first version: a plain ViT whose class token, after the last norm, is the feature (arXiv 2104.14294).

    Pictures are scaled to 256 on their shorter side, cropped to 224 and normalised as ImageNet's, as DreamBooth and
    DreamBench++ have it.
    """

    preprocessing = Preprocessing(
        shortest_edge=256, crop_size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD, resample=BICUBIC
    )

    def __init__(self, model: nn.Module, name: str) -> None:
        """Take a `ViTModel` as it stands."""
        self.model: Any = model.eval()
        self.name = name

    @classmethod
    def from_folder(cls, folder: Path, name: str) -> "DinoJudge":
        """Load a `ViTModel`, without the pooling that DINO never trained."""
        from transformers import ViTModel

        return cls(ViTModel.from_pretrained(folder, add_pooling_layer=False, use_safetensors=True), name)

    def pooled(self, paths: Sequence[Path]) -> Tensor:
        """The class token."""
        return self._states(paths)[:, 0]

    def patches(self, paths: Sequence[Path]) -> Tensor:
        """The patch tokens."""
        return self._states(paths)[:, 1:]

    def describe(self) -> dict[str, Any]:
        """As `Judge.describe` says."""
        return {"name": self.name, "kind": "dino", "preprocessing": asdict(self.preprocessing)}

    @torch.no_grad()
    def _states(self, paths: Sequence[Path]) -> Tensor:
        size = self.model.config.image_size
        preprocessing = self.preprocessing if size == 224 else self.preprocessing.at(size)

        def encode(images: list[Image.Image]) -> Tensor:
            pixels = torch.stack([prepare_pixels(image, preprocessing, "crop") for image in images])
            return self.model(pixels).last_hidden_state

        return _in_batches(paths, encode)


class FaceJudge:
    """A face network, best another than the adapter's: the largest face of a picture, or none."""

    def __init__(self, encoder: FaceEncoder) -> None:
        """Take an encoder as it stands."""
        self.encoder = encoder

    def faces(self, paths: Sequence[Path]) -> list[Tensor | None]:
        """Embedding of the largest face of each picture; None where no face is found, which is counted apart."""
        return [self._face(path) for path in paths]

    def describe(self) -> dict[str, Any]:
        """As `Judge.describe` says."""
        return asdict(self.encoder.spec)

    def _face(self, path: Path) -> Tensor | None:
        try:
            return self.encoder.encode([load_image(path)], layer="face_embeds")[0].float().cpu()
        except FaceError:
            return None


class MobileNetJudge:
    """MobileNetV2 with ImageNet weights, from a package: independent of every adapter, and within reach offline."""

    def pooled(self, paths: Sequence[Path]) -> Tensor:
        """The last feature map, averaged over positions."""
        return self._last_maps(paths).mean(dim=(2, 3))

    def patches(self, paths: Sequence[Path]) -> Tensor:
        """The last feature map, a token a position."""
        return self._last_maps(paths).flatten(2).transpose(1, 2)

    def describe(self) -> dict[str, Any]:
        """As `Judge.describe` says."""
        return {"name": "MobileNetV2, ImageNet", "kind": "mobilenet", "package": PACKAGE, "size": JUDGE_SIZE}

    def _last_maps(self, paths: Sequence[Path]) -> Tensor:
        return _in_batches(paths, lambda images: torch.cat([self._last_map(image) for image in images]))

    def _last_map(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.asarray(fit_square(image, "crop")).copy()).permute(2, 0, 1)[None]
        return list(feature_maps(pixels))[-1]


def load_judges(given: Mapping[str, str], wanted: Sequence[str], cache_folder: Path | None) -> dict[str, Any]:
    """The judges that the metrics want, each loaded once.

    Args:
        given: folder or hub repository by slot.
        wanted: slots that a metric reads.
        cache_folder: where features outlive the process.

    Raises:
        EvaluationError: a slot is unknown, or one is wanted that has neither address nor default.
        DownloadError: one is neither here nor reachable.
    """
    for slot in given:
        if slot not in SLOTS:
            raise EvaluationError(f"there is no judge {slot!r}; a judge is one of {', '.join(SLOTS)}")
    return {slot: _load(slot, given.get(slot) or ADDRESSES.get(slot), cache_folder) for slot in wanted}


def _load(slot: str, address: str | None, cache_folder: Path | None) -> Any:
    if slot == "mobilenet":
        return MobileNetJudge()
    if address is None:
        raise EvaluationError(f"a metric wants the judge {slot!r}, which has no default; give --judge {slot}=FOLDER")
    if slot == "face":
        return FaceJudge(FaceEncoder.from_folder(address))
    patterns = (*FILES, "tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json")
    folder = resolve_folder(address, patterns=patterns)
    if slot == "dino":
        return DinoJudge.from_folder(folder, Path(address).name)
    encoder = CachedEncoder(VisionEncoder.from_folder(folder), FeatureCache(folder=cache_folder))
    has_texts = slot == "clip" and any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    return VisionJudge(encoder, TextTower.from_folder(folder) if has_texts else None)


def _in_batches(paths: Sequence[Path], encode: Any) -> Tensor:
    parts = []
    for start in range(0, len(paths), _BATCH):
        parts.append(encode([load_image(path) for path in paths[start : start + _BATCH]]).float().cpu())
    return torch.cat(parts)
