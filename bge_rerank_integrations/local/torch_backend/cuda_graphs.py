"""Small batches on CUDA as recorded graphs: one launch instead of more than a hundred.

The device finishes a small batch before Python has launched all of its kernels. A graph is recorded
for fixed sizes, and a batch is filled up to them: unused rows lie outside every sequence, unused
sequences are empty, and no kernel needs a mask. After recording, the graph's rows are compared with
the plain forward's, on other texts than those recorded. If they differ by more than rounding, or
recording fails, that size always uses the plain forward, and the plan says so.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bge_rerank_integrations.base.fork import Lock
from bge_rerank_integrations.local.device import Attention
from bge_rerank_integrations.local.torch_backend.transfer import Array, pack, unpack

# Sizes are estimates, not measured. Batches of more tokens keep any device busy without a graph.
TOKENS = (256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
SEQUENCES = (16, 64)
LONGEST = (128, 512)
MOST_GRAPHS = 12
SIGHTINGS = 2

# kernels that read running totals on the device; nested tensors copy them to the host
RECORDABLE: tuple[Attention, ...] = ("varlen", "efficient")

# Largest difference to the plain forward, as a share of the largest value: the sizes of the
# products differ, so their sums are rounded in another order.
LARGEST_DIFFERENCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}


@dataclass(frozen=True, slots=True)
class Bucket:
    """The sizes of a graph: rows, sequences, and the longest sequence it takes."""

    tokens: int
    sequences: int
    longest: int


_recording = Lock()  # torch allows one recording at a time in a process

Compute = Callable[[Mapping[str, Tensor], Bucket], Tensor]
"""Rows, [bucket.sequences, width], of arrays that are on the device."""
Replay = Callable[[], Tensor]
Record = Callable[[Replay], Replay]
"""Run the work once; return a function that repeats it on the same memory."""


def bucket_of(lengths: list[int]) -> Bucket | None:
    """The smallest bucket for sequences of these lengths; None if they fit in none."""
    sizes = (sum(lengths), TOKENS), (len(lengths), SEQUENCES), (max(lengths), LONGEST)
    found = [next((size for size in known if size >= need), None) for need, known in sizes]
    tokens, sequences, longest = found
    if tokens is None or sequences is None or longest is None:
        return None
    return Bucket(tokens, sequences, longest)


def fill_up(arrays: Mapping[str, Array], bucket: Bucket) -> dict[str, Array]:
    """A batch's arrays, padded to the bucket's sizes: the padding changes no other row."""
    filled = {}
    for name, array in arrays.items():
        if name in ("attention_queries", "attention_ones"):
            # running totals: a sequence that ends where it begins is empty
            filled[name] = np.pad(array, (0, bucket.sequences + 1 - len(array)), mode="edge")
        else:
            size = bucket.sequences if name == "first" else bucket.tokens
            filled[name] = np.pad(array, (0, size - len(array)))
    return filled


@dataclass(frozen=True, slots=True)
class Graph:
    """A recorded forward, and the memory that it reads."""

    inputs: Tensor
    replay: Replay


class Graphs:
    """The graphs of one forward, recorded as sizes come up again. Not for two threads at once."""

    def __init__(
        self,
        compute: Compute,
        *,
        device: str,
        dtype: torch.dtype,
        record: Record,
        say: Callable[[str], object],
    ) -> None:
        """`say` is called with the reason when a size is left to the plain forward."""
        self._compute = compute
        self._device = device
        self._largest = LARGEST_DIFFERENCE[dtype]
        self._record = record
        self._say = say
        self._sightings: Counter[Bucket] = Counter()
        self._graphs: dict[Bucket, Graph | None] = {}

    def rows(
        self,
        bucket: Bucket,
        arrays: Mapping[str, Array],
        *,
        other: Callable[[], Mapping[str, Array]],
        plain: Callable[[], Tensor],
    ) -> Tensor:
        """The batch's rows, from a graph if one is recorded, else from `plain`.

        `other` gives a different batch of the same bucket to record the graph with, so that the
        comparison finds numbers that were recorded as constants.
        """
        if bucket in self._graphs:
            graph = self._graphs[bucket]
            return plain() if graph is None else self._replay(graph, bucket, arrays)
        self._sightings[bucket] += 1
        rows = plain()
        if self._sightings[bucket] >= SIGHTINGS and len(self._graphs) < MOST_GRAPHS:
            self._graphs[bucket] = self._tried(bucket, arrays, other(), rows)
        return rows

    def _replay(self, graph: Graph, bucket: Bucket, arrays: Mapping[str, Array]) -> Tensor:
        filled = pack(fill_up(arrays, bucket), pinned=self._device.startswith("cuda"))
        graph.inputs.copy_(filled, non_blocking=True)
        # the next replay writes where this one did
        return graph.replay()[: len(arrays["first"])].clone()

    def _tried(
        self,
        bucket: Bucket,
        arrays: Mapping[str, Array],
        other: Mapping[str, Array],
        right: Tensor,
    ) -> Graph | None:
        """A graph that gives the right rows, or None."""
        try:
            filled = fill_up(other, bucket)
            inputs = pack(filled).to(self._device)
            sent = unpack(inputs, filled)
            graph = Graph(inputs, self._record(lambda: self._compute(sent, bucket)))
            found = self._replay(graph, bucket, arrays)
            error = float((found - right).abs().max() / right.abs().max())
        except RuntimeError as problem:
            # an operation that cannot be recorded, or too little memory
            self._say(f"no graph of {bucket.tokens} tokens: {type(problem).__name__}")
            return None
        if not error <= self._largest:
            self._say(f"no graph of {bucket.tokens} tokens: off by {error:.1e}")
            return None
        return graph


def recorder(device: str) -> Record:
    """Records with `torch.cuda.graph`; the graphs share one pool of memory."""
    pool = torch.cuda.graph_pool_handle()
    # torch's own stream for recordings belongs to the device that recorded first
    beside: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(work: Replay) -> Replay:
        # restores this stream: torch stays on the other one if a recording fails
        here = torch.cuda.stream(torch.cuda.current_stream(device))
        with _recording, torch.cuda.device(device), here:
            # a first run, in which kernels choose their algorithms, before the recording
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                for _ in range(2):
                    work()
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            # other threads may use the device meanwhile; their work is not recorded
            with torch.cuda.graph(
                graph, pool=pool, stream=beside, capture_error_mode="thread_local"
            ):
                rows = work()

        def replay() -> Tensor:
            with torch.cuda.device(device):
                graph.replay()
            return rows

        return replay

    return record
