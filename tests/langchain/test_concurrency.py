"""Async calls leave the loop free, can be cancelled, and give what sequential calls give."""

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler

from bge_rerank_integrations.base.deadline import Cancelled, check_cancelled
from bge_rerank_integrations.langchain import BGERerank
from bge_rerank_integrations.types import FloatArray
from tests.fakes import WordOverlapScorer
from tests.langchain.foxes import QUERY, documents, positions, word_overlap_rerank

LONG = 30.0
"""Seconds after which a wait that should not have been one fails."""

WORDS = ["a", "the", "lazy", "red", "dog", "fox", "car", "hen", "jumps", "high"]
QUERIES = [" ".join(WORDS[i % 10 : i % 10 + 1 + i % 4]) for i in range(200)]


class WaitingScorer(WordOverlapScorer):
    """Tells when it has begun, and scores when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on, self.ended = (threading.Event() for _ in range(3))
        self.was_cancelled = False

    def score(self, pairs: Any) -> FloatArray:
        self.begun.set()
        try:
            if not self.go_on.wait(LONG):
                raise TimeoutError("nobody let the scorer go on: the loop was blocked")
            check_cancelled()
            return super().score(pairs)
        except Cancelled:
            self.was_cancelled = True
            raise
        finally:
            self.ended.set()


async def test_the_loop_is_free_while_scoring() -> None:
    scorer = WaitingScorer()

    async def on_the_same_loop() -> None:
        assert await asyncio.to_thread(scorer.begun.wait, LONG)
        scorer.go_on.set()

    ranked, _ = await asyncio.gather(
        word_overlap_rerank(scorer=scorer).acompress_documents(documents(), QUERY),
        on_the_same_loop(),
    )
    assert positions(ranked) == [1, 3, 2]


async def test_a_runnable_leaves_the_loop_free_too() -> None:
    scorer = WaitingScorer()
    step = word_overlap_rerank(scorer=scorer).as_runnable()
    task = asyncio.create_task(step.ainvoke({"documents": documents(), "query": QUERY}))
    assert await asyncio.to_thread(scorer.begun.wait, LONG)
    scorer.go_on.set()
    assert positions(await task) == [1, 3, 2]


async def test_cancelling_stops_the_work_and_ends_the_run() -> None:
    scorer, runs = WaitingScorer(), RunCollectorCallbackHandler()
    reranker = word_overlap_rerank(scorer=scorer)
    task = asyncio.create_task(reranker.acompress_documents(documents(), QUERY, [runs]))
    assert await asyncio.to_thread(scorer.begun.wait, LONG)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    scorer.go_on.set()
    assert await asyncio.to_thread(scorer.ended.wait, LONG)
    assert scorer.was_cancelled
    assert "CancelledError" in str(runs.traced_runs[0].error)


def test_works_under_several_event_loops_in_turn() -> None:
    reranker = word_overlap_rerank()
    for _ in range(3):
        ranked = asyncio.run(reranker.acompress_documents(documents(), QUERY))
        assert positions(ranked) == [1, 3, 2]


request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="none")


class ContextScorer(WordOverlapScorer):
    """Remembers the context and the thread it was called in."""

    def score(self, pairs: Any) -> FloatArray:
        self.request_id, self.thread = request_id.get(), threading.get_ident()
        return super().score(pairs)


async def test_the_callers_context_reaches_the_scorer_on_its_thread() -> None:
    scorer = ContextScorer()
    request_id.set("42")
    await word_overlap_rerank(scorer=scorer).acompress_documents(documents(), QUERY)
    assert scorer.request_id == "42"
    assert scorer.thread != threading.get_ident()


def sequential(reranker: BGERerank) -> list[Any]:
    return [reranker.compress_documents(documents(), query) for query in QUERIES]


async def test_two_hundred_at_once_give_the_sequential_results() -> None:
    reranker = word_overlap_rerank()
    expected = sequential(reranker)
    shared = documents()
    calls = [reranker.acompress_documents(shared, query) for query in QUERIES]
    assert await asyncio.gather(*calls) == expected
    assert shared == documents()
    assert reranker.scorer.calls == 400
    assert len({str(ranked) for ranked in expected}) > 10  # the queries do differ


def test_sixteen_threads_give_the_sequential_results() -> None:
    reranker = word_overlap_rerank()
    expected = sequential(reranker)
    shared = documents()
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda query: reranker.compress_documents(shared, query), QUERIES))
    assert found == expected
    assert shared == documents()
    assert reranker.scorer.calls == 400
