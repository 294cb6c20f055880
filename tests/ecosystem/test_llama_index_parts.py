"""LlamaIndex's evaluator, fusion retriever, ingestion pipeline and chat engines around ours."""

from typing import Any

import pytest
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.evaluation import RetrieverEvaluator
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever, QueryFusionRetriever
from llama_index.core.schema import BaseNode, Document, NodeWithScore, QueryBundle, TextNode

from bge_rerank_integrations.llama_index import BGERerank
from tests.fakes import WordOverlapScorer

QUERY = "where do red foxes sleep"
TEXTS = {
    "far": "A dog barks.",
    "near": "Red foxes hunt at dusk.",
    "answer": "Red foxes sleep in a den.",
}


class Found(BaseRetriever):
    """Finds given nodes in the given order."""

    def __init__(self, nodes: list[BaseNode]) -> None:
        super().__init__()
        self._nodes = nodes

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [
            NodeWithScore(node=node, score=1 - number / 10)
            for number, node in enumerate(self._nodes)
        ]


def nodes() -> list[BaseNode]:
    return [TextNode(id_=name, text=text) for name, text in TEXTS.items()]


@pytest.fixture
def reranker() -> BGERerank:
    return BGERerank(scorer=WordOverlapScorer(), top_n=2)


async def test_a_retriever_evaluator_sees_the_new_order(reranker: BGERerank) -> None:
    metrics = ["mrr", "hit_rate"]
    plain = RetrieverEvaluator.from_metric_names(metrics, retriever=Found(nodes()))
    reranked = RetrieverEvaluator.from_metric_names(
        metrics, retriever=Found(nodes()), node_postprocessors=[reranker]
    )
    before = await plain.aevaluate(query=QUERY, expected_ids=["answer"])
    after = await reranked.aevaluate(query=QUERY, expected_ids=["answer"])
    assert before.metric_vals_dict == {"mrr": pytest.approx(1 / 3), "hit_rate": 1.0}
    assert after.metric_vals_dict == {"mrr": 1.0, "hit_rate": 1.0}
    assert after.retrieved_ids == ["answer", "near"]


async def test_a_fusion_retriever_in_a_query_engine(reranker: BGERerank) -> None:
    one, two = nodes(), nodes()[::-1]
    fusion = QueryFusionRetriever(
        [Found(one), Found(two[:2])],
        llm=MockLLM(),
        num_queries=1,
        similarity_top_k=3,
        use_async=False,
    )
    engine = RetrieverQueryEngine.from_args(fusion, llm=MockLLM(), node_postprocessors=[reranker])
    found = (await engine.aquery(QUERY)).source_nodes
    assert [node.node_id for node in found] == ["answer", "near"]
    # the sigmoids of 3 and 2 words in common
    assert [node.score for node in found] == pytest.approx([0.952574, 0.880797])
    assert [node.get_content() for node in one] == list(TEXTS.values())


def test_an_index_that_a_pipeline_built(reranker: BGERerank) -> None:
    pipeline = IngestionPipeline(
        transformations=[
            SentenceSplitter(chunk_size=30, chunk_overlap=0),
            MockEmbedding(embed_dim=3),
        ]
    )
    built = pipeline.run(documents=[Document(text=text, id_=name) for name, text in TEXTS.items()])
    index = VectorStoreIndex(list(built), embed_model=MockEmbedding(embed_dim=3))
    kept = {name: node.to_dict() for name, node in index.docstore.docs.items()}
    engine = index.as_query_engine(
        llm=MockLLM(), similarity_top_k=3, node_postprocessors=[reranker]
    )
    found = engine.query(QUERY)
    sources: Any = found
    assert [node.node.ref_doc_id for node in sources.source_nodes] == ["answer", "near"]
    assert {name: node.to_dict() for name, node in index.docstore.docs.items()} == kept


@pytest.mark.parametrize("kind", [ContextChatEngine, CondensePlusContextChatEngine])
async def test_chat_engines_that_stream(kind: Any, reranker: BGERerank) -> None:
    engine = kind.from_defaults(
        retriever=Found(nodes()),
        llm=MockLLM(),
        memory=ChatMemoryBuffer(token_limit=1000),
        node_postprocessors=[reranker],
    )
    streamed = await engine.astream_chat(QUERY)
    said = [token async for token in streamed.async_response_gen()]
    assert "".join(said)
    assert [node.node_id for node in streamed.source_nodes] == ["answer", "near"]
