"""The structure of a graph's file, read before a runtime opens it: ONNX, or OpenVINO's XML.

A runtime reads weights from any file that the graph names. It does not say whether the graph is
quantized, how large its tables are or which operator ends it. Of an ONNX file only the structure is
read (protobuf's wire format, by the field numbers of `onnx.proto`) and weights are skipped: the
`onnx` package would read a graph of 2 GB into memory, and is larger than the rest of the `offline`
extra.
"""

import mmap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

from bge_rerank_integrations.errors import CheckpointError

# Message, field: what the field holds. https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
FIELDS: dict[tuple[str, int], str] = {
    (message, number): held
    for message, fields in {
        "model": {7: "graph", 20: "training", 25: "function"},
        "training": {1: "graph", 2: "graph"},
        "graph": {1: "node", 5: "tensor", 15: "sparse"},
        "function": {7: "node", 11: "attribute"},
        "node": {5: "attribute"},
        "attribute": {
            5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse",
        },
        "sparse": {1: "tensor", 2: "tensor"},
        "tensor": {13: "external"},
    }.items()
    for number, held in fields.items()
}  # fmt: skip
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# The numbers of onnx.proto for the types that OpenVINO calls so.
TYPES = {2: "u8", 3: "i8", 10: "f16", 16: "bf16", 21: "u4", 22: "i4", 23: "f4"}
# The least exact comes first: a graph that mixes formats counts as the first that it has.
FORMATS = {
    "int4": {"i4", "u4", "nf4", "f4"}, "int8": {"i8", "u8"}, "bf16": {"bf16"}, "fp16": {"f16"},
}  # fmt: skip
# In the names of operators on quantized numbers, in ONNX, ONNX Runtime's own set and OpenVINO.
QUANTIZING = ("quant", "integer", "nbits", "qlinear", "qattention", "qgemm", "qordered", "qmoe")
# Operators that turn a logit into something else, and those that leave numbers as they are.
SQUASHING = frozenset({
    "Sigmoid", "HardSigmoid", "QLinearSigmoid", "Softmax", "SoftMax", "QLinearSoftmax",
    "LogSoftmax", "Tanh", "Softplus", "SoftPlus", "Softsign", "Relu", "Exp", "Reciprocal",
})  # fmt: skip
PRESERVING = frozenset({
    "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Convert", "Transpose",
    "Slice", "StridedSlice", "Gather", "Expand", "QuantizeLinear", "DequantizeLinear", "Result",
})  # fmt: skip
# Operators with which a sigmoid is spelt out, as 1 / (1 + exp(-x)).
ARITHMETIC = frozenset({
    "Add", "Div", "Divide", "Mul", "Multiply", "Neg", "Negative", "Pow", "Power", "Sub", "Subtract",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class GraphFile:
    """A graph on disk; `number_format` is that of its matrices: fp32, fp16, bf16, int8 or int4.

    `tables` has the number of rows of each of its matrices, `files` the graph and every file that
    holds its weights. `squashed` maps each tensor that is not a logit, such as a sigmoid's
    probabilities, to the operator that made it.
    """

    path: Path
    number_format: str
    tables: frozenset[int]
    files: tuple[Path, ...]
    squashed: Mapping[str, str]

    @property
    def quantized(self) -> bool:
        return self.number_format.startswith("int")


class _Node(NamedTuple):
    operator: str
    inputs: Sequence[str]
    outputs: Sequence[str]


@dataclass(slots=True)
class _Structure:
    """Nodes in the order in which they run; type and shape of each constant; files of weights."""

    nodes: list[_Node] = field(default_factory=list)
    constants: list[tuple[str, Sequence[int]]] = field(default_factory=list)
    weights: set[str] = field(default_factory=set)


def read_graph_file(path: Path) -> GraphFile:
    """Read the structure of an ONNX file, or of an `.xml` whose weights are in its `.bin`.

    Raises `CheckpointError` for a file that is missing or damaged, for weights anywhere but in a
    file next to the graph, and for XML with a document type, whose entities could fill the memory.
    """
    try:
        found = _read_xml(path) if path.suffix == ".xml" else _read_onnx(path)
    except (OSError, ValueError, ET.ParseError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error}; fetch it again") from error
    for name in found.weights:
        _check_beside(path, name)
    matrices = {kind for kind, shape in found.constants if len(shape) > 1}
    number_format = next((f for f, kinds in FORMATS.items() if kinds & matrices), "fp32")
    operators = {node.operator.lower() for node in found.nodes}
    if number_format != "int4" and any(mark in o for o in operators for mark in QUANTIZING):
        number_format = "int8"
    return GraphFile(
        path,
        number_format,
        frozenset(shape[0] for _, shape in found.constants if len(shape) == 2),
        (path, *(path.parent / name for name in sorted(found.weights))),
        _squashed(found.nodes),
    )


def _squashed(nodes: Sequence[_Node]) -> dict[str, str]:
    """See `GraphFile.squashed`."""
    found: dict[str, str] = {}
    for operator, inputs, outputs in nodes:
        read = inputs if operator in ARITHMETIC else inputs[: operator in PRESERVING]
        made_by = next((found[name] for name in read if name in found), None)
        if operator in SQUASHING:
            made_by = operator
        if made_by is not None:
            found |= dict.fromkeys(outputs, made_by)
    return found


def _check_beside(path: Path, name: str) -> None:
    if not name or name in (".", "..") or any(character in name for character in "/\\:*"):
        raise CheckpointError(
            f"{path} has its weights in {name!r}; only a file next to the graph is ever read: do "
            "not trust this model, or save it again with its weights next to it"
        )
    if not (path.parent / name).is_file():
        raise CheckpointError(
            f"{path} has its weights in {name}, which is not next to it; fetch that too"
        )


def _read_xml(path: Path) -> _Structure:
    content = path.read_bytes()
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise CheckpointError(f"{path} declares a document type, which no OpenVINO file does")
    root = ET.fromstring(content)  # noqa: S314 - without entities nothing grows
    found = _Structure(weights={path.with_suffix(".bin").name})
    # each graph inside another numbers its layers anew
    graphs = (part for part in root.iter() if part.find("layers") is not None)
    for place, graph in enumerate(graphs):
        inputs: defaultdict[str | None, list[str]] = defaultdict(list)
        edges = graph.iterfind("edges/edge")
        for edge in sorted(edges, key=lambda edge: int(edge.get("to-port") or 0)):
            inputs[edge.get("to-layer")].append(f"layer {place}.{edge.get('from-layer')}")
        for layer in graph.iterfind("layers/layer"):
            kind, number, data = layer.get("type") or "", layer.get("id"), layer.find("data")
            ports = layer.iterfind("output/port")
            names = [name for port in ports for name in (port.get("names") or "").split(",")]
            found.nodes.append(_Node(kind, inputs[number], [f"layer {place}.{number}", *names]))
            if kind == "Const" and data is not None:
                sizes = (data.get("shape") or "").split(",")
                shape = [int(size) for size in sizes if size]
                found.constants.append((data.get("element_type") or "", shape))
    return found


def _read_onnx(path: Path) -> _Structure:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = _Structure()
        try:
            _read_message("model", data, 0, len(data), found)
        except (IndexError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError("it is not an ONNX file") from error
        return found


def _read_message(kind: str, data: mmap.mmap, start: int, end: int, found: _Structure) -> None:
    """Add what the message holds, and every message inside."""
    texts: defaultdict[int, list[str]] = defaultdict(list)
    shape: list[int] = []
    element_type = ""
    for number, wire, first, last in _fields(data, start, end):
        match kind, number:
            case held if held in FIELDS:
                _read_message(FIELDS[held], data, first, last, found)
            case ("node", 1 | 2 | 4) | ("external", 1 | 2):
                texts[number].append(data[first:last].decode("utf-8"))
            case "tensor", 1:
                shape += [first] if wire == VARINT else _packed(data, first, last)
            case "tensor", 2:
                element_type = TYPES.get(first, "")
    if kind == "node":
        found.nodes.append(_Node("".join(texts[4][-1:]), texts[1], texts[2]))
    elif kind == "external" and "location" in texts[1]:
        found.weights.update(texts[2] or [""])
    elif kind == "tensor":
        found.constants.append((element_type, shape))


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number and wire type of each field; then a varint's value, or where its bytes lie."""
    place = start
    while place < end:
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, place = _varint(data, place)
            yield number, wire, value, value
            continue
        if wire == BYTES:
            length, place = _varint(data, place)
        else:
            length = {FIXED64: 8, FIXED32: 4}.get(wire, end)
        if place + length > end:
            raise IndexError("a field that is longer than the file")
        yield number, wire, place, place + length
        place += length


def _packed(data: mmap.mmap, start: int, end: int) -> list[int]:
    values, place = [], start
    while place < end:
        value, place = _varint(data, place)
        values.append(value)
    return values


def _varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
    raise IndexError("a number of more than ten bytes")
