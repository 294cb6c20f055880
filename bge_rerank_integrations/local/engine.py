"""One loaded model: batches, out-of-memory back-off, the check for finite rows, order.

It is independent of torch and ONNX Runtime: a `Forward` computes the batches.
"""

import atexit
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np

from bge_rerank_integrations.base.deadline import check_cancelled, seconds_left
from bge_rerank_integrations.base.fork import Lock, native_code
from bge_rerank_integrations.base.trace import timed
from bge_rerank_integrations.errors import (
    ForkedModelError,
    NonFiniteScoreError,
    OutOfMemoryError,
    ScoringTimeout,
)
from bge_rerank_integrations.local.device import DevicePlan
from bge_rerank_integrations.local.gate import Gate
from bge_rerank_integrations.local.memory import is_out_of_memory
from bge_rerank_integrations.local.text.tokenizer import TextTokenizer, TokenSequence
from bge_rerank_integrations.options import BatchOptions
from bge_rerank_integrations.types import FloatArray

logger = logging.getLogger("bge_rerank_integrations")

SLICE = 0.25
"""Seconds that a batch may take under a time limit, unless one sequence takes longer."""


class Forward(Protocol):
    """Computes one batch of a model."""

    plan: DevicePlan
    padded: bool
    """Whether a batch costs its longest sequence times their number."""
    concurrency: int
    """How many batches may run at once."""
    max_sequences: int | None
    """The maximum sequences in a batch, if their number changes the results; None: no limit."""

    def run(self, batch: Sequence[TokenSequence], *, exact: bool = False) -> FloatArray:
        """One float32 row per sequence: [sequences, width]. `exact` computes in float32."""
        ...

    def release_memory(self) -> None:
        """Return cached, unused device memory."""
        ...


@dataclass(frozen=True, slots=True)
class EngineCall:
    """One call; see `Engine.run`."""

    sequences: Sequence[TokenSequence]
    positions: Sequence[int]
    limits: BatchOptions
    on_batch: Callable[[int], object] | None = None


