"""Face detectors and embedders from ONNX files, through onnxruntime alone.

This is the way to bring one's own models, commercially usable ones among them: SCRFD and YuNet detectors, and every
ArcFace-like embedder that reads aligned RGB crops. A folder of InsightFace (buffalo_l, antelopev2) can be loaded as it
is; its models are for non-commercial research only. What a file is follows from its inputs and outputs, never from its
name. Nothing is ever downloaded.
"""

import hashlib
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imprompt.core.errors import CheckpointError, ImageError, ImpromptError, first_line
from imprompt.encoders.face_base import DetectorSpec, EmbedderSpec, Face
from imprompt.encoders.face_decode import (
    SCRFD_LAYOUTS,
    YUNET_HEADS,
    YUNET_STRIDES,
    scrfd_faces,
    suppress,
    yunet_faces,
)
from imprompt.encoders.face_graph import OnnxGraph, describe_graph
from imprompt.encoders.face_known import state_licence

Kind: TypeAlias = Literal["scrfd", "yunet", "embedder"]

CPU = ("CPUExecutionProvider",)
MAX_BYTES = 2**30  # four times the largest published face network

_YUNET_OUTPUTS = tuple(f"{head}_{stride}" for head in YUNET_HEADS for stride in YUNET_STRIDES)
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_MAX_BATCH = 32
_MIN_WIDTH = 64  # of an embedding; ages, sexes and poses come in fewer numbers
_FILLS = (1.0, 0.5, 0.25)  # the sizes in which a detector sees a picture, as shares of its view
_LARGEST_STRIDE = 128


@dataclass(frozen=True)
class Settings:
    """How a kind of detector is run where a user says nothing else: as its authors do."""

    min_score: float
    max_overlap: float
    mean: float
    scale: float
    rgb: bool


_SETTINGS: dict[Kind, Settings] = {
    "scrfd": Settings(min_score=0.5, max_overlap=0.4, mean=127.5, scale=1 / 128, rgb=True),
    "yunet": Settings(min_score=0.6, max_overlap=0.3, mean=0.0, scale=1.0, rgb=False),
}


class OnnxDetector:
    """An SCRFD or YuNet detector.

    A picture is shown to it in three sizes, and of what it finds the surest is kept: a face that fills the picture is
    larger than those it was trained on, and its keypoints, if it is found at all, are less exact than in a smaller one.
    """

    def __init__(
        self, path: str | Path, *, min_score: float | None = None, size: int = 640, providers: Sequence[str] = CPU
    ) -> None:
        """Load a detector; the log states its licence.

        Args:
            path: The ONNX file.
            min_score: How sure it must be of a face, 0 to 1; its authors' value if None (SCRFD 0.5, YuNet 0.6).
            size: Side in pixels of what it sees at once, where its file does not fix it.
            providers: Where onnxruntime runs it, in order of preference.

        Raises:
            CheckpointError: The file is missing, too large, damaged, reaches for other files, or is no such detector.
            ImpromptError: onnxruntime is not installed.
        """
        file = read_onnx(path)
        kind = face_model_kind(file.graph)
        if kind not in _SETTINGS:
            raise CheckpointError(f"'{path}' is {_describe(file.graph)}, not a SCRFD or YuNet face detector.")
        self.kind = kind
        self._settings = _SETTINGS[kind]
        score = self._settings.min_score if min_score is None else min_score
        name, licence = state_licence(file.path, file.sha256, "detector")
        fingerprint = hashlib.sha256(f"{file.sha256}:{score}:{size}:{_FILLS}".encode()).hexdigest()
        self.spec = DetectorSpec(name=name, licence=licence, fingerprint=fingerprint, min_score=score)
        self._network = _Network(file, providers)
        (shape,) = file.graph.inputs.values()
        self._view, self._size = (shape[2], shape[3]), size

    def detect(self, image: Image.Image) -> list[Face]:
        """Find all faces of an RGB picture, the surest first; see `FaceDetector.detect`.

        Raises:
            CheckpointError: The network gives other outputs than its kind does.
        """
        image = image.convert("RGB")
        found = [face for fill in _FILLS for face in self._detect(image, fill)]
        return suppress(found, self._settings.max_overlap)

    def _detect(self, image: Image.Image, fill: float) -> list[Face]:
        """Find faces with the picture scaled to fill this share of the view."""
        (height, width), size = self._view, self._size
        ratio = fill * min((width or size) / image.width, (height or size) / image.height)
        shown = image.resize(
            (max(1, round(image.width * ratio)), max(1, round(image.height * ratio))), Image.Resampling.BILINEAR
        )
        height, width = height or _round_up(shown.height), width or _round_up(shown.width)
        view = np.zeros((height, width, 3), np.float32)
        view[: shown.height, : shown.width] = np.asarray(shown)
        view = (view if self._settings.rgb else view[:, :, ::-1]) - self._settings.mean
        outputs = self._network.run(view.transpose(2, 0, 1)[None] * self._settings.scale)
        found = self._decode(outputs, height, width)
        back = np.array([image.width / shown.width, image.height / shown.height])
        faces = [Face(face.box * np.tile(back, 2), face.keypoints * back, face.score) for face in found]
        return [face for face in faces if _is_inside(face, image.size)]

    def _decode(self, outputs: dict[str, np.ndarray], height: int, width: int) -> list[Face]:
        if self.kind == "scrfd":
            return scrfd_faces(list(outputs.values()), height, width, self.spec.min_score)
        ordered = [outputs[name] for name in _YUNET_OUTPUTS]
        return yunet_faces(ordered, height, width, self.spec.min_score)


