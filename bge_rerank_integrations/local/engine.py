"""One loaded model: batches, out-of-memory back-off, the check for finite rows, order.

It is independent of torch and ONNX Runtime: a `Forward` computes the batches.
"""

import os
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

from bge_rerank_integrations.base.deadline import check_cancelled, off_main_thread, seconds_left
from bge_rerank_integrations.base.fork import Lock
from bge_rerank_integrations.base.trace import timed
from bge_rerank_integrations.errors import (
    ForkedModelError,
    NonFiniteScoreError,
    OutOfMemoryError,
    ScoringTimeout,
)
from bge_rerank_integrations.local.device import DevicePlan
from bge_rerank_integrations.local.text.tokenizer import TextTokenizer, TokenSequence
from bge_rerank_integrations.options import BatchOptions
from bge_rerank_integrations.types import FloatArray


class Forward(Protocol):
    """Computes one batch of a model."""

    plan: DevicePlan
    padded: bool
    """Whether a batch costs its longest sequence times their number."""
    concurrency: int
    """How many batches may run at once."""
    max_sequences: int | None
    """The most sequences a batch may hold, where that changes the numbers; None: any."""

    def run(self, batch: Sequence[TokenSequence], *, exact: bool = False) -> Any:
        """One float32 row per sequence, [sequences, width], wherever the device has them.

        `exact` computes in float32.
        """
        ...

    def fetch(self, rows: Sequence[Any]) -> FloatArray:
        """The rows of several `run`s, concatenated, on the host; waits for the device."""
        ...

    def is_out_of_memory(self, error: Exception) -> bool: ...

    def release_memory(self) -> None:
        """Give cached, unused device memory back."""
        ...


@dataclass(frozen=True, slots=True)
class EngineCall:
    """One call: sequences, the caller's pair that each came from, and limits of the batches.

    `on_batch` is called with the number of sequences after each batch.
    """

    sequences: Sequence[TokenSequence]
    positions: Sequence[int]
    limits: BatchOptions
    on_batch: Callable[[int], object] | None = None


BatchRows = tuple[list[int], FloatArray | None]
"""Indices of sequences, and their rows in that order; None where there are none."""


