"""What an ONNX file is follows from its bytes, and hostile bytes end in one error."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from imprompt.core.errors import CheckpointError
from imprompt.encoders.face_graph import OnnxGraph, describe_graph
from tests import faces


def described(model: onnx.ModelProto) -> OnnxGraph:
    return describe_graph(memoryview(model.SerializeToString()))


def model_of(nodes: list[onnx.NodeProto], weights: list[TensorProto], **more: object) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "n"])
    graph = helper.make_graph(nodes, "graph", [value], [value], weights, **more)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def weight(name: str = "w", *, external: bool = False) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    if external:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../secret")
    return tensor


def in_weights(tensor: TensorProto) -> onnx.ModelProto:
    return model_of([], [tensor])


def in_constant(tensor: TensorProto) -> onnx.ModelProto:
    return model_of([helper.make_node("Constant", [], ["c"], value=tensor)], [])


def in_branch(tensor: TensorProto) -> onnx.ModelProto:
    branch = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "branch", [], [])
    return model_of([helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)], [])


def in_sparse(tensor: TensorProto) -> onnx.ModelProto:
    sparse = onnx.SparseTensorProto(values=tensor, indices=numpy_helper.from_array(np.arange(4)), dims=[4])
    return model_of([], [], sparse_initializer=[sparse])


def in_function(tensor: TensorProto) -> onnx.ModelProto:
    model = model_of([], [])
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    model.functions.append(helper.make_function("own", "f", [], ["c"], [node], [helper.make_opsetid("", 13)]))
    return model


def test_inputs_outputs_and_operators(tmp_path: Path) -> None:
    graph = describe_graph(memoryview(faces.arcface(tmp_path / "a.onnx", scales_itself=True).read_bytes()))
    assert graph.inputs == {"data": (None, 3, 112, 112)}
    assert graph.outputs == {"embedding": (None, 512)}
    assert graph.operators == ("Sub", "Mul", "AveragePool", "Flatten", "MatMul")
    assert not graph.external


def test_a_real_network() -> None:
    graph = describe_graph(memoryview(faces.YUNET.read_bytes()))
    assert graph.inputs == {"input": (1, 3, 640, 640)}
    assert len(graph.outputs) == 12
    assert graph.outputs["kps_32"] == (1, 400, 10)


def test_weights_that_old_files_list_as_inputs_are_none() -> None:
    model = in_weights(weight())
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))
    assert described(model).inputs == {"x": (1, None)}


@pytest.mark.parametrize("where", [in_weights, in_constant, in_branch, in_sparse, in_function])
def test_weights_in_other_files_are_seen_wherever_they_hide(where: Callable[[TensorProto], onnx.ModelProto]) -> None:
    assert described(where(weight(external=True))).external
    assert not described(where(weight())).external


def test_two_networks_in_one_file_are_refused() -> None:
    """A reader of protocol buffers merges them: what the first hides would count all the same."""
    content = in_weights(weight()).SerializeToString() + in_weights(weight(external=True)).SerializeToString()
    with pytest.raises(CheckpointError, match="holds 2 networks"):
        describe_graph(memoryview(content))


def test_graphs_nested_without_end_are_refused() -> None:
    graph = helper.make_graph([], "leaf", [], [])
    for _ in range(20):
        graph = helper.make_graph([helper.make_node("Loop", [], [], body=graph)], "loop", [], [])
    with pytest.raises(CheckpointError, match="too deeply"):
        described(helper.make_model(graph))


@pytest.mark.parametrize("content", [b"", b"\x00", b"not a network", b"\xff" * 40, b"PK\x03\x04" + bytes(60)])
def test_what_is_no_network(content: bytes) -> None:
    with pytest.raises(CheckpointError):
        describe_graph(memoryview(content))


def test_a_file_cut_short_anywhere(tmp_path: Path) -> None:
    content = faces.arcface(tmp_path / "a.onnx", width=64).read_bytes()
    for length in [*range(1, 300, 7), len(content) // 2, len(content) - 1]:
        with pytest.raises(CheckpointError):
            describe_graph(memoryview(content[:length]))


def test_damaged_bytes_end_in_one_error_or_none(tmp_path: Path) -> None:
    content = faces.other_network(tmp_path / "a.onnx").read_bytes()
    random = np.random.default_rng(0)
    for _ in range(500):
        spoilt = bytearray(content)
        for place in random.integers(0, len(spoilt), 3):
            spoilt[place] = random.integers(0, 256)
        try:
            describe_graph(memoryview(bytes(spoilt)))
        except CheckpointError:
            pass
