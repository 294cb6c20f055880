"""The structure of a graph's file, read before a runtime opens it: ONNX, or OpenVINO's XML.

A runtime would read weights from any file that the graph names, and does not tell whether the graph
is quantized, how large its tables are or which operator ends it. Of an ONNX file only the structure
is walked (protobuf's wire format, by the field numbers of `onnx.proto`); weights are skipped. The
`onnx` package would read a graph of 2 GB into memory for that, and is larger than the rest of the
`offline` extra.
"""

import mmap
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
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
NODE_INPUT, NODE_OUTPUT, NODE_OPERATOR, EXTERNAL_KEY, EXTERNAL_VALUE = 1, 2, 4, 1, 2
TEXTS = {("node", 1), ("node", 2), ("node", 4), ("external", 1), ("external", 2)}
TENSOR_SHAPE, TENSOR_TYPE = 1, 2
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

# In the names of operators on quantized numbers, in ONNX and in ONNX Runtime's own set.
QUANTIZING = ("quant", "integer", "nbits", "qlinear", "qattention", "qgemm", "qordered", "qmoe")
FLOATS = {1: "fp32", 10: "fp16", 16: "bf16"}
FOUR_BITS = frozenset({21, 22, 23})

# Operators that turn a logit into something else, and those that leave numbers as they are.
SQUASHING = frozenset({
    "Sigmoid", "HardSigmoid", "QLinearSigmoid", "Softmax", "SoftMax", "QLinearSoftmax",
    "LogSoftmax", "Tanh", "Softplus", "SoftPlus", "Softsign", "Relu", "Exp", "Reciprocal",
})  # fmt: skip
PRESERVING = frozenset({
    "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Convert", "Transpose",
    "Slice", "StridedSlice", "Gather", "Expand", "QuantizeLinear", "DequantizeLinear", "Result",
})  # fmt: skip

