"""The forward pass of an encoder's ONNX graph on the CPU, on either runtime.

It runs one small batch on each core at once: on two cores that took 0.8 of the time of one batch on
all threads. In a dynamically quantized graph each sequence runs alone, because such a graph scales
its activations over the whole batch: a pair's score would depend on its neighbours and on their
padding (by 0.4 of a logit in the embedded reranker).
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_rerank_integrations.errors import CheckpointError, UnsupportedModel
from bge_rerank_integrations.local.device import DevicePlan, cpu_kernels
from bge_rerank_integrations.local.engine import plan_batches
from bge_rerank_integrations.local.memory import is_out_of_memory
from bge_rerank_integrations.local.onnx_backend.file import GraphFile
from bge_rerank_integrations.local.padding import padded, padding_error, probe
from bge_rerank_integrations.local.st_config import ModelOutput
from bge_rerank_integrations.local.text.tokenizer import TokenSequence
from bge_rerank_integrations.types import FloatArray

INTEGERS: dict[str, type[np.int64] | type[np.int32]] = {
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "i64": np.int64, "i32": np.int32,
}  # fmt: skip
"""The integers of an input, by the names that ONNX Runtime and OpenVINO have for them."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# The caller's time limit and cancellation are checked between two batches.
TOKENS_PER_CORE = 1024
# Tokens that one core computes at once: larger matrices were not faster.
TOKENS_AT_ONCE = 512


class Runtime(Protocol):
    """A graph that a runtime has loaded; `infer` may be called from any number of threads."""

    name: str
    number_format: str
    """The number format it computes in, as `Scorer.name` says it."""
    reasons: tuple[str, ...]
    inputs: Mapping[str, str]
    """The type of each input of the graph, in the runtime's own words."""
    outputs: Mapping[str, tuple[int | None, ...]]
    """The shape of each output; a size is None where the input decides it."""
    errors: tuple[type[Exception], ...]
    """The errors for an input that the graph cannot take."""

    def infer(self, feed: Mapping[str, NDArray[Any]], output: str) -> NDArray[Any]:
        """That output for these inputs."""
        ...


@dataclass(frozen=True, slots=True)
class GraphPlan(DevicePlan):
    """The decisions and their reasons; print it to read them."""

    runtime: str
    number_format: str
    kernels: str | None
    """Named where a score depends on them beyond float32's rounding: in quantized graphs."""

    @property
    def precision(self) -> str:
        """The number format of the graph's matrices in one word."""
        return self.number_format

    @property
    def arithmetic(self) -> str:
        return self.number_format if self.kernels is None else f"{self.precision}-{self.kernels}"

    def __str__(self) -> str:
        tokens = min(TOKENS_AT_ONCE, self.max_batch_tokens)
        together = self.attention == "padded"
        how = f"batches of {tokens} tokens" if together else "one sequence at a time"
        head = f"{self.device}, {self.precision}, {self.runtime}, {how} per core"
        return "\n".join([head, *(f"  - {reason}" for reason in self.reasons)])


@dataclass(frozen=True, slots=True)
class GraphUse:
    """How a graph is used, by its model's files.

    A row has a logit for each of `labels`, or is the vector of the first token or the mean of all
    tokens'. `vocabulary` bounds the ids, `padding` is the id put after a sequence, and `segments`
    says whether the second text has token type 1.
    """

    output: ModelOutput
    vocabulary: int
    padding: int
    segments: bool
    labels: int = 1


