"""One loaded model in the process: batches, out-of-memory back-off, finite check, sharing.

Knows nothing of torch or ONNX Runtime: a `Forward` does the arithmetic.
"""

import os
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np

from bge_rerank_integrations.cancellation import check_cancelled, seconds_left
from bge_rerank_integrations.errors import (
    ForkedModelError,
    InvalidInputError,
    NonFiniteScoreError,
    OutOfMemoryError,
    ScoringTimeout,
)
from bge_rerank_integrations.local.batching import plan_batches
from bge_rerank_integrations.local.device import DevicePlan
from bge_rerank_integrations.local.tokens import TextTokenizer, TokenSequence
from bge_rerank_integrations.types import FloatArray


class Forward(Protocol):
    """A model's arithmetic on one batch."""

    plan: DevicePlan
    padded: bool
    """Whether a batch costs its longest sequence times their number."""
    concurrency: int
    """How many batches may run at once."""
    max_sequences: int | None
    """The most sequences a batch may hold, where that changes the numbers; None: any."""

    def run(self, batch: Sequence[TokenSequence], *, exact: bool = False) -> FloatArray:
        """One float32 row per sequence, [sequences, width]; `exact` computes in float32."""
        ...

    def is_out_of_memory(self, error: Exception) -> bool: ...

    def release_memory(self) -> None:
        """Give cached, unused device memory back."""
        ...


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What the caller asks of a batch; None leaves it to the device plan."""

    max_tokens: int | None = None
    max_sequences: int | None = None

    def __post_init__(self) -> None:
        for name, number in (
            ("max_batch_tokens", self.max_tokens),
            ("batch_size", self.max_sequences),
        ):
            if number is not None and (not isinstance(number, int) or number < 1):
                raise InvalidInputError(f"{name} is {number!r}; it must be at least 1, or None")


class Engine:
    """A loaded model, shared by every scorer of the process that asked for the same one.

    `run` may be called from any number of threads: it holds no state, and a gate bounds how many
    batches the device sees at once.
    """

    def __init__(
        self,
        model: str,
        read_fingerprint: Callable[[], str],
        tokenizer: TextTokenizer,
        forward: Forward,
    ) -> None:
        self.model = model
        # hashing the files may take a second, so it waits until somebody asks
        self.fingerprint = cache(read_fingerprint)
        self.tokenizer = tokenizer
        self.forward = forward
        self._gate = threading.BoundedSemaphore(forward.concurrency)
        self._process = os.getpid()

    @property
    def plan(self) -> DevicePlan:
        return self.forward.plan

    def run(
        self,
        sequences: Sequence[TokenSequence],
        positions: Sequence[int],
        limits: BatchLimits,
        *,
        on_batch: Callable[[int], object] | None = None,
    ) -> FloatArray:
        """One row per sequence, in the order given: [sequences, width] float32, all finite.

        Only where the time limit (`cancellation.time_limit`) passed is a row NaN: no batch begins
        after that. `ScoringTimeout` if it passed before the first batch was done.

        `positions` says which of the caller's pairs each sequence came from, for error messages;
        `on_batch` is told how many sequences each finished batch held. Raises `OutOfMemoryError`
        when a single sequence does not fit, `NonFiniteScoreError` when a row is NaN or infinite
        in float32 too, `ForkedModelError` in a forked child; any other error of the model comes
        through unchanged.
        """
        if os.getpid() != self._process:
            raise ForkedModelError(
                f"{self.model} was loaded before this process was forked, and its threads did not "
                "come along; load it in the child (adapters load again by themselves)"
            )
        lengths = [len(sequence.ids) for sequence in sequences]
        waiting = plan_batches(
            lengths,
            max_tokens=limits.max_tokens or self.plan.max_batch_tokens,
            max_sequences=_least(limits.max_sequences, self.forward.max_sequences),
            padded=self.forward.padded,
        )
        waiting.reverse()
        most = None  # tokens a batch may still hold, once memory has run out
        rows: list[FloatArray | None] = [None] * len(sequences)
        while waiting:
            batch = waiting.pop()
            cost = self._cost(batch, lengths)
            if most is not None and cost > most and len(batch) > 1:
                middle = len(batch) // 2
                waiting += [batch[middle:], batch[:middle]]
                continue
            left = seconds_left()
            if left == 0.0 or not self._gate.acquire(timeout=left):
                break
            try:
                result = self._run_batch(sequences, batch, positions)
            finally:
                self._gate.release()
            if result is None:
                # outside the except block, whose traceback would keep the batch's tensors alive
                self.forward.release_memory()
                if len(batch) == 1:
                    raise self._too_large(positions[batch[0]], lengths[batch[0]])
                most = cost // 2
                waiting.append(batch)
                continue
            for index, row in zip(batch, result, strict=True):
                rows[index] = row
            if on_batch is not None:
                on_batch(len(batch))
        finished = next((row for row in rows if row is not None), None)
        if finished is None:
            raise ScoringTimeout(
                f"the time limit passed before the first of {len(sequences)} texts was through "
                f"{self.model} on {self.plan.device}; allow more time"
            )
        late = np.full_like(finished, np.nan)
        stacked = np.stack([late if row is None else row for row in rows])
        return stacked.astype(np.float32, copy=False)

    def _cost(self, batch: Sequence[int], lengths: Sequence[int]) -> int:
        """Tokens of a batch, padding included where the forward pads."""
        if self.forward.padded:
            return len(batch) * max(lengths[index] for index in batch)
        return sum(lengths[index] for index in batch)

    def _run_batch(
        self, sequences: Sequence[TokenSequence], batch: list[int], positions: Sequence[int]
    ) -> FloatArray | None:
        """The batch's rows, or None when memory ran out."""
        inputs = [sequences[index] for index in batch]
        try:
            check_cancelled()  # the wait at the gate may have been long
            rows = self.forward.run(inputs)
            bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
            if len(bad):
                # those alone: a score must not depend on whether a neighbour overflowed
                rows = rows.copy()
                rows[bad] = self.forward.run([inputs[row] for row in bad], exact=True)
        except Exception as error:
            if self.forward.is_out_of_memory(error):
                return None
            raise
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0])
            number = rows[row][~np.isfinite(rows[row])][0]
            raise NonFiniteScoreError(
                f"the pair at position {positions[batch[row]]} gives {number} in {self.model} on "
                f"{self.plan.device}, in {self.plan.precision} and again in fp32: its weights may "
                "be damaged; fetch the model again"
            )
        return rows

    def _too_large(self, index: int, tokens: int) -> OutOfMemoryError:
        return OutOfMemoryError(
            f"the pair at position {index}, of {tokens} tokens, does not fit into the memory of "
            f"{self.plan.device} by itself ({self.model}, {self.plan.precision}); use a shorter "
            "max_length, a half precision, a smaller model or device='cpu'"
        )


_engines: WeakValueDictionary[Hashable, Engine] = WeakValueDictionary()
_loading: dict[Hashable, threading.Lock] = {}
_lock = threading.Lock()


def shared_engine(key: Hashable, load: Callable[[], Engine]) -> Engine:
    """The process's engine for `key`, loaded by the first that asks while the others wait.

    Held weakly: it goes when its last user does.
    """
    key = (os.getpid(), key)
    with _lock:
        engine = _engines.get(key)
        turn = _loading.setdefault(key, threading.Lock())
    if engine is not None:
        return engine
    with turn:
        with _lock:
            engine = _engines.get(key)
        if engine is None:
            engine = load()
            with _lock:
                _engines[key] = engine
        return engine


def _forget_locks() -> None:
    global _lock
    _lock = threading.Lock()
    _loading.clear()


if hasattr(os, "register_at_fork"):  # absent on Windows, which does not fork
    os.register_at_fork(after_in_child=_forget_locks)


def _least(first: int | None, second: int | None) -> int | None:
    known = [number for number in (first, second) if number is not None]
    return min(known, default=None)
