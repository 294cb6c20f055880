"""A forward over ONNX Runtime, on the CPU: each sequence alone, as many at once as there are cores.

Alone, because a dynamically quantized graph scales its activations over everything it is given: in
a batch, a pair's score would depend on its neighbours and on their padding (by 0.4 of a logit in
the embedded reranker). And because it is the fastest: one thread for each sequence took less time
than a batch on all threads, for int8 and for float32 graphs.
"""

import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnxruntime.capi import (  # type: ignore[import-untyped]
    onnxruntime_pybind11_state as ort_errors,
)

from bge_rerank_integrations.errors import CheckpointError, UnsupportedModel
from bge_rerank_integrations.local.device import DevicePlan
from bge_rerank_integrations.local.tokens import TokenSequence
from bge_rerank_integrations.types import FloatArray

Output = Literal["logit", "cls", "mean"]

INPUTS: dict[str, Callable[[TokenSequence], NDArray[Any]]] = {
    "input_ids": lambda sequence: sequence.ids,
    "attention_mask": lambda sequence: np.ones_like(sequence.ids),
    "token_type_ids": lambda sequence: np.arange(len(sequence.ids)) >= sequence.first_segment,
}
INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
# ONNX Runtime has an error for each status and no common one, and none for memory.
ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)
MEMORY_MESSAGES = ("Failed to allocate memory", "std::bad_alloc", "bad allocation")
# A batch is what runs between two looks at whether the caller still wants it.
TOKENS_PER_CORE = 1024


@dataclass(frozen=True, slots=True)
class OnnxPlan(DevicePlan):
    """What was decided: print it to see why."""

    quantized: bool

    @property
    def precision(self) -> str:
        """The number format of the graph's matrices in one word, as it appears in `Scorer.name`."""
        return "int8" if self.quantized else "fp32"

    def __str__(self) -> str:
        head = f"{self.device}, {self.precision}, ONNX Runtime, one sequence at a time per core"
        return "\n".join([head, *(f"  - {reason}" for reason in self.reasons)])


class OnnxEncoder:
    """A graph of an encoder and its head; see `engine.Forward`.

    `output` says what a row is: the graph's one logit, or the vector of the first token or the
    mean of all tokens' from its [batch, tokens, width] output. `reasons` open the plan's own.
    Raises `UnsupportedModel` for a graph with other inputs or outputs than these, and
    `CheckpointError` for a file that ONNX Runtime cannot load.
    """

    padded = False
    max_sequences: int | None = None

    def __init__(self, graph: Path, output: Output, *, reasons: Sequence[str] = ()) -> None:
        cores = usable_cores()
        self.plan: DevicePlan = _plan(graph, cores, reasons)
        self.concurrency = cores  # the workers are the bound, whichever caller a sequence is of
        self._mean = output == "mean"
        self._session = _open(graph)
        self._inputs = _inputs(self._session, graph)
        self._output = _output(self._session, graph, output)
        self._workers = ThreadPoolExecutor(cores, "bge-rerank-onnx")

    def run(
        self,
        batch: Sequence[TokenSequence],
        *,
        exact: bool = False,  # noqa: ARG002 - a graph has the one number format it was saved in
    ) -> FloatArray:
        return np.stack(list(self._workers.map(self._row, batch)))

    def is_out_of_memory(self, error: Exception) -> bool:
        if isinstance(error, MemoryError):
            return True
        known = isinstance(error, ort_errors.Fail | ort_errors.RuntimeException)
        return known and any(message in str(error) for message in MEMORY_MESSAGES)

    def release_memory(self) -> None:
        """Nothing: the session's arena is reused by the next call and goes with the session."""

    def _row(self, sequence: TokenSequence) -> FloatArray:
        feed = {name: INPUTS[name](sequence)[None].astype(kind) for name, kind in self._inputs}
        (out,) = self._session.run([self._output], feed)
        if out.ndim == 3:
            out = out[0].mean(axis=0) if self._mean else out[0, 0]
        row: FloatArray = out.reshape(-1).astype(np.float32, copy=False)
        return row


def usable_cores() -> int:
    """The cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux: a container or taskset may allow fewer
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _plan(graph: Path, cores: int, reasons: Sequence[str]) -> OnnxPlan:
    quantized = _is_quantized(graph)
    return OnnxPlan(
        device="cpu",
        dtype="float32",
        autocast=False,
        attention="runs",
        max_batch_tokens=TOKENS_PER_CORE * cores,
        reasons=(
            *reasons,
            f"device cpu: ONNX Runtime {onnxruntime.__version__}, its CPU provider",
            f"precision {'int8' if quantized else 'fp32'}: as the file has it, whatever is asked",
            f"one sequence at a time on each of {cores} cores: no score depends on its neighbours",
        ),
        quantized=quantized,
    )


def _is_quantized(graph: Path) -> bool:
    """Whether the graph quantizes anything; names of operators stand in the file as plain text."""
    try:
        with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(b"QuantizeLinear") >= 0
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise CheckpointError(f"{graph} is missing or empty: {error}; fetch it again") from error


def _open(graph: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # Plans memory once for each length of input and keeps every plan.
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # errors are raised; ONNX Runtime would print them as well
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except ERRORS as error:
        raise CheckpointError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {graph}, which is damaged or "
            f"newer than it: {_first_line(error)}"
        ) from error


def _inputs(session: onnxruntime.InferenceSession, graph: Path) -> list[tuple[str, type[Any]]]:
    """The graph's inputs, each with the integers it takes."""
    found = []
    for node in session.get_inputs():
        if node.name not in INPUTS or node.type not in INTEGERS:
            raise UnsupportedModel(
                f"{graph} asks for an input {node.name!r} of {node.type}; supported: "
                f"{', '.join(INPUTS)} as int64 or int32"
            )
        found.append((node.name, INTEGERS[node.type]))
    return found


def _output(session: onnxruntime.InferenceSession, graph: Path, output: Output) -> str:
    """The name of the one output that has the shape that is wanted."""
    nodes = session.get_outputs()
    if output == "logit":
        fitting: list[str] = [n.name for n in nodes if len(n.shape) == 1 or n.shape[1:] == [1]]
    else:
        fitting = [n.name for n in nodes if len(n.shape) == 3]
    if len(fitting) != 1:
        shape = "[batch, 1]" if output == "logit" else "[batch, tokens, width]"
        has = ", ".join(f"{node.name} {node.shape}" for node in nodes)
        raise UnsupportedModel(f"{graph} needs one output of shape {shape}; it has {has}")
    return fitting[0]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
