"""The frozen networks that judge pictures. None of them should be the adapter's own encoder."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from imprompt.core.errors import CheckpointError, DownloadError, FaceError, first_line
from imprompt.core.files import sha256_file
from imprompt.core.images import fit_square, load_image
from imprompt.core.weights import resolve_folder
from imprompt.encoders.base import ImageEncoder
from imprompt.encoders.cache import CachedEncoder, FeatureCache
from imprompt.encoders.face import FaceEncoder
from imprompt.encoders.fingerprint import hash_weights
from imprompt.encoders.preprocess import BICUBIC, IMAGENET_MEAN, IMAGENET_STD, Preprocessing, prepare_pixels
from imprompt.encoders.text import TextEncoder
from imprompt.encoders.vision import FILES, VisionEncoder
from imprompt.evaluation import inception
from imprompt.evaluation.errors import EvaluationError
from imprompt.evaluation.metrics.table import METRICS
from imprompt.evaluation.mobilenet import JUDGE_SIZE, PACKAGE, feature_maps, package_folder, weights_file
from imprompt.generation.pipelines import default_device

ADDRESSES: dict[str, str] = {
    "clip": "openai/clip-vit-large-patch14",
    "dino": "facebook/dino-vits16",
    "dinov2": "facebook/dinov2-small",
}
"""What judges where the caller names no other; the others have no default, for no hub has them ready to read."""

SLOTS = (*ADDRESSES, "csd", "face", "inception", "mobilenet")
_LOCAL = ("face", "inception")
_PATTERNS = (*FILES, "tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json")
_BATCH = 32


@dataclass
class VisionJudge:
    """A vision tower of any kind that imprompt knows; features of a picture are computed once.

    Attributes:
        encoder: the tower.
        texts: the text tower of the same space, where there is one.
    """

    encoder: ImageEncoder
    texts: TextEncoder | None = None

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
        parts = [list(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
        return torch.cat([self.texts.encode(part).float().cpu() for part in parts])

    def describe(self) -> dict[str, Any]:
        """Name, fingerprint and preprocessing, for the record."""
        inner = self.encoder.encoder if isinstance(self.encoder, CachedEncoder) else self.encoder
        preprocessing = getattr(inner, "preprocessing", None)
        said = asdict(preprocessing) if preprocessing is not None else None
        texts = None if self.texts is None else self.texts.spec.fingerprint
        return {**asdict(self.encoder.spec), "preprocessing": said, "texts_fingerprint": texts}


class DinoJudge:
    """DINO's first version: a plain ViT whose class token, after the last norm, is the feature (arXiv 2104.14294).

    Pictures are scaled to 256 on their shorter side, cropped to 224 and normalised as ImageNet's, as DreamBooth and
    DreamBench++ have it.
    """

    published = Preprocessing(shortest_edge=256, crop_size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD, resample=BICUBIC)

    def __init__(self, model: nn.Module, name: str) -> None:
        """Take a `ViTModel` as it stands."""
        self.model: Any = model.eval()
        self.name = name
        size = self.model.config.image_size
        self.preprocessing = self.published if size == 224 else self.published.at(size)

    @classmethod
    def from_folder(cls, folder: Path, name: str) -> "DinoJudge":
        """Load a `ViTModel`, without the pooling that DINO never trained.

        Raises:
            CheckpointError: it cannot be read, or is another network.
        """
        from transformers import ViTModel

        options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
        try:
            loaded: Any = ViTModel.from_pretrained(folder, add_pooling_layer=False, **options)
        except Exception as error:  # transformers raises whatever its parsers do
            raise CheckpointError(f"'{folder}' holds no ViT that can be read ({first_line(error)})") from error
        model, report = loaded
        if missing := sorted(report["missing_keys"]):
            raise CheckpointError(
                f"'{folder}' is no DINO: it lacks {len(missing)} tensors of a ViT, as '{missing[0]}'; give a ViTModel"
            )
        return cls(model.to(default_device()), name)

    def pooled(self, paths: Sequence[Path]) -> Tensor:
        """The class token."""
        return self._states(paths)[:, 0]

    def describe(self) -> dict[str, Any]:
        """Name, fingerprint and preprocessing, for the record."""
        digest = hashlib.sha256()
        hash_weights(digest.update, sorted(self.model.state_dict().items()))
        said = {"name": self.name, "kind": "dino", "fingerprint": digest.hexdigest()}
        return {**said, "preprocessing": asdict(self.preprocessing)}

    @torch.no_grad()
    def _states(self, paths: Sequence[Path]) -> Tensor:
        def encode(images: list[Image.Image]) -> Tensor:
            pixels = torch.stack([prepare_pixels(image, self.preprocessing, "crop") for image in images])
            return self.model(pixels.to(self.model.device)).last_hidden_state

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
        """Name, fingerprint and preprocessing, for the record."""
        return asdict(self.encoder.spec)

    def _face(self, path: Path) -> Tensor | None:
        try:
            return self.encoder.encode([load_image(path)], layer="face_embeds")[0].float().cpu()
        except FaceError:
            return None


class InceptionJudge:
    """The network of FID and KID as published; a whole picture is stretched to 299 x 299 as TensorFlow 1 did.

    Features of a picture are kept, for several metrics and series ask for the same.
    """

    def __init__(self, model: nn.Module, name: str, fingerprint: str) -> None:
        """Take a network of `inception.network` as it stands."""
        self.model, self.name, self.fingerprint = model.eval(), name, fingerprint
        self._known: dict[Path, Tensor] = {}

    @classmethod
    def from_file(cls, path: Path) -> "InceptionJudge":
        """Load the published weights.

        Raises:
            CheckpointError: the file is missing or unsafe, or holds another network.
        """
        return cls(inception.load_network(path).to(default_device()), path.name, sha256_file(path))

    def pooled(self, paths: Sequence[Path]) -> Tensor:
        """The last feature map, averaged over positions: 2048 numbers."""
        for path in dict.fromkeys(paths):
            if path not in self._known:
                self._known[path] = self._features(load_image(path))
        return torch.stack([self._known[path] for path in paths])

    def describe(self) -> dict[str, Any]:
        """Name, fingerprint and preprocessing, for the record."""
        resize = "bilinear to 299 x 299 as TensorFlow 1: corners on corners, no smoothing"
        return {"name": self.name, "kind": "inception", "fingerprint": self.fingerprint, "preprocessing": resize}

    def _features(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)[None]
        return inception.features(self.model, pixels.to(next(self.model.parameters()).device))[0].float().cpu()


class MobileNetJudge:
    """MobileNetV2 with ImageNet weights, from a package: independent of every adapter, and within reach offline."""

    def pooled(self, paths: Sequence[Path]) -> Tensor:
        """The last feature map, averaged over positions."""
        return _in_batches(paths, lambda images: torch.cat([self._last_map(image).mean((2, 3)) for image in images]))

    def describe(self) -> dict[str, Any]:
        """Name, fingerprint and preprocessing, for the record."""
        said = {"name": "MobileNetV2, ImageNet", "kind": "mobilenet", "package": PACKAGE, "size": JUDGE_SIZE}
        return {**said, "fingerprint": sha256_file(weights_file())}

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
        EvaluationError: a slot is unknown, or one is wanted that has neither address nor default, or cannot be had.
        BundleError: the package of a judge is not installed.
        ImpromptError: the weights of a judge are missing, damaged or another network's.
    """
    _check_addresses(given, wanted)
    return {slot: _load(slot, given.get(slot) or ADDRESSES.get(slot, ""), cache_folder) for slot in wanted}


