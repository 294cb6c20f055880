"""A cancelled task stops its work between two batches, and leaves nothing behind."""

import asyncio
import contextvars
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pytest

from bge_rerank_integrations import Reranker
from bge_rerank_integrations.base import deadline
from bge_rerank_integrations.base.deadline import (
    Cancelled,
    cancellable,
    check_cancelled,
    in_worker,
    off_main_thread,
)
from bge_rerank_integrations.local.engine import Engine
from bge_rerank_integrations.local.text.tokenizer import TokenSequence
from bge_rerank_integrations.types import FloatArray, Pair, Scale
from tests.base.forking import in_child
from tests.local.oracle import NO_LIMITS, OracleForward, engine_over, sequence, sequences

WAIT = 60.0
THREE_BATCHES = sequences([60, 60, 60])  # of 64 tokens at most


class Gated:
    """Holds a forward's batches back until they are let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        self.finished = threading.Event()

    def hold(self, batch: Sequence[TokenSequence]) -> None:
        self.entered.set()
        assert self.open.wait(WAIT)

    def run(self, engine: Engine, batch: Sequence[TokenSequence]) -> FloatArray:
        try:
            return engine.run(batch, range(len(batch)), NO_LIMITS)
        finally:
            self.finished.set()


async def on_event(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, WAIT)


async def test_cancelled_during_one_batch_runs_no_other(reranker_base: Path) -> None:
    gated = Gated()
    forward = OracleForward(before=gated.hold)
    engine = engine_over(forward, reranker_base)
    task = asyncio.create_task(in_worker(gated.run, engine, THREE_BATCHES))
    await on_event(gated.entered)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not gated.finished.is_set(), "the loop must not wait for the batch to end"
    gated.open.set()
    await on_event(gated.finished)
    assert forward.attempts == 1


async def test_not_cancelled_runs_them_all(reranker_base: Path) -> None:
    forward = OracleForward()
    engine = engine_over(forward, reranker_base)
    rows = await in_worker(engine.run, THREE_BATCHES, range(3), NO_LIMITS)
    assert rows.shape == (3, 2)
    assert forward.batches == [1, 1, 1]


async def test_a_time_limit_cancels(reranker_base: Path) -> None:
    gated = Gated()
    forward = OracleForward(before=gated.hold)
    engine = engine_over(forward, reranker_base)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(in_worker(gated.run, engine, THREE_BATCHES), timeout=0.01)
    gated.open.set()
    if gated.entered.is_set():
        await on_event(gated.finished)
    assert forward.attempts <= 1


class Announced(Sequence[TokenSequence]):
    """A list that says when its items are taken, which is just before the gate."""

    def __init__(self, items: list[TokenSequence]) -> None:
        self.items = items
        self.taken = threading.Event()

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> TokenSequence: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TokenSequence]: ...
    def __getitem__(self, index: int | slice) -> TokenSequence | Sequence[TokenSequence]:
        self.taken.set()
        return self.items[index]

    def __iter__(self) -> Iterator[TokenSequence]:
        return iter(self.items)


async def test_cancelled_while_it_waits_for_the_device_never_runs(reranker_base: Path) -> None:
    first, second = Gated(), Gated()
    forward = OracleForward(before=first.hold)
    engine = engine_over(forward, reranker_base)
    running = asyncio.create_task(in_worker(first.run, engine, [sequence(1, 60)]))
    await on_event(first.entered)
    batch = Announced([sequence(2, 60)])
    waiting = asyncio.create_task(in_worker(second.run, engine, batch))
    await on_event(batch.taken)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    first.open.set()
    await running
    await on_event(second.finished)
    assert list(forward.finished) == [tuple(range(1, 61))]


async def test_a_call_that_has_not_begun_is_dropped() -> None:
    workers = deadline._workers()._max_workers
    release, ran = threading.Event(), threading.Event()
    busy = [asyncio.create_task(in_worker(release.wait, WAIT)) for _ in range(workers)]
    late = asyncio.create_task(in_worker(ran.set))
    await asyncio.sleep(0)  # lets every task hand its call over
    late.cancel()
    with pytest.raises(asyncio.CancelledError):
        await late
    release.set()
    await asyncio.gather(*busy)
    await asyncio.gather(*(in_worker(check_cancelled) for _ in range(2 * workers)))
    assert not ran.is_set()


async def test_cancelling_one_of_two_leaves_the_other_alone(reranker_base: Path) -> None:
    gated = Gated()
    engine = engine_over(OracleForward(before=gated.hold, concurrency=2), reranker_base)
    doomed = asyncio.create_task(in_worker(engine.run, THREE_BATCHES, range(3), NO_LIMITS))
    kept = asyncio.create_task(in_worker(engine.run, THREE_BATCHES, range(3), NO_LIMITS))
    await on_event(gated.entered)
    doomed.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doomed
    gated.open.set()
    assert (await kept).shape == (3, 2)


class AskingScorer:
    """A scorer around nothing, which asks for cancellation between pairs."""

    name = "asking"
    scale: Scale = "logit"

    def __init__(self) -> None:
        self.scored = 0
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self.ended: list[type[BaseException]] = []
        self.done = threading.Event()

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        try:
            for _ in pairs:
                check_cancelled()
                self.scored += 1
                self.reached.set()
                assert self.go_on.wait(WAIT)
        except BaseException as error:
            self.ended.append(type(error))
            raise
        finally:
            self.done.set()
        return np.arange(len(pairs), dtype=np.float32)


async def test_arerank_stops_any_scorer_that_asks() -> None:
    scorer = AskingScorer()
    task = asyncio.create_task(Reranker(scorer).arerank("query", ["a", "b", "c"]))
    await on_event(scorer.reached)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    scorer.go_on.set()
    await on_event(scorer.done)
    assert scorer.scored == 1
    assert scorer.ended == [Cancelled]


async def test_many_things_are_gone_through_until_the_task_is_cancelled() -> None:
    seen, done = list[int](), threading.Event()
    reached, go_on = threading.Event(), threading.Event()

    def work() -> None:
        try:
            for number in cancellable(range(500)):
                seen.append(number)
                if number == 155:
                    reached.set()
                    assert go_on.wait(WAIT)
        finally:
            done.set()

    task = asyncio.create_task(in_worker(work))
    await on_event(reached)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await on_event(done)
    assert seen == list(range(160))


def test_cancelled_is_no_exception_that_a_handler_might_swallow() -> None:
    assert not issubclass(Cancelled, Exception)


def test_outside_of_a_task_nothing_is_ever_cancelled() -> None:
    check_cancelled()


def test_nothing_is_bound_to_one_event_loop(reranker_base: Path) -> None:
    engine = engine_over(OracleForward(), reranker_base)
    for _ in range(3):
        rows = asyncio.run(in_worker(engine.run, THREE_BATCHES, range(3), NO_LIMITS))
        assert rows.shape == (3, 2)


async def test_the_callers_context_travels_and_does_not_come_back() -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("the caller's")

    def change() -> str:
        seen = variable.get()
        variable.set("the worker's")
        return seen

    assert await in_worker(change) == "the caller's"
    assert variable.get() == "the caller's"


async def test_errors_come_through_as_the_same_object() -> None:
    error = ValueError("wrong")

    def fail() -> None:
        raise error

    with pytest.raises(ValueError, match="wrong") as raised:
        await in_worker(fail)
    assert raised.value is error


def test_an_error_keeps_its_context_whatever_the_caller_is_handling() -> None:
    def fail() -> None:
        try:
            os.environ["MISSING"]
        except KeyError:
            raise ValueError("wrong") from None

    try:
        int("handled by the caller")
    except ValueError:
        with pytest.raises(ValueError, match="wrong") as raised:
            off_main_thread(fail)
    assert isinstance(raised.value.__context__, KeyError)


def test_a_forked_child_has_workers_of_its_own() -> None:
    assert asyncio.run(in_worker(lambda: "parent")) == "parent"
    assert in_child(lambda: asyncio.run(in_worker(lambda: "child"))) == "child"
