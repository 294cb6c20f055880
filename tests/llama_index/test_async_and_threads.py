"""The native async path and many callers at once."""

import asyncio
import contextvars
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.schema import NodeWithScore, TextNode

from bge_rerank_integrations.base.deadline import check_cancelled
from bge_rerank_integrations.llama_index import BGERerank
from bge_rerank_integrations.types import FloatArray, Pair
from tests.fakes import WordOverlapScorer
from tests.llama_index.conftest import EventRecorder

PATIENCE = 60  # seconds until a test that would hang fails instead
QUERY = "red fox"
caller = contextvars.ContextVar("caller", default="nobody")


class GatedScorer(WordOverlapScorer):
    """Scores one pair per batch and waits before each until `gate` is open."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting, self.gate, self.left = (threading.Event() for _ in range(3))
        self.batches = 0

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        try:
            for _ in pairs:
                check_cancelled()
                self.batches += 1
                self.waiting.set()
                assert self.gate.wait(PATIENCE)
            return super().score(pairs)
        finally:
            self.left.set()


class CallerScorer(WordOverlapScorer):
    """Remembers who called, by the context, and on which thread."""

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        self.seen = (caller.get(), threading.current_thread())
        return super().score(pairs)


async def test_the_loop_runs_on_while_scores_are_made(nodes: list[NodeWithScore]) -> None:
    scorer = GatedScorer()
    task = asyncio.create_task(BGERerank(scorer=scorer).apostprocess_nodes(nodes, query_str=QUERY))
    # The gate is opened from the loop, which a blocked loop never could.
    assert await asyncio.to_thread(scorer.waiting.wait, PATIENCE)
    scorer.gate.set()
    assert [node.node_id for node in await task] == ["n2", "n1"]


async def test_cancellation_stops_between_batches(
    nodes: list[NodeWithScore], recorder: EventRecorder
) -> None:
    scorer = GatedScorer()
    task = asyncio.create_task(BGERerank(scorer=scorer).apostprocess_nodes(nodes, query_str=QUERY))
    assert await asyncio.to_thread(scorer.waiting.wait, PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    scorer.gate.set()
    assert await asyncio.to_thread(scorer.left.wait, PATIENCE)
    assert (scorer.batches, scorer.calls) == (1, 0)
    assert await asyncio.to_thread(recorder.wait_for_end)
    start, end = recorder.reranks
    assert isinstance(start, ReRankStartEvent)
    assert isinstance(end, ReRankEndEvent)
    assert end.nodes == []


async def test_the_context_travels_to_the_worker(nodes: list[NodeWithScore]) -> None:
    scorer = CallerScorer()
    caller.set("test")
    await BGERerank(scorer=scorer).apostprocess_nodes(nodes, query_str=QUERY)
    name, thread = scorer.seen
    assert name == "test"
    assert thread is not threading.current_thread()


def test_one_reranker_serves_several_event_loops(nodes: list[NodeWithScore]) -> None:
    reranker = BGERerank(scorer=WordOverlapScorer())
    for query, first in [("red fox", "n2"), ("the dog", "n0"), ("wine", "n1")]:
        ranked = asyncio.run(reranker.apostprocess_nodes(nodes, query_str=query))
        assert ranked[0].node_id == first


@pytest.mark.parametrize("query", [None, "  ", QUERY])
async def test_the_edges_are_those_of_the_sync_call(
    nodes: list[NodeWithScore], query: str | None
) -> None:
    reranker = BGERerank(scorer=WordOverlapScorer(), top_n=3)
    if query is None:
        with pytest.raises(ValueError, match="query"):
            await reranker.apostprocess_nodes(nodes)
    else:
        assert await reranker.apostprocess_nodes(nodes, query_str=query) == (
            reranker.postprocess_nodes(nodes, query_str=query)
        )


WORDS = ["red", "fox", "dog", "wine", "sleeps", "river", "moon", "seven", "house", "tree"]


def query_of(number: int) -> str:
    return " ".join(word for bit, word in enumerate(WORDS) if number >> bit & 1) or "red"


async def test_two_hundred_calls_and_sixteen_threads_at_once() -> None:
    nodes = [
        NodeWithScore(node=TextNode(id_=str(number), text=query_of(number * 37)), score=0.5)
        for number in range(24)
    ]
    reranker = BGERerank(scorer=WordOverlapScorer(), top_n=10)
    queries = [query_of(number * 5 + 1) for number in range(200)]

    def answer(ranked: list[NodeWithScore]) -> list[tuple[str, float | None]]:
        return [(node.node_id, node.score) for node in ranked]

    expected = [answer(reranker.postprocess_nodes(nodes, query_str=query)) for query in queries]
    assert len({tuple(ranked) for ranked in expected}) > 100  # so that a mix-up would show

    gathered = await asyncio.gather(
        *(reranker.apostprocess_nodes(nodes, query_str=query) for query in queries)
    )
    assert [answer(ranked) for ranked in gathered] == expected

    with ThreadPoolExecutor(16) as threads:
        threaded = threads.map(lambda q: reranker.postprocess_nodes(nodes, query_str=q), queries)
        assert [answer(ranked) for ranked in threaded] == expected
