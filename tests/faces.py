"""Face networks for tests: tiny ones with known answers, built in code, and drawn portraits for a real detector."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

DATA = Path(__file__).parent / "data" / "faces"
YUNET = DATA / "yunet_2023mar.onnx"

PERSONS, EXPRESSIONS, TILE = 4, 3, 240

# What the tiny detector reports around a red square, in units of its stride: reach of the box, and the keypoints.
REACH = (1.0, 2.0, 3.0, 2.5)
KEYPOINTS = (-0.5, -0.5, 0.5, -0.5, 0.0, 0.0, -0.4, 0.6, 0.4, 0.6)


def portraits() -> list[list[Image.Image]]:
    """Drawn portraits: the expressions of every person."""
    sheet = Image.open(DATA / "portraits.png").convert("RGB")
    return [
        [sheet.crop((x * TILE, y * TILE, (x + 1) * TILE, (y + 1) * TILE)) for x in range(EXPRESSIONS)]
        for y in range(PERSONS)
    ]


def scrfd(
    path: Path, *, strides: Sequence[int] = (8, 16, 32), anchors: int = 2, seeing: int = 16, batched: bool = False
) -> Path:
    """Write a detector laid out as SCRFD that takes red squares, on the grid of one stride, for faces."""
    nodes, weights, outputs = [], [], []
    for stride in strides:
        red = np.zeros((anchors, 3, stride, stride), np.float32)
        if stride == seeing:
            red[0, 0], red[0, 1] = 0.5 / stride**2, -0.5 / stride**2  # red less green, from -1 to 1
        for kind, values in (("score", None), ("box", REACH), ("points", KEYPOINTS)):
            width = 1 if values is None else len(values)
            kernel = red if values is None else np.zeros((anchors * width, 3, stride, stride), np.float32)
            bias = np.zeros(anchors, np.float32) if values is None else np.tile(values, anchors).astype(np.float32)
            name = f"{kind}_{stride}"
            shape = [1, -1, width] if batched else [-1, width]
            weights += [
                numpy_helper.from_array(kernel, f"{name}_kernel"),
                numpy_helper.from_array(bias, f"{name}_bias"),
                numpy_helper.from_array(np.array(shape, np.int64), f"{name}_shape"),
            ]
            inputs = ["input", f"{name}_kernel", f"{name}_bias"]
            nodes += [
                helper.make_node("Conv", inputs, [f"{name}_map"], strides=[stride, stride]),
                helper.make_node("Transpose", [f"{name}_map"], [f"{name}_rows"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"{name}_rows", f"{name}_shape"], [name]),
            ]
            outputs.append((name, [1, None, width] if batched else [None, width]))
    outputs.sort(key=lambda output: ("score", "box", "points").index(output[0].split("_")[0]))
    return _write(path, nodes, weights, ("input", [1, 3, None, None]), outputs)


def arcface(
    path: Path, *, width: int = 512, scales_itself: bool = False, batch: int | None = None, seed: int = 0
) -> Path:
    """Write an embedder that mixes the mean colours of 7 x 7 cells."""
    mix = np.random.default_rng(seed).normal(size=(147, width)).astype(np.float32)
    weights, nodes, source = [numpy_helper.from_array(mix, "mix")], [], "data"
    if scales_itself:
        weights += [
            numpy_helper.from_array(np.array([127.5], np.float32), "mean"),
            numpy_helper.from_array(np.array([1 / 127.5], np.float32), "factor"),
        ]
        nodes += [
            helper.make_node("Sub", ["data", "mean"], ["centred"]),
            helper.make_node("Mul", ["centred", "factor"], ["scaled"]),
        ]
        source = "scaled"
    nodes += [
        helper.make_node("AveragePool", [source], ["cells"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Flatten", ["cells"], ["flat"]),
        helper.make_node("MatMul", ["flat", "mix"], ["embedding"]),
    ]
    return _write(path, nodes, weights, ("data", [batch, 3, 112, 112]), [("embedding", [batch, width])])


def expected_embedding(crop: Image.Image, *, width: int = 512, seed: int = 0) -> np.ndarray:
    """What the tiny embedder makes of a crop."""
    mix = np.random.default_rng(seed).normal(size=(147, width))
    pixels = (np.asarray(crop).astype(np.float64) - 127.5) / 127.5
    cells = pixels.reshape(7, 16, 7, 16, 3).mean(axis=(1, 3))
    return cells.transpose(2, 0, 1).reshape(-1) @ mix


def other_network(path: Path, shape: Sequence[int | None] = (1, 3, 96, 96)) -> Path:
    """Write a network that is neither detector nor embedder, as that for age and sex in InsightFace's packs."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["data"], ["means"]),
        helper.make_node("Flatten", ["means"], ["attributes"]),
    ]
    return _write(path, nodes, [], ("data", list(shape)), [("attributes", [1, 3])])


def _write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[TensorProto],
    source: tuple[str, list[int | None]],
    outputs: Sequence[tuple[str, list[int | None]]],
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "network",
        [helper.make_tensor_value_info(source[0], TensorProto.FLOAT, source[1])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        list(weights),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path