class OnnxEmbedder:
    """An ArcFace-like embedder of aligned RGB crops.

    Pixels are brought to -1 ... 1, but for networks that begin by subtracting and multiplying: these do so themselves.
    """

    def __init__(self, path: str | Path, *, providers: Sequence[str] = CPU) -> None:
        """Load an embedder; the log states its licence.

        Args:
            path: The ONNX file.
            providers: Where onnxruntime runs it, in order of preference.

        Raises:
            CheckpointError: The file is missing, too large, damaged, reaches for other files, or is no embedder.
            ImpromptError: onnxruntime is not installed.
        """
        file = read_onnx(path)
        if face_model_kind(file.graph) != "embedder":
            raise CheckpointError(
                f"'{path}' is {_describe(file.graph)}, not a face embedder (aligned crops in, one vector out)."
            )
        name, licence = state_licence(file.path, file.sha256, "embedder")
        self._network = _Network(file, providers)
        (shape,) = file.graph.inputs.values()
        side = shape[2] or 0
        self._batch = shape[0] or _MAX_BATCH
        self._scaled = "Sub" not in file.graph.operators or not {"Mul", "Div"} & set(file.graph.operators)
        width = self._run(np.zeros((self._batch, 3, side, side), np.float32)).shape[1]
        self.spec = EmbedderSpec(name=name, licence=licence, fingerprint=file.sha256, image_size=side, width=width)

    def embed(self, crops: Sequence[Image.Image]) -> Float[Tensor, "faces width"]:
        """Turn aligned crops into embeddings, not normalised; see `FaceEmbedder.embed`.

        Raises:
            ImageError: There is no crop, or one has another size.
            CheckpointError: The network gives other outputs than embedders do.
        """
        side = self.spec.image_size
        wrong = next((crop.size for crop in crops if crop.size != (side, side)), None)
        if wrong or not crops:
            found = f"one of {wrong[0]} x {wrong[1]}" if wrong else "none"
            raise ImageError(f"{self.spec.name} reads aligned faces of {side} x {side} pixels; got {found}.")
        pixels = np.stack([np.asarray(crop.convert("RGB")) for crop in crops]).transpose(0, 3, 1, 2).astype(np.float32)
        parts = [self._run(pixels[start : start + self._batch]) for start in range(0, len(pixels), self._batch)]
        return torch.from_numpy(np.concatenate(parts))

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        """Embed up to a batch; one that must be full is filled up with black."""
        count = len(pixels)
        missing = self._batch - count if self._network.fixed_batch else 0
        pixels = np.pad(pixels, ((0, missing), (0, 0), (0, 0), (0, 0)))
        (values,) = self._network.run((pixels - 127.5) / 127.5 if self._scaled else pixels).values()
        if values.ndim != 2 or len(values) != len(pixels):
            raise CheckpointError(
                f"A face embedder gave the shape {list(values.shape)} for {len(pixels)} faces, not one vector each."
            )
        return values[:count].astype(np.float32)


@dataclass(frozen=True)
class OnnxFile:
    """A file that was read and looked over.

    Attributes:
        path: Where it lies.
        content: Its bytes.
        graph: What it says of its network.
        sha256: Its hash.
    """

    path: Path
    content: bytes
    graph: OnnxGraph
    sha256: str


class _Network:
    """A session of onnxruntime that takes one input and names its outputs."""

    def __init__(self, file: OnnxFile, providers: Sequence[str]) -> None:
        self._path = file.path
        self._session = _open_session(file, providers)
        source = self._session.get_inputs()[0]
        self._input, self._dtype = source.name, _DTYPES.get(source.type, np.float32)
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.fixed_batch = isinstance(source.shape[0], int)

    def run(self, values: np.ndarray) -> dict[str, np.ndarray]:
        try:
            outputs = self._session.run(self._outputs, {self._input: np.ascontiguousarray(values, self._dtype)})
        except Exception as error:  # onnxruntime raises classes of its own, one for each status
            raise CheckpointError(f"'{self._path}' failed to run ({first_line(error)}); get the file again.") from error
        return dict(zip(self._outputs, map(np.asarray, outputs), strict=True))


