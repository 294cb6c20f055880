"""A forward that a reader can check by hand, with the faults of a device on order."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bge_rerank_integrations.local.device import DevicePlan
from bge_rerank_integrations.local.engine import Engine
from bge_rerank_integrations.local.text.tokenizer import TextTokenizer, TokenSequence
from bge_rerank_integrations.options import BatchOptions
from bge_rerank_integrations.types import FloatArray

PLAN = DevicePlan(
    device="cpu",
    dtype="float16",
    autocast=False,
    attention="runs",
    max_batch_tokens=64,
    reasons=(),
)
NO_LIMITS = BatchOptions()
EXACT_DIFFERS_BY = 0.25
"""How far a row computed in float32 is from the same row in half precision."""


class DeviceFull(RuntimeError):
    """The error of a device whose memory is full, in the words of torch."""

    def __init__(self) -> None:
        super().__init__("CUDA out of memory.")


class OracleForward:
    """Gives a sequence the row [sum of ids, first id + 1000 * length]; see `engine.Forward`.

    `before` is called with each batch, and may raise. Rows of the sequences that begin with an id
    of `overflowing` are NaN in half precision, of `damaged` always.
    """

    def __init__(
        self,
        *,
        before: Callable[[Sequence[TokenSequence]], None] = lambda batch: None,
        plan: DevicePlan = PLAN,
        padded: bool = False,
        concurrency: int = 1,
        max_sequences: int | None = None,
        overflowing: frozenset[int] = frozenset(),
        damaged: frozenset[int] = frozenset(),
    ) -> None:
        self.plan = plan
        self.padded = padded
        self.concurrency = concurrency
        self.max_sequences = max_sequences
        self.before = before
        self.overflowing = overflowing
        self.damaged = damaged
        self.finished: Counter[tuple[int, ...]] = Counter()
        self.batches: list[int] = []
        self.recomputed: Counter[tuple[int, ...]] = Counter()
        self.attempts = 0
        self.released = 0
        self._lock = threading.Lock()

    def run(self, batch: Sequence[TokenSequence], *, exact: bool = False) -> FloatArray:
        with self._lock:
            self.attempts += 1
        self.before(batch)
        rows = np.stack([row_of(sequence, exact=exact) for sequence in batch])
        for row, sequence in zip(rows, batch, strict=True):
            first = int(sequence.ids[0])
            if first in self.damaged or (first in self.overflowing and not exact):
                row[1] = np.nan
        with self._lock:
            keys = [tuple(sequence.ids.tolist()) for sequence in batch]
            if exact:
                self.recomputed.update(keys)
            else:
                self.finished.update(keys)
                self.batches.append(len(batch))
        return rows

    def release_memory(self) -> None:
        self.released += 1


def row_of(sequence: TokenSequence, *, exact: bool = False) -> FloatArray:
    ids = [int(number) for number in sequence.ids]
    extra = EXACT_DIFFERS_BY if exact else 0.0
    return np.array([sum(ids) + extra, ids[0] + 1000 * len(ids) + extra], dtype=np.float32)


def sequence(first: int, length: int) -> TokenSequence:
    """`length` ids counting up from `first`."""
    return TokenSequence(np.arange(first, first + length, dtype=np.int32), length)


def sequences(lengths: Sequence[int]) -> list[TokenSequence]:
    """One sequence for each length, all different: the n-th begins with n."""
    return [sequence(number, length) for number, length in enumerate(lengths)]


LENGTHS = [3, 40, 7, 7, 1, 25, 64, 2, 9, 33, 12, 12, 5, 60, 18, 4]
BATCH = sequences(LENGTHS)
POSITIONS = list(range(len(BATCH)))


def engine_over(forward: OracleForward, folder: Path) -> Engine:
    """An engine over the oracle, with the tokenizer of a model folder."""
    return Engine("oracle", lambda: "0" * 12, TextTokenizer(folder), forward)
