"""Steps from the rows of a model's forward to embeddings or scores, on any backend.

They are the modules that sentence-transformers runs after a pooling, and the choice of one label of
several. A row is computed in float64, so that its score does not depend on its neighbours.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_rerank_integrations.errors import CheckpointError, UnsupportedModel
from bge_rerank_integrations.types import FloatArray

Rows = NDArray[np.float64]
Step = Callable[[Rows], Rows]
# safetensors' names of the formats of weights, and how numpy reads their bytes
FORMATS: dict[str, type[np.generic]] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16,
}  # fmt: skip


def _erf(x: Rows) -> Rows:
    return np.array([math.erf(number) for number in x.flat]).reshape(x.shape)


ACTIVATIONS: dict[str, Step] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "Sigmoid": lambda x: 0.5 * (1 + np.tanh(x / 2)),
    "ReLU": lambda x: np.maximum(x, 0),
    "SiLU": lambda x: x * 0.5 * (1 + np.tanh(x / 2)),
    "GELU": lambda x: x * 0.5 * (1 + _erf(x / math.sqrt(2))),
}
"""torch.nn's activations by the names of their classes, as they are without arguments."""


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """Steps from a model's rows to an embedding or a score; without steps rows stay as they are."""

    steps: tuple[Step, ...] = ()
    description: str = ""
    """The caller's choices, for `Scorer.name`; the model's files determine the rest."""

    def __call__(self, rows: FloatArray) -> FloatArray:
        if not self.steps:
            return rows
        found = rows.astype(np.float64)
        for step in self.steps:
            found = step(found)
        return found.astype(np.float32)


NO_HEAD = Head()


def read_tensors(folder: Path, shapes: Mapping[str, tuple[int | None, ...]]) -> dict[str, Rows]:
    """The tensors of a module's `model.safetensors`.

    Raises `CheckpointError` unless the file holds exactly the tensors of these shapes.
    """
    file = folder / "model.safetensors"
    if not file.is_file():
        raise CheckpointError(
            f"{file} is missing; weights in a pickle are never loaded: save the model again with "
            "sentence-transformers, which writes safetensors"
        )
    # here, because most models have no such module, and a graph needs no safetensors
    from safetensors import SafetensorError, deserialize

    try:
        stored = deserialize(file.read_bytes())  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged ({error}); fetch it again") from error
    has = {name: tuple(tensor["shape"]) for name, tensor in stored}
    if has != dict(shapes):
        raise CheckpointError(f"{file} holds {has}, and its config.json asks for {shapes}")
    for name, tensor in stored:
        if tensor["dtype"] not in FORMATS:
            raise UnsupportedModel(
                f"{file} holds {name!r} as {tensor['dtype']}; supported: {', '.join(FORMATS)}"
            )
    return {name: _array(**tensor) for name, tensor in stored}


def _array(data: bytes, dtype: str, shape: Sequence[int]) -> Rows:
    flat = np.frombuffer(data, FORMATS[dtype])
    if dtype == "BF16":  # the upper half of a float32
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    array: Rows = flat.astype(np.float64).reshape(shape)
    return array


def dense(
    weight: Rows,
    bias: Rows | None,
    activation: str,
    *,
    residual: bool = False,
    projection: Rows | None = None,
) -> Step:
    """sentence-transformers' `Dense`: activation(x W^T + b); a residual adds x, or x P^T."""
    function = ACTIVATIONS[activation]

    def step(x: Rows) -> Rows:
        out = function(x @ weight.T + (0 if bias is None else bias))
        if not residual:
            return out
        return out + (x if projection is None else x @ projection.T)

    return step


def layer_norm(weight: Rows, bias: Rows) -> Step:
    """Torch's LayerNorm with its default epsilon of 1e-5."""

    def step(x: Rows) -> Rows:
        deviation = np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
        normed: Rows = (x - x.mean(axis=1, keepdims=True)) / deviation * weight + bias
        return normed

    return step


def unit_length(x: Rows) -> Rows:
    """Each row divided by its length."""
    lengths: Any = np.linalg.norm(x, axis=1, keepdims=True)
    unit: Rows = x / np.maximum(lengths, 1e-12)
    return unit


def first_dimensions(count: int) -> Step:
    """The first `count` numbers of each row."""
    return lambda x: x[:, :count]


def one_label(index: int, *, independent: bool) -> Step:
    """The log-odds of one label, whose sigmoid is the label's probability.

    Labels that exclude each other have the probabilities softmax(x), whose log-odds are
    x_i - log(sum of exp(x_j) for all j != i). `independent` labels have sigmoid(x_i) each.
    """

    def step(x: Rows) -> Rows:
        chosen = x[:, index : index + 1]
        if independent:
            return chosen
        rest = np.logaddexp.reduce(np.delete(x, index, axis=1), axis=1, keepdims=True)
        odds: Rows = chosen - rest
        return odds

    return step