class Engine:
    """A loaded model, shared by all scorers of the process for the same model.

    `run` may be called from any number of threads: it keeps no state, and a gate bounds the
    number of batches that run at once.
    """

    def __init__(
        self,
        model: str,
        read_fingerprint: Callable[[], str],
        tokenizer: TextTokenizer,
        forward: Forward,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = model
        # hashing the files may take a second, so it is done at the first use
        self.fingerprint = cache(read_fingerprint)
        self.tokenizer = tokenizer
        self.forward = forward
        self._gate = Gate(forward.concurrency)
        self._clock = clock
        self._speed = 0.0  # tokens of a batch, in a second
        self._process = os.getpid()

    @property
    def plan(self) -> DevicePlan:
        return self.forward.plan

    def release_memory(self) -> None:
        """Return cached, unused device memory."""
        self.forward.release_memory()

    def wait_until_idle(self) -> None:
        """Return when no batch is running."""
        for _ in range(self.forward.concurrency):
            self._gate.enter()
        for _ in range(self.forward.concurrency):
            self._gate.leave()

    def run(
        self,
        sequences: Sequence[TokenSequence],
        positions: Sequence[int],
        limits: BatchOptions,
        *,
        on_batch: Callable[[int], object] | None = None,
    ) -> FloatArray:
        """One row per sequence, in the order given: [sequences, width] float32, all finite.

        A row is NaN only if the time limit (`deadline.time_limit`) passed: no batch begins after
        that. Raises `ScoringTimeout` if it passed before the first batch was done.

        `positions` says which of the caller's pairs each sequence came from, for error messages;
        `on_batch` is called with the number of sequences after each batch. Raises
        `OutOfMemoryError` if a single sequence does not fit, `NonFiniteScoreError` if a row is NaN
        or infinite in float32 too, `ForkedModelError` in a forked child; any other error of the
        model is raised unchanged.
        """
        call, count = EngineCall(sequences, positions, limits, on_batch), len(sequences)
        engines, batches = self.share(call)
        found: dict[int, FloatArray] = {}
        if len(engines) == 1:
            engines[0].drain(call, deque(batches), found)
        else:
            _drain_together(engines, call, deque(batches), found)
        if not found:
            raise ScoringTimeout(
                f"the time limit passed before the first of {count} texts was through "
                f"{self.model} on {self.plan.device}; allow more time"
            )
        rows = np.full((count, len(next(iter(found.values())))), np.nan, dtype=np.float32)
        rows[list(found)] = list(found.values())
        return rows

    def share(self, call: EngineCall) -> tuple["Sequence[Engine]", list[list[int]]]:
        """The engines that compute a call side by side, and its batches."""
        return [self], self.plan_batches(call)

    within: Callable[[], AbstractContextManager[object]] = nullcontext
    """A context for each thread, where several engines compute a call."""

    def plan_batches(
        self, call: EngineCall, indices: Sequence[int] | None = None
    ) -> list[list[int]]:
        """Indices of all sequences, or of those given, in batches for this device."""
        limits = [n for n in (call.limits.batch_size, self.forward.max_sequences) if n is not None]
        return plan_batches(
            [len(sequence.ids) for sequence in call.sequences],
            indices,
            max_tokens=call.limits.max_batch_tokens or self.plan.max_batch_tokens,
            max_sequences=min(limits, default=None),
            padded=self.forward.padded,
            # under a time limit the first are scored first: the retriever ranked them highest
            in_order=seconds_left() is not None,
        )

    def drain(
        self,
        call: EngineCall,
        batches: deque[list[int]],
        found: dict[int, FloatArray],
        *,
        exact: bool = False,
    ) -> None:
        """Take batches until none are left or the time limit passes; keep each sequence's row.

        Only the rows that are not finite are then computed again in float32: a score must not
        depend on whether a neighbour overflowed.
        """
        if os.getpid() != self._process:
            raise ForkedModelError(
                f"{self.model} was loaded before this process was forked, and its threads did not "
                "come along; load it in the child (adapters load again by themselves)"
            )
        stop_at_exit()
        split: list[list[int]] = []
        room = math.inf  # tokens a batch may still hold, after memory has run out
        overflown: list[int] = []
        while (batch := split.pop() if split else _first(batches)) is not None:
            sequences = [call.sequences[index] for index in batch]
            cost = self._cost(sequences)
            left = seconds_left()
            limit = room if left is None else min(room, self._speed * SLICE)
            if cost > limit and len(batch) > 1:
                middle = len(batch) // 2
                split += [batch[middle:], batch[:middle]]
                continue
            with timed("queueing"):
                ready = left != 0.0 and self._gate.enter(left)
            if not ready:
                break
            rows = None
            try:
                stop_at_exit(self._gate)
                check_cancelled()  # the wait at the gate may have been long
                with native_code(), timed("computing"):
                    begin = self._clock()
                    rows = self.forward.run(sequences, exact=exact)
                speed = cost / max(self._clock() - begin, 1e-9)
                # a small batch may say little about a large one
                self._speed = max(speed, 0.8 * self._speed)
            except Exception as error:  # each runtime has its own class for memory that ran out
                if not is_out_of_memory(error):
                    raise
            finally:
                self._gate.leave()
            if rows is None:
                self._make_room(call, batch)
                room = cost // 2
                split.append(batch)
                continue
            found.update(zip(batch, rows, strict=True))
            overflown += [batch[row] for row in np.flatnonzero(~np.isfinite(rows).all(axis=1))]
            if call.on_batch is not None and not exact:
                call.on_batch(len(batch))
        if overflown:
            self._compute_again(call, overflown, found, exact=exact)

    def _cost(self, batch: Sequence[TokenSequence]) -> int:
        """Tokens of a batch, with padding if the forward pads."""
        lengths = [len(sequence.ids) for sequence in batch]
        return len(batch) * max(lengths) if self.forward.padded else sum(lengths)

    def _compute_again(
        self, call: EngineCall, bad: list[int], found: dict[int, FloatArray], *, exact: bool
    ) -> None:
        """Compute rows that are not finite in float32; raise if they were `exact` already."""
        if exact:
            number = next(number for number in found[min(bad)] if not np.isfinite(number))
            raise NonFiniteScoreError(
                f"the pair at position {call.positions[min(bad)]} gives {number} in {self.model} "
                f"on {self.plan.device}, in {self.plan.precision} and again in fp32: its weights "
                "may be damaged; fetch the model again"
            )
        for index in bad:
            del found[index]
        self.drain(call, deque(self.plan_batches(call, sorted(bad))), found, exact=True)

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


def _first(batches: deque[list[int]]) -> list[int] | None:
    try:
        return batches.popleft()
    except IndexError:  # another thread may have taken the last one
        return None


def _drain_together(
    engines: Sequence[Engine],
    call: EngineCall,
    batches: deque[list[int]],
    found: dict[int, FloatArray],
) -> None:
    """Drain with a thread for each engine. The first error in any thread ends the call in all."""
    errors: list[BaseException] = []
    on_batch, turn = call.on_batch, threading.Lock()

    def count_batch(sequences: int) -> None:
        with turn:  # the caller's function is called by one thread at a time
            if on_batch is not None:
                on_batch(sequences)

    def drain(engine: Engine) -> None:
        try:
            with engine.within():
                engine.drain(replace(call, on_batch=count_batch), batches, found)
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)
            batches.clear()

    parts: list[Future[None]] = []
    try:
        # each thread sees the caller's cancellation and time limit
        parts.extend(
            _batch_threads().submit(copy_context().run, drain, engine) for engine in engines
        )
        wait(parts)
    except RuntimeError:  # the interpreter is ending, and starts no more threads
        drain(engines[0])
    finally:
        batches.clear()  # also when the wait itself is interrupted
        wait(parts)
    if errors:
        raise errors[0]


