"""LangChain's own suites for retrievers and embeddings, over ours."""

from typing import Any

from langchain_tests.integration_tests import (
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
)
from langchain_tests.unit_tests import EmbeddingsUnitTests

from bge_rerank_integrations.langchain import BGEEmbeddings, BGERerankRetriever
from tests.fakes import WordOverlapScorer
from tests.langchain.foxes import QUERY, documents
from tests.langchain.test_inside_langchain import Foxes


class TestRerankRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BGERerankRetriever]:
        return BGERerankRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {
            "base_retriever": Foxes(found=documents()),
            "scorer": WordOverlapScorer(),
            "top_n": 2,
        }

    @property
    def num_results_arg_name(self) -> str:
        return "top_n"

    @property
    def retriever_query_example(self) -> str:
        return QUERY


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[BGEEmbeddings]:
        return BGEEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "offline-embedder"}


class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[BGEEmbeddings]:
        return BGEEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "offline-embedder"}