# From the least exact on; a graph that mixes them has the first one's.
FORMATS = {
    "int4": ("i4", "u4", "nf4"), "int8": ("i8", "u8"), "bf16": ("bf16",), "fp16": ("f16",),
    "fp32": ("f32",),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GraphFile:
    """A graph on disk; `number_format` is that of its matrices: fp32, fp16, bf16, int8 or int4.

    `tables` has the number of rows of each of its matrices, `files` the graph and every file that
    holds its weights. `squashed` has the tensors that are no logits any more, with the operator
    that made them so: a sigmoid's probabilities.
    """

    path: Path
    number_format: str
    tables: frozenset[int]
    files: tuple[Path, ...]
    squashed: Mapping[str, str]

    @property
    def quantized(self) -> bool:
        return self.number_format.startswith("int")


def read_onnx_file(path: Path) -> GraphFile:
    """Walk the graph's structure.

    Raises `CheckpointError` for a file that is missing or damaged, and for weights anywhere but in
    a file beside the graph.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = _Walk(data)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise CheckpointError(f"{path} is missing or empty: {error}; fetch it again") from error
    except (IndexError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is no ONNX file; fetch it again") from error
    for name in sorted(found.external):
        _check_beside(path, name)
    return GraphFile(
        path,
        _number_format(found),
        frozenset(rows for rows, *rest in found.shapes if len(rest) == 1),
        (path, *(path.parent / name for name in sorted(found.external))),
        found.squashed,
    )


def read_openvino_file(path: Path) -> GraphFile:
    """Read the structure of an `.xml`, whose weights are in the `.bin` of the same name.

    Raises `CheckpointError` for a file that is missing or damaged, and for a document type, whose
    entities could fill the memory.
    """
    weights = path.with_suffix(".bin")
    try:
        content = path.read_bytes()
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
            raise CheckpointError(f"{path} declares a document type, which no OpenVINO file does")
        root = ET.fromstring(content)  # noqa: S314 - without entities nothing grows
    except (OSError, ET.ParseError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error}; fetch it again") from error
    if not weights.is_file():
        raise CheckpointError(f"{path} has its weights in {weights.name}, which is not beside it")
    shapes = [
        (data.get("element_type"), [int(n) for n in (data.get("shape") or "").split(",") if n])
        for layer in root.iter("layer")
        if layer.get("type") == "Const" and (data := layer.find("data")) is not None
    ]
    types = {kind for kind, shape in shapes if len(shape) > 1}
    formats = (name for name, kinds in FORMATS.items() if types.intersection(kinds))
    quantizing = any(layer.get("type") == "FakeQuantize" for layer in root.iter("layer"))
    return GraphFile(
        path,
        "int8" if quantizing and "int4" not in types else next(formats, "fp32"),
        frozenset(shape[0] for _, shape in shapes if len(shape) == 2),
        (path, weights),
        _squashed(root),
    )


def squashing(operator: str, given: str | None) -> str | None:
    """The operator that squashed a node's output; `given` is the one that squashed its input."""
    if operator in SQUASHING:
        return operator
    return given if operator in PRESERVING else None


def _check_beside(path: Path, name: str) -> None:
    if not name or name in (".", "..") or any(character in name for character in "/\\:*"):
        raise CheckpointError(
            f"{path} has its weights in {name!r}; only a file beside the graph is ever read: do "
            "not trust this model, or save it again with its weights beside it"
        )
    if not (path.parent / name).is_file():
        raise CheckpointError(
            f"{path} has its weights in {name}, which is not beside it; fetch that too"
        )


def _number_format(found: "_Walk") -> str:
    if any(mark in operator.lower() for operator in found.operators for mark in QUANTIZING):
        return "int4" if found.types & FOUR_BITS else "int8"
    # the least exact, where a graph mixes them
    return FLOATS[max(found.types & FLOATS.keys(), default=1)]


class _Walk:
    """Every operator, every shape and format of a tensor of two dimensions, every outside file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.operators: set[str] = set()
        self.types: set[int] = set()
        self.shapes: set[tuple[int, ...]] = set()
        self.external: set[str] = set()
        self.squashed: dict[str, str] = {}
        self._message("model", 0, len(data))

    def _message(self, kind: str, start: int, end: int) -> None:
        shape: list[int] = []
        types: set[int] = set()
        texts: defaultdict[int, list[str]] = defaultdict(list)
        for number, wire, first, last in self._fields(start, end):
            if (kind, number) in FIELDS:
                self._message(FIELDS[kind, number], first, last)
            elif (kind, number) in TEXTS:
                texts[number].append(self._text(first, last))
            elif kind == "tensor" and number == TENSOR_SHAPE:
                shape += [first] if wire == VARINT else list(self._packed(first, last))
            elif kind == "tensor" and number == TENSOR_TYPE:
                types.add(first)
        if kind == "node":
            self._node(texts)
        elif kind == "external" and "location" in texts[EXTERNAL_KEY]:
            self.external.update(texts[EXTERNAL_VALUE] or [""])
        if len(shape) == 2:
            self.shapes.add(tuple(shape))
            self.types |= types

    def _node(self, texts: Mapping[int, list[str]]) -> None:
        (operator,) = texts[NODE_OPERATOR][-1:] or [""]
        self.operators.add(operator)
        # nodes stand in the order in which they run
        given = next((self.squashed.get(name) for name in texts[NODE_INPUT]), None)
        if made_by := squashing(operator, given):
            self.squashed |= dict.fromkeys(texts[NODE_OUTPUT], made_by)

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Number and wire type of each field; then a varint's value, or where its bytes lie."""
        place = start
        while place < end:
            key, place = self._varint(place)
            number, wire = key >> 3, key & 7
            if wire == VARINT:
                value, place = self._varint(place)
                yield number, wire, value, value
                continue
            if wire == BYTES:
                length, place = self._varint(place)
            else:
                length = {FIXED64: 8, FIXED32: 4}.get(wire, end)
            if place + length > end:
                raise IndexError("a field that is longer than the file")
            yield number, wire, place, place + length
            place += length

    def _packed(self, start: int, end: int) -> Iterator[int]:
        place = start
        while place < end:
            value, place = self._varint(place)
            yield value

    def _varint(self, place: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = self._data[place]
            value |= (byte & 127) << shift
            place, shift = place + 1, shift + 7
            if byte < 128:
                return value, place
            if shift > 63:
                raise IndexError("a number of more than ten bytes")

    def _text(self, start: int, end: int) -> str:
        return self._data[start:end].decode("utf-8")


def _squashed(root: ET.Element) -> dict[str, str]:
    """See `GraphFile.squashed`."""
    first = {
        edge.get("to-layer"): edge.get("from-layer")
        for edge in root.iterfind("edges/edge")
        if edge.get("to-port") == "0"
    }
    found: dict[str | None, str] = {}
    names: dict[str, str] = {}
    for layer in root.iterfind("layers/layer"):  # in the order in which they run
        number = layer.get("id")
        made = squashing(layer.get("type") or "", found.get(first.get(number)))
        if made is not None:
            found[number] = made
            for port in layer.iterfind("output/port"):
                names |= dict.fromkeys((port.get("names") or "").split(","), made)
    return names
