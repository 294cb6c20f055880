"""Inside LlamaIndex's own engines, over a real vector index."""

import pytest
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.tools import RetrieverTool
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step

from bge_rerank_integrations.llama_index import BGERerank
from tests.fakes import WordOverlapScorer
from tests.llama_index.conftest import TEXTS, CallbackRecorder, EventRecorder

QUERY = "red fox"
BEST_TWO = ["n2", "n1"]


def ids(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node_id for node in nodes]


@pytest.fixture
def retriever() -> BaseRetriever:
    nodes = [TextNode(id_=f"n{index}", text=text) for index, text in enumerate(TEXTS)]
    index = VectorStoreIndex(nodes, embed_model=MockEmbedding(embed_dim=4))
    return index.as_retriever(similarity_top_k=len(nodes))


@pytest.fixture
def reranker() -> BGERerank:
    return BGERerank(scorer=WordOverlapScorer())


async def test_a_query_engine(retriever: BaseRetriever, reranker: BGERerank) -> None:
    engine = RetrieverQueryEngine.from_args(
        retriever, llm=MockLLM(), node_postprocessors=[reranker], response_mode=ResponseMode.COMPACT
    )
    answers = [engine.query(QUERY), await engine.aquery(QUERY)]
    assert [ids(answer.source_nodes) for answer in answers] == [BEST_TWO, BEST_TWO]
    # MockLLM repeats its prompt: the reranked texts reached it, in their order, the others did not
    for answer in answers:
        prompt = str(answer)
        assert 0 < prompt.index("a red fox") < prompt.index("red wine")
        assert "the dog sleeps" not in prompt


def test_a_query_engine_hands_over_its_callbacks(
    retriever: BaseRetriever, reranker: BGERerank, recorder: EventRecorder
) -> None:
    heard = CallbackRecorder()
    manager = CallbackManager([heard])
    engine = RetrieverQueryEngine.from_args(
        retriever, llm=MockLLM(), node_postprocessors=[reranker], callback_manager=manager
    )
    engine.query(QUERY)
    assert reranker.callback_manager is manager
    assert (len(heard.starts), len(heard.ends), len(recorder.reranks)) == (1, 1, 2)


def test_the_index_keeps_its_nodes(retriever: BaseRetriever) -> None:
    reranker = BGERerank(scorer=WordOverlapScorer(), keep_retrieval_score=True)
    before = [node.to_json() for node in retriever.retrieve(QUERY)]
    engine = RetrieverQueryEngine.from_args(
        retriever, llm=MockLLM(), node_postprocessors=[reranker]
    )
    first = engine.query(QUERY)
    engine.query("the dog")
    assert [node.to_json() for node in retriever.retrieve(QUERY)] == before
    assert [node.metadata for node in first.source_nodes] == [{"retrieval_score": 1.0}] * 2


@pytest.mark.parametrize("kind", [ContextChatEngine, CondensePlusContextChatEngine])
async def test_a_chat_engine(
    retriever: BaseRetriever,
    reranker: BGERerank,
    kind: type[ContextChatEngine] | type[CondensePlusContextChatEngine],
) -> None:
    engine = kind.from_defaults(
        retriever=retriever,
        llm=MockLLM(),
        memory=ChatMemoryBuffer(token_limit=1000),
        node_postprocessors=[reranker],
    )
    assert ids(engine.chat(QUERY).source_nodes) == BEST_TWO
    engine.reset()
    assert ids((await engine.achat(QUERY)).source_nodes) == BEST_TWO


async def test_a_citation_engine(retriever: BaseRetriever, reranker: BGERerank) -> None:
    engine = CitationQueryEngine(
        retriever, llm=MockLLM(), node_postprocessors=[reranker], citation_chunk_size=64
    )
    for answer in (engine.query(QUERY), await engine.aquery(QUERY)):
        assert [node.text for node in answer.source_nodes] == [
            "Source 1:\na red fox\n",
            "Source 2:\nred wine\n",
        ]


async def test_a_retriever_tool(retriever: BaseRetriever, reranker: BGERerank) -> None:
    tool = RetrieverTool.from_defaults(retriever, node_postprocessors=[reranker])
    assert ids(tool.call(QUERY).raw_output) == BEST_TWO
    assert ids((await tool.acall(QUERY)).raw_output) == BEST_TWO


async def test_a_workflow_step(retriever: BaseRetriever, reranker: BGERerank) -> None:
    class Search(Workflow):
        @step
        async def rerank(self, event: StartEvent) -> StopEvent:
            found = await retriever.aretrieve(event.query)
            return StopEvent(await reranker.apostprocess_nodes(found, query_str=event.query))

    assert ids(await Search().run(query=QUERY)) == BEST_TWO
