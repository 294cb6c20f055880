"""Async methods under asyncio and under trio, as anyio runs them: results and cancellation."""

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from bge_rerank_integrations import Reranker, RerankError
from bge_rerank_integrations.base.deadline import check_cancelled
from bge_rerank_integrations.langchain import BGEEmbeddings
from bge_rerank_integrations.langchain import BGERerank as Compressor
from bge_rerank_integrations.llama_index import BGEEmbedding
from bge_rerank_integrations.llama_index import BGERerank as Postprocessor
from bge_rerank_integrations.types import FloatArray
from tests.fakes import BrokenScorer, WordOverlapScorer

WAIT = 60.0
QUERY = "red fox"
TEXTS = ["a dog", "the red fox", "a fox"]
DOCUMENTS = [Document(page_content=text) for text in TEXTS]
NODES = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
BEST = ["the red fox", "a fox"]
loops = pytest.mark.parametrize("loop", ["asyncio", "trio"])


def run(loop: str, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    return anyio.run(call, *args, backend=loop)


@loops
def test_rerankers_give_the_same_results(loop: str) -> None:
    scorer = WordOverlapScorer()

    async def everything() -> list[list[str]]:
        nodes = Postprocessor(scorer=scorer, top_n=2)
        plain = await Reranker(scorer, top_n=2).arerank(QUERY, TEXTS)
        ranked = await nodes.apostprocess_nodes(NODES, query_str=QUERY)
        return [
            [TEXTS[result.index] for result in plain],
            [node.get_content() for node in ranked],
        ]

    assert run(loop, everything) == [BEST] * 2


@pytest.mark.parametrize("how", ["acompress_documents", "ainvoke"])
def test_langchains_runs_need_asyncio_and_say_so(how: str) -> None:
    reranker = Compressor(scorer=WordOverlapScorer(), top_n=2)
    request: Any = {"documents": DOCUMENTS, "query": QUERY}
    arguments = [request] if how == "ainvoke" else [DOCUMENTS, QUERY]
    found = run("asyncio", getattr(reranker, how), *arguments)
    assert [document.page_content for document in found] == BEST
    with pytest.raises(RerankError, match=r"need asyncio.*trio\.to_thread\.run_sync"):
        run("trio", getattr(reranker, how), *arguments)

    async def on_a_thread() -> list[Document]:
        return await anyio.to_thread.run_sync(reranker.compress_documents, DOCUMENTS, QUERY)

    assert run("trio", on_a_thread) == found


@loops
def test_embeddings_give_the_same_vectors(loop: str) -> None:
    documents, nodes = (
        BGEEmbeddings(model="offline-embedder"),
        BGEEmbedding(model="offline-embedder"),
    )
    assert run(loop, documents.aembed_documents, TEXTS) == documents.embed_documents(TEXTS)
    assert run(loop, documents.aembed_query, QUERY) == documents.embed_query(QUERY)
    assert run(loop, nodes.aget_query_embedding, QUERY) == documents.embed_query(QUERY)


class Waiting(WordOverlapScorer):
    """Scores until it is cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.cancelled = threading.Event(), threading.Event()

    def score(self, pairs: Any) -> FloatArray:
        self.begun.set()
        try:
            while not self.cancelled.wait(0.001):
                check_cancelled()
        except BaseException:
            self.cancelled.set()
            raise
        return super().score(pairs)


@loops
def test_a_cancelled_rerank_stops_its_worker(loop: str) -> None:
    scorer = Waiting()

    async def cancelled() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Reranker(scorer).arerank, QUERY, TEXTS)
            assert await anyio.to_thread.run_sync(scorer.begun.wait, WAIT)
            tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            assert await anyio.to_thread.run_sync(scorer.cancelled.wait, WAIT)

    run(loop, cancelled)


@loops
def test_an_error_of_the_scorer_comes_out(loop: str) -> None:
    with pytest.raises(RuntimeError, match="the device is gone"):
        run(loop, Reranker(BrokenScorer()).arerank, QUERY, TEXTS)