class Engine:
    """A loaded model, shared by all scorers of the process for the same model.

    `run` may be called from any number of threads: it keeps no state, and a semaphore bounds the
    number of batches that run at once.
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

    def release_memory(self) -> None:
        """Give cached, unused device memory back."""
        self.forward.release_memory()

    def run(
        self,
        sequences: Sequence[TokenSequence],
        positions: Sequence[int],
        limits: BatchOptions,
        *,
        on_batch: Callable[[int], object] | None = None,
    ) -> FloatArray:
        """One row per sequence, in the order given: [sequences, width] float32, all finite.

        A row is NaN only where the time limit (`deadline.time_limit`) passed: no batch begins
        after that. Raises `ScoringTimeout` if it passed before the first batch was done.

        `positions` says which of the caller's pairs each sequence came from, for error messages;
        `on_batch` is called with the number of sequences after each batch. Raises
        `OutOfMemoryError` if a single sequence does not fit, `NonFiniteScoreError` if a row is NaN
        or infinite in float32 too, `ForkedModelError` in a forked child; any other error of the
        model is raised unchanged.
        """
        call = EngineCall(sequences, positions, limits, on_batch)
        rows = self.run_side_by_side(call)
        if rows is None:
            part = self.drain(call, iter(self.plan_batches(call)))
            rows = in_order([part], len(sequences), f"{self.model} on {self.plan.device}")
        return rows

    def run_side_by_side(self, call: EngineCall) -> FloatArray | None:  # noqa: ARG002
        """As `run`, with several batches at once; None where one at a time is faster."""
        return None

    def plan_batches(
        self, call: EngineCall, indices: Sequence[int] | None = None
    ) -> list[list[int]]:
        """Indices of all sequences, or of those given, in batches for this device."""
        if indices is None:
            indices = range(len(call.sequences))
        planned = plan_batches(
            [len(call.sequences[index].ids) for index in indices],
            max_tokens=call.limits.max_batch_tokens or self.plan.max_batch_tokens,
            max_sequences=_least(call.limits.batch_size, self.forward.max_sequences),
            padded=self.forward.padded,
            # under a time limit the first are scored first: the retriever ranked them highest
            in_order=seconds_left() is not None,
        )
        return [[indices[number] for number in batch] for batch in planned]

    def drain(
        self, call: EngineCall, batches: Iterator[list[int]], *, exact: bool = False
    ) -> BatchRows:
        """Run the batches until there are none left or time is over.

        Rows leave the device once, at the end. Those that are not finite, and no others, are then
        computed again in float32: a score must not depend on whether a neighbour overflowed.
        """
        if os.getpid() != self._process:
            raise ForkedModelError(
                f"{self.model} was loaded before this process was forked, and its threads did not "
                "come along; load it in the child (adapters load again by themselves)"
            )
        split: list[list[int]] = []
        most = None  # tokens a batch may still hold, after memory has run out
        done: list[int] = []
        computed: list[Any] = []
        while (batch := split.pop() if split else next(batches, None)) is not None:
            cost = self._cost(call, batch)
            if most is not None and cost > most and len(batch) > 1:
                middle = len(batch) // 2
                split += [batch[middle:], batch[:middle]]
                continue
            left = seconds_left()
            with timed("queueing"):
                ready = left != 0.0 and self._gate.acquire(timeout=left)
            if not ready:
                break
            rows = None
            try:
                check_cancelled()  # the wait at the gate may have been long
                with timed("computing"):
                    rows = self.forward.run([call.sequences[i] for i in batch], exact=exact)
            except Exception as error:  # each runtime has its own class for memory that ran out
                if not self.forward.is_out_of_memory(error):
                    raise
            finally:
                self._gate.release()
            if rows is None:
                self._make_room(call, batch)
                most = cost // 2
                split.append(batch)
                continue
            done += batch
            computed.append(rows)
            if call.on_batch is not None and not exact:
                call.on_batch(len(batch))
        if not done:
            return [], None
        with timed("computing"):  # the device may not have finished
            rows = self.forward.fetch(computed)
        return self._finite(call, done, rows, exact=exact)

    def _cost(self, call: EngineCall, batch: Sequence[int]) -> int:
        """Tokens of a batch, with padding if the forward pads."""
        lengths = [len(call.sequences[index].ids) for index in batch]
        return len(batch) * max(lengths) if self.forward.padded else sum(lengths)

    def _finite(
        self, call: EngineCall, done: list[int], rows: FloatArray, *, exact: bool
    ) -> BatchRows:
        """The rows; those that are not finite are computed again in float32."""
        finite: list[bool] = np.logical_and.reduce(np.isfinite(rows), axis=1).tolist()
        if all(finite):
            return done, rows
        bad = sorted(index for index, good in zip(done, finite, strict=True) if not good)
        if exact:
            row = rows[done.index(bad[0])]
            raise NonFiniteScoreError(
                f"the pair at position {call.positions[bad[0]]} gives "
                f"{row[~np.isfinite(row)][0]} in {self.model} on {self.plan.device}, in "
                f"{self.plan.precision} and again in fp32: its weights may be damaged; fetch the "
                "model again"
            )
        again, exact_rows = self.drain(call, iter(self.plan_batches(call, bad)), exact=True)
        kept = [index for index, good in zip(done, finite, strict=True) if good]
        found = [part for part in (rows[finite], exact_rows) if part is not None and len(part)]
        return kept + again, np.concatenate(found) if found else None

    def _make_room(self, call: EngineCall, batch: Sequence[int]) -> None:
        """Release memory after a batch that did not fit; raise `OutOfMemoryError` if it was one.

        Called after the except block, whose traceback would keep the batch's tensors alive.
        """
        self.forward.release_memory()
        if len(batch) > 1:
            return
        tokens = len(call.sequences[batch[0]].ids)
        raise OutOfMemoryError(
            f"the pair at position {call.positions[batch[0]]}, of {tokens} tokens, does not fit "
            f"into the memory of {self.plan.device} by itself ({self.model}, "
            f"{self.plan.precision}); use a shorter max_length, a half precision, a smaller model "
            "or device='cpu'"
        )


def in_order(parts: Sequence[BatchRows], count: int, where: str) -> FloatArray:
    """The rows of all parts in the caller's order, NaN where none came: [count, width] float32.

    Raises `ScoringTimeout` if there is no row at all.
    """
    found = [(done, rows) for done, rows in parts if rows is not None]
    if not found:
        raise ScoringTimeout(
            f"the time limit passed before the first of {count} texts was through {where}; allow "
            "more time"
        )
    result = np.full((count, found[0][1].shape[1]), np.nan, dtype=np.float32)
    for done, rows in found:
        result[done] = rows
    return result


def _least(first: int | None, second: int | None) -> int | None:
    known = [number for number in (first, second) if number is not None]
    return min(known, default=None)


def plan_batches(
    lengths: Sequence[int],
    *,
    max_tokens: int,
    max_sequences: int | None = None,
    padded: bool = False,
    in_order: bool = False,
) -> list[list[int]]:
    """Pack indices, longest first or `in_order`, into batches of at most `max_tokens` tokens.

    With `padded` a batch costs its longest sequence times their number, otherwise the sum of their
    lengths. A sequence longer than the budget gets a batch of its own. Every index appears once;
    equal lengths keep their order.
    """
    order: Sequence[int] = range(len(lengths))
    if not in_order:
        order = sorted(order, key=lambda index: -lengths[index])
    batches: list[list[int]] = []
    batch: list[int] = []
    longest = total = 0
    for index in order:
        longest, total = max(longest, lengths[index]), total + lengths[index]
        full = max_sequences is not None and len(batch) >= max_sequences
        cost = longest * (len(batch) + 1) if padded else total
        if batch and (full or cost > max_tokens):
            batches.append(batch)
            batch, longest, total = [], lengths[index], lengths[index]
        batch.append(index)
    if batch:
        batches.append(batch)
    return batches


_engines: WeakValueDictionary[Hashable, Engine] = WeakValueDictionary()
_loading: dict[Hashable, Lock] = {}
_lock = Lock()


def shared_engine(key: Hashable, load: Callable[[], Engine]) -> Engine:
    """The process's engine for `key`, loaded by the first that asks while the others wait.

    Held weakly: it goes when its last user does.
    """
    key = (os.getpid(), key)
    with _lock:
        engine = _engines.get(key)
        turn = _loading.setdefault(key, Lock())
    if engine is not None:
        return engine
    with turn:
        with _lock:
            engine = _engines.get(key)
        if engine is None:
            engine = off_main_thread(load)
            with _lock:
                _engines[key] = engine
        return engine
