"""What an ONNX file is, read out of its bytes before anything runs it.

An ONNX file is a protocol buffer. The few fields wanted here (inputs, outputs, first operators, and whether tensors lie
in other files) take a reader of one page, where the package `onnx` would be one more dependency with a C++ parser.
Numbers of fields are those of `onnx.proto`, which never change.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from imprompt.core.errors import CheckpointError

Shape: TypeAlias = tuple[int | None, ...]
Field: TypeAlias = tuple[int, int | memoryview]

_FIRST_OPERATORS = 8
_MAX_DEPTH = 16  # of graphs inside of operators, as in loops
_EXTERNAL = 1

_MODEL_GRAPH, _MODEL_FUNCTION = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_SPARSE = 1, 5, 11, 12, 15
_FUNCTION_NODE = 7
_NODE_OPERATOR, _NODE_ATTRIBUTE = 4, 5
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_SPARSE_TENSORS = (1, 2)
_TENSOR_NAME, _TENSOR_EXTERNAL_DATA, _TENSOR_LOCATION = 8, 13, 14
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_SHAPE, _SHAPE_DIM, _DIM_VALUE = 1, 2, 1, 2, 1, 1


@dataclass(frozen=True)
class OnnxGraph:
    """What a network reads and gives.

    Attributes:
        inputs: Shape of each input by its name, weights left out; None for a length that is not fixed.
        outputs: The same of each output; an empty shape where the file does not tell.
        operators: Kinds of the first operators, in order.
        external: Whether weights are to be read from other files.
    """

    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    operators: tuple[str, ...]
    external: bool


def describe_graph(content: memoryview) -> OnnxGraph:
    """Read what a file says of its network; weights are stepped over.

    Raises:
        CheckpointError: It is no ONNX file, or is cut short.
    """
    model = list(_fields(content))
    graphs, functions = _all(model, _MODEL_GRAPH), _all(model, _MODEL_FUNCTION)
    if len(graphs) != 1:  # a reader of protocol buffers would put several together
        raise CheckpointError(f"it holds {len(graphs)} networks in place of one")
    parts = list(_fields(graphs[0]))
    weights = {_text(tensor, _TENSOR_NAME) for tensor in _all(parts, _GRAPH_INITIALIZER)}
    inputs = dict(map(_value, _all(parts, _GRAPH_INPUT)))
    nodes = _all(parts, _GRAPH_NODE)
    return OnnxGraph(
        inputs={name: shape for name, shape in inputs.items() if name not in weights},
        outputs=dict(map(_value, _all(parts, _GRAPH_OUTPUT))),
        operators=tuple(_text(node, _NODE_OPERATOR) for node in nodes[:_FIRST_OPERATORS]),
        external=_graph_is_external(graphs[0], _MAX_DEPTH)
        or any(_nodes_are_external(_all(_fields(function), _FUNCTION_NODE), _MAX_DEPTH) for function in functions),
    )


def _graph_is_external(graph: memoryview, depth: int) -> bool:
    if depth == 0:
        raise CheckpointError("it nests graphs too deeply")
    parts = list(_fields(graph))
    return (
        any(map(_tensor_is_external, _all(parts, _GRAPH_INITIALIZER)))
        or any(map(_sparse_is_external, _all(parts, _GRAPH_SPARSE)))
        or _nodes_are_external(_all(parts, _GRAPH_NODE), depth)
    )


def _nodes_are_external(nodes: list[memoryview], depth: int) -> bool:
    for node in nodes:
        for attribute in _all(_fields(node), _NODE_ATTRIBUTE):
            parts = list(_fields(attribute))
            if any(map(_tensor_is_external, _all(parts, *_ATTRIBUTE_TENSORS))):
                return True
            if any(map(_sparse_is_external, _all(parts, *_ATTRIBUTE_SPARSE))):
                return True
            if any(_graph_is_external(graph, depth - 1) for graph in _all(parts, *_ATTRIBUTE_GRAPHS)):
                return True
    return False


def _sparse_is_external(sparse: memoryview) -> bool:
    return any(map(_tensor_is_external, _all(_fields(sparse), *_SPARSE_TENSORS)))


def _tensor_is_external(tensor: memoryview) -> bool:
    return any(
        number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_LOCATION and value == _EXTERNAL)
        for number, value in _fields(tensor)
    )


def _value(value: memoryview) -> tuple[str, Shape]:
    """Name and shape of an input or output."""
    shape: Shape = ()
    message = _first(_first(_first(value, _VALUE_TYPE), _TYPE_TENSOR), _TENSOR_SHAPE)
    for dimension in _all(_fields(message), _SHAPE_DIM):
        fixed = [length for number, length in _fields(dimension) if number == _DIM_VALUE and isinstance(length, int)]
        shape += (fixed[0] if fixed and 0 < fixed[0] < 2**31 else None,)
    return _text(value, _VALUE_NAME), shape


def _first(message: memoryview, number: int) -> memoryview:
    """The first message in a field; an empty one if there is none."""
    return next(iter(_all(_fields(message), number)), memoryview(b""))


def _text(message: memoryview, number: int) -> str:
    return bytes(_first(message, number)).decode(errors="replace")


def _all(fields: Iterable[Field], *wanted: int) -> list[memoryview]:
    """The messages in some fields."""
    return [_message(value) for number, value in fields if number in wanted]


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise CheckpointError("it is no ONNX file")
    return value


def _fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message: its number, and a whole number or the bytes of a text, tensor or message."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        if kind == 2:
            length, place = _varint(message, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise CheckpointError("it is no ONNX file")
        if place + length > len(message):
            raise CheckpointError("it is cut short or no ONNX file")
        yield number, message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number in the base of 128, and where the next thing begins."""
    value = 0
    for position in range(10):
        if place + position >= len(message):
            raise CheckpointError("it is cut short or no ONNX file")
        byte = message[place + position]
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return value, place + position + 1
    raise CheckpointError("it is no ONNX file")