def _check_addresses(given: Mapping[str, str], wanted: Sequence[str]) -> None:
    """Refuse slots and addresses before the first network is loaded; what lies on a hub is fetched."""
    for slot in given:
        if slot not in SLOTS:
            named = ", ".join(each for each in SLOTS if each != "mobilenet")
            raise EvaluationError(f"there is no judge {slot!r}; one that is given is one of {named}")
        if slot == "mobilenet":
            raise EvaluationError(f"the judge 'mobilenet' comes from a package, {PACKAGE}; leave it out of --judge")
    for slot in wanted:
        if slot not in given and slot not in ADDRESSES and slot != "mobilenet":
            place = "FILE" if slot == "inception" else "FOLDER"
            readers = ", ".join(metric.name for metric in METRICS.values() if metric.judge == slot)
            raise EvaluationError(f"no judge {slot!r}, for the metrics {readers}; give --judge {slot}={place}")
        if slot == "mobilenet":
            package_folder()
        else:
            _check_address(slot, given.get(slot) or ADDRESSES[slot])


def _check_address(slot: str, address: str) -> None:
    """Refuse what is not there, or plainly no network; a repository of the hub is downloaded."""
    is_path = slot in _LOCAL or address.startswith(("/", "./", "../", "~"))
    if is_path and not Path(address).expanduser().exists():
        raise EvaluationError(f"the judge {slot!r} is to be '{address}', which is not there; give one that is")
    if slot in _LOCAL:
        return
    try:
        folder = resolve_folder(address, patterns=_PATTERNS)
    except DownloadError as error:
        raise EvaluationError(f"the judge {slot!r} is to be '{address}', which cannot be had: {error}") from error
    if not (folder / "config.json").is_file():
        raise EvaluationError(
            f"the judge {slot!r} is to be '{address}', which has no config.json; give the folder of a network"
        )


def _load(slot: str, address: str, cache_folder: Path | None) -> Any:
    if slot == "mobilenet":
        return MobileNetJudge()
    if slot == "face":
        return FaceJudge(FaceEncoder.from_folder(address))
    if slot == "inception":
        return InceptionJudge.from_file(Path(address).expanduser())
    folder = resolve_folder(address, patterns=_PATTERNS)
    if slot == "dino":
        return DinoJudge.from_folder(folder, Path(address).name)
    device = default_device()
    encoder = CachedEncoder(VisionEncoder.from_folder(folder, device=device), FeatureCache(folder=cache_folder))
    has_texts = slot == "clip" and any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    return VisionJudge(encoder, TextEncoder.from_folder(folder, device=device) if has_texts else None)


def _in_batches(paths: Sequence[Path], encode: Any) -> Tensor:
    parts = []
    for start in range(0, len(paths), _BATCH):
        parts.append(encode([load_image(path) for path in paths[start : start + _BATCH]]).float().cpu())
    return torch.cat(parts)