def face_model_kind(graph: OnnxGraph) -> Kind | None:
    """Tell what a network does from what it reads and gives; None if it is neither detector nor embedder of faces."""
    if len(graph.inputs) != 1:
        return None
    (shape,) = graph.inputs.values()
    if len(shape) != 4 or shape[1] != 3:
        return None
    if set(graph.outputs) == set(_YUNET_OUTPUTS):
        return "yunet"
    if len(graph.outputs) in SCRFD_LAYOUTS and shape[0] in (1, None):
        return "scrfd"
    side, output = shape[2], next(iter(graph.outputs.values()), ())
    if len(graph.outputs) != 1 or shape[3] != side or not side or (side % 112 and side % 128):
        return None
    is_vector = len(output) == 2 and (output[1] is None or output[1] >= _MIN_WIDTH)
    return "embedder" if is_vector or not output else None


def find_face_models(folder: str | Path) -> tuple[Path, Path]:
    """Find the detector and the embedder among the ONNX files of a folder, as InsightFace's packs are.

    Args:
        folder: The folder, or one that holds it (packs unpack into a folder of the same name).

    Returns:
        The detector's file and the embedder's.

    Raises:
        CheckpointError: There is no such folder, or not exactly one of each.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"'{folder}' is no folder; give one with a face detector and an embedder as ONNX files.")
    files = sorted(folder.glob("*.onnx")) or sorted(folder.glob("*/*.onnx"))
    kinds = {file: _kind_or_reason(file) for file in files}
    detectors = [file for file, kind in kinds.items() if kind in _SETTINGS]
    embedders = [file for file, kind in kinds.items() if kind == "embedder"]
    if len(detectors) == len(embedders) == 1:
        return detectors[0], embedders[0]
    found = ", ".join(f"{file.name} ({kind})" for file, kind in kinds.items()) or "no ONNX file"
    raise CheckpointError(
        f"'{folder}' must hold one face detector and one embedder, and has {len(detectors)} and {len(embedders)}: "
        f"{found}. Give the two files by name."
    )


def _kind_or_reason(path: Path) -> str:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            with memoryview(content) as view:
                graph = describe_graph(view)
    except (OSError, ValueError, CheckpointError) as error:
        return f"unreadable: {first_line(error)}"
    return face_model_kind(graph) or _describe(graph)


def read_onnx(path: str | Path) -> OnnxFile:
    """Read an ONNX file and look it over before anything runs it.

    Raises:
        CheckpointError: It is missing, too large, damaged, or reaches for other files.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"There is no file '{path}'; give the path of an ONNX file.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CheckpointError(
            f"'{path}' has {size:,} bytes; at most {MAX_BYTES:,} are read. No face network is as large."
        )
    content = path.read_bytes()
    try:
        graph = describe_graph(memoryview(content))
    except CheckpointError as error:
        raise CheckpointError(f"'{path}' cannot be read ({error}); get the file again.") from error
    if graph.external:
        raise CheckpointError(f"'{path}' keeps weights in other files, which are not followed; save it as one file.")
    return OnnxFile(path, content, graph, hashlib.sha256(content).hexdigest())


def _open_session(file: OnnxFile, providers: Sequence[str]) -> Any:
    """Let onnxruntime parse what was read and checked, without the means to load code or other files."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ImpromptError(
            "Faces need onnxruntime, which is not installed; run: pip install 'imprompt[face]'"
        ) from error

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; old files cause a warning for every weight
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave the cores to torch
    try:
        return onnxruntime.InferenceSession(file.content, options, providers=list(providers))
    except Exception as error:  # onnxruntime raises classes of its own, one for each status
        raise CheckpointError(
            f"onnxruntime cannot load '{file.path}' ({first_line(error)}); get the file again, or a newer onnxruntime."
        ) from error


def _round_up(length: int) -> int:
    """The next length that every stride divides."""
    return -(-length // _LARGEST_STRIDE) * _LARGEST_STRIDE


def _is_inside(face: Face, size: tuple[int, int]) -> bool:
    """Whether keypoints lie in the picture or near it, as they do unless the network has gone wrong."""
    return bool((np.abs(face.keypoints - np.array(size) / 2) <= 1.5 * max(size)).all())


def _describe(graph: OnnxGraph) -> str:
    shapes = ", ".join(str([length or "?" for length in shape]) for shape in graph.inputs.values())
    return f"a network of {len(graph.outputs)} outputs that reads {shapes or 'nothing'}".replace("'", "")