def _batch_threads() -> ThreadPoolExecutor:
    """Permanent threads: if one ended during a fork, the child could inherit MKL's lock, locked."""
    global _threads
    with _lock:
        if _threads is None:
            _threads = ThreadPoolExecutor(64, "bge-rerank-batch")
        return _threads


def _forget_batch_threads() -> None:
    global _threads
    _threads = None  # they do not exist in a forked child


if hasattr(os, "register_at_fork"):  # absent on Windows, which does not fork
    os.register_at_fork(after_in_child=_forget_batch_threads)


def plan_batches(
    lengths: Sequence[int],
    indices: Sequence[int] | None = None,
    *,
    max_tokens: int,
    max_sequences: int | None = None,
    padded: bool = False,
    in_order: bool = False,
) -> list[list[int]]:
    """Pack indices, longest first or `in_order`, into batches of at most `max_tokens` tokens.

    `indices` are those to pack; None: all. With `padded` a batch costs its longest sequence times
    their number, otherwise the sum of their lengths. A sequence longer than the budget gets a batch
    of its own. Every index appears once; equal lengths keep their order.
    """
    order = range(len(lengths)) if indices is None else indices
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


_ending = False


def stop_at_exit(gate: Gate | None = None) -> None:
    """Block a daemon thread forever once the interpreter is ending, and free its place at the gate.

    Python would end such a thread when it returns from a library, which would make it abort.
    """
    thread = threading.current_thread()
    # this package's own threads must go on: other threads wait for them
    if _ending and thread.daemon and not thread.name.startswith("bge-rerank"):
        if gate is not None:
            gate.leave()
        threading.Event().wait()


def _end() -> None:
    """Keep daemon threads from beginning more batches, and wait for the running ones."""
    global _ending
    _ending = True
    for (process, _), engine in list(_engines.items()):
        if process == os.getpid():  # in a forked child, the parent's never become idle
            engine.wait_until_idle()


def before_exit(function: Callable[[], object]) -> None:
    """Call the function when the interpreter begins to end; the last registered is called first."""
    try:
        # private: it runs before thread pools begin to refuse work, atexit only after that
        threading._register_atexit(function)  # type: ignore[attr-defined]  # noqa: SLF001
    except (AttributeError, RuntimeError):  # absent, or the interpreter is ending already
        atexit.register(function)


before_exit(_end)

_engines: WeakValueDictionary[tuple[int, Hashable], Engine] = WeakValueDictionary()
_loading: dict[Hashable, Lock] = {}
_last_loads: dict[Hashable, float] = {}
_lock = Lock()
_threads: ThreadPoolExecutor | None = None


def shared_engine(
    key: Hashable, load: Callable[[], Engine], *, clock: Callable[[], float] = time.monotonic
) -> Engine:
    """The process's engine for `key`; the first caller loads it while the others wait.

    It is held weakly, so its last user frees it. A second load within a minute logs a warning.
    """
    place = (os.getpid(), key)
    with _lock:
        engine = _engines.get(place)
        turn = _loading.setdefault(place, Lock())
    if engine is not None:
        return engine
    with turn:
        with _lock:
            engine = _engines.get(place)
        if engine is None:
            with native_code():
                engine = load()
            with _lock:
                _engines[place] = engine
                before, now = _last_loads.get(place), clock()
                _last_loads[place] = now
            if before is not None and now - before < 60:
                _warn_of_loads(engine.model)
        return engine


@cache
def _warn_of_loads(model: str) -> None:
    logger.warning(
        "%s was loaded twice within a minute, because nothing used it in between: build one "
        "adapter or scorer and keep it, or give it keep_alive=60. Logged once per model.",
        model,
    )
