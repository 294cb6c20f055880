"""What an ONNX file is, read off the file itself before a runtime opens it.

A runtime would read its weights from any file that the graph names, and says neither whether the
graph is quantized nor how large its tables are. Only the file's structure is walked (protobuf's
wire format, by the field numbers of `onnx.proto`); weights are skipped.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bge_rerank_integrations.errors import CheckpointError

# Message, field: what the field holds. https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
FIELDS: dict[tuple[str, int], str] = {
    ("model", 7): "graph",
    ("model", 20): "training",
    ("model", 25): "function",
    ("training", 1): "graph",
    ("training", 2): "graph",
    ("graph", 1): "node",
    ("graph", 5): "tensor",
    ("graph", 15): "sparse",
    ("function", 7): "node",
    ("function", 11): "attribute",
    ("node", 5): "attribute",
    ("attribute", 5): "tensor",
    ("attribute", 6): "graph",
    ("attribute", 10): "tensor",
    ("attribute", 11): "graph",
    ("attribute", 22): "sparse",
    ("attribute", 23): "sparse",
    ("sparse", 1): "tensor",
    ("sparse", 2): "tensor",
    ("tensor", 13): "external",
}
NODE_OPERATOR, TENSOR_SHAPE, TENSOR_TYPE, EXTERNAL_KEY, EXTERNAL_VALUE = 4, 1, 2, 1, 2
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

# In the names of operators on quantized numbers, in ONNX and in ONNX Runtime's own set.
QUANTIZING = ("quant", "integer", "nbits", "qlinear", "qattention", "qgemm", "qordered", "qmoe")
FLOATS = {1: "fp32", 10: "fp16", 16: "bf16"}
FOUR_BITS = frozenset({21, 22, 23})


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A graph on disk; `number_format` is that of its matrices: fp32, fp16, bf16, int8 or int4.

    `tables` has the number of rows of each of its matrices, `files` the graph and every file that
    holds its weights.
    """

    path: Path
    number_format: str
    tables: frozenset[int]
    files: tuple[Path, ...]

    @property
    def quantized(self) -> bool:
        return self.number_format.startswith("int")


def read_onnx_file(path: Path) -> OnnxFile:
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
    return OnnxFile(
        path,
        _number_format(found),
        frozenset(rows for rows, *rest in found.shapes if len(rest) == 1),
        (path, *(path.parent / name for name in sorted(found.external))),
    )


def _check_beside(path: Path, name: str) -> None:
    if not name or name in (".", "..") or any(character in name for character in "/\\:*"):
        raise CheckpointError(
            f"{path} wants its weights from {name!r}; only a file beside the graph is ever read: "
            "do not trust this model, or save it again with its weights beside it"
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
        self._message("model", 0, len(data))

    def _message(self, kind: str, start: int, end: int) -> None:
        shape: list[int] = []
        types: set[int] = set()
        entry: dict[int, str] = {}
        for number, wire, first, last in self._fields(start, end):
            if (kind, number) in FIELDS:
                self._message(FIELDS[kind, number], first, last)
            elif kind == "node" and number == NODE_OPERATOR:
                self.operators.add(self._text(first, last))
            elif kind == "tensor" and number == TENSOR_SHAPE:
                shape += [first] if wire == VARINT else list(self._packed(first, last))
            elif kind == "tensor" and number == TENSOR_TYPE:
                types.add(first)
            elif kind == "external" and number in (EXTERNAL_KEY, EXTERNAL_VALUE):
                entry[number] = self._text(first, last)
        if entry.get(EXTERNAL_KEY) == "location":
            self.external.add(entry.get(EXTERNAL_VALUE, ""))
        if len(shape) == 2:
            self.shapes.add(tuple(shape))
            self.types |= types

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