class GraphEncoder:
    """A graph of an encoder and its head; see `engine.Forward`.

    Raises `UnsupportedModel` for a graph with other inputs or outputs than an encoder's, and
    `CheckpointError` for one that cannot run as `use` says.
    """

    padded = False
    max_sequences: int | None = None

    def __init__(self, runtime: Runtime, file: GraphFile, use: GraphUse) -> None:
        self._runtime, self._file, self._use = runtime, file, use
        _check_inputs(runtime, file)
        self._output = _checked_output(runtime, file, use)
        why_alone = self._why_alone()
        self._most = None if why_alone is None else 1
        cores = usable_cores()
        self.concurrency = cores  # the workers are the bound, whichever caller a sequence is of
        self._workers = ThreadPoolExecutor(cores, "bge-rerank-graph")
        how = f"padded batches of {TOKENS_AT_ONCE} tokens: agree with each row alone"
        if why_alone is not None:
            how = f"one sequence at a time: {why_alone}"
        reasons = [*runtime.reasons, how, f"one thread for each of {cores} cores"]
        kernels = cpu_kernels() if file.quantized else None
        if kernels is not None:
            # Activations are rounded to 8 bits, and other kernels give other last bits in float32:
            # at the border between two steps that is a whole step.
            reasons.append(f"{kernels} kernels: others round differently, by hundredths of a logit")
        self.plan: DevicePlan = GraphPlan(
            device="cpu",
            dtype="float32",
            autocast=False,
            attention="padded" if why_alone is None else "runs",
            max_batch_tokens=TOKENS_PER_CORE * cores,
            reasons=tuple(reasons),
            runtime=runtime.name,
            number_format=runtime.number_format,
            kernels=kernels,
        )

    def run(
        self,
        batch: Sequence[TokenSequence],
        *,
        exact: bool = False,  # noqa: ARG002 - a graph has the one number format it was saved in
    ) -> FloatArray:
        lengths = [len(sequence.ids) for sequence in batch]
        # smaller where that gives every core some of the work
        share = -(-sum(lengths) // self.concurrency)
        parts = plan_batches(
            lengths,
            max_tokens=min(TOKENS_AT_ONCE, share),
            max_sequences=self._most,
            padded=True,
        )

        def work(part: Sequence[int]) -> FloatArray:
            return self._rows([batch[index] for index in part])

        try:
            found = self._workers.map(work, parts)
        except RuntimeError:  # the interpreter is ending, and pools take no more work
            found = map(work, parts)
        rows = np.concatenate(list(found))
        in_order = np.empty_like(rows)
        in_order[[index for part in parts for index in part]] = rows
        return in_order

    def release_memory(self) -> None:
        """Nothing: a runtime keeps its memory for the next call, and gives it up with the graph."""

    def _rows(self, batch: Sequence[TokenSequence]) -> FloatArray:
        out = self._runtime.infer(self._feed(batch), self._output)
        logits, labels = self._use.output == "logit", self._use.labels
        if len(out) != len(batch) or (logits and out.size != len(batch) * labels):
            raise CheckpointError(
                f"{self._file.path} gives an output of shape {out.shape} for {len(batch)} sequences"
                + (f", and config.json says that the model has {labels} label(s)" if logits else "")
            )
        if out.ndim == 3 and self._use.output == "mean":
            out = np.stack(
                [row[: len(s.ids)].mean(axis=0) for row, s in zip(out, batch, strict=True)]
            )
        elif out.ndim == 3:
            out = out[:, 0]
        rows: FloatArray = out.reshape(len(batch), -1).astype(np.float32, copy=False)
        return rows

    def _feed(self, batch: Sequence[TokenSequence]) -> dict[str, NDArray[Any]]:
        arrays = padded(batch, self._use.padding)
        arrays["token_type_ids"] *= self._use.segments
        kinds = self._runtime.inputs.items()
        return {name: arrays[name].astype(INTEGERS[kind], copy=False) for name, kind in kinds}

    def _why_alone(self) -> str | None:
        """Why sequences must not share a batch, or None where they may; tried on two of them."""
        vocabulary = self._use.vocabulary
        short, long = (probe(length, vocabulary, self._use.padding) for length in (3, 7))
        try:
            alone = np.concatenate([self._rows([short]), self._rows([long])])
        except self._runtime.errors as error:
            if is_out_of_memory(error):
                raise
            raise CheckpointError(
                f"{self._file.path} cannot run one sequence of 3 tokens and one of {len(long.ids)} "
                f"from a vocabulary of {vocabulary}: it was exported for one batch size or length "
                "(export it with dynamic axes), or it does not belong to this config.json and "
                f"tokenizer: ...{' '.join(str(error).split())[-200:]}"
            ) from error
        if self._file.quantized:
            return f"in {self._file.number_format} neighbours would count"
        refused: tuple[type[Exception], ...] = (*self._runtime.errors, CheckpointError)
        try:
            together = self._rows([short, long])
        except refused as error:
            if is_out_of_memory(error):
                raise
            return f"the graph takes no batch ({first_line(error)})"
        return padding_error(together, alone)


def usable_cores() -> int:
    """The cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux: a container or taskset may allow fewer
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def first_line(error: Exception) -> str:
    """The first line of a runtime's message, which goes on with its own source files."""
    return (str(error).splitlines() or [""])[0]


def _check_inputs(runtime: Runtime, file: GraphFile) -> None:
    for name, kind in runtime.inputs.items():
        if name not in INPUTS or kind not in INTEGERS:
            raise UnsupportedModel(
                f"{file.path} asks for an input {name!r} of {kind}; supported: "
                f"{', '.join(INPUTS)} of {', '.join(INTEGERS)}"
            )


def _checked_output(runtime: Runtime, file: GraphFile, use: GraphUse) -> str:
    """The name of the one output that has the shape that `use` needs, or may have it."""
    output, width = use.output, (use.labels,)
    if output == "logit":
        widths = (width, ()) if use.labels == 1 else (width,)
        known = [name for name, shape in runtime.outputs.items() if shape[1:] in widths]
        fitting = known or [n for n, shape in runtime.outputs.items() if shape[1:] == (None,)]
    else:
        fitting = [name for name, shape in runtime.outputs.items() if len(shape) == 3]
    if len(fitting) != 1:
        wanted = f"[batch, {use.labels}]" if output == "logit" else "[batch, tokens, width]"
        shapes = {n: str(list(s)).replace("None", "?") for n, s in runtime.outputs.items()}
        has = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise UnsupportedModel(f"{file.path} needs one output of shape {wanted}; it has {has}")
    if output == "logit" and (made_by := file.squashed.get(fitting[0])):
        raise UnsupportedModel(
            f"{file.path} ends in {made_by}, so it gives no logits, which scores are ranked and "
            "calibrated by: export the model again without it, or use backend='torch'"
        )
    return fitting[0]
