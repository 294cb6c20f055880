"""docs/migrating.md, from langchain-classic and langchain-community: both ways find the same."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import (
    CrossEncoderReranker,
    DocumentCompressorPipeline,
    EmbeddingsFilter,
)
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import create_retriever_tool
from langchain_text_splitters import CharacterTextSplitter
from sentence_transformers import SentenceTransformer

from bge_rerank_integrations.langchain import BGEEmbeddings, BGERerank, BGERerankRetriever
from tests.fakes import WordOverlapScorer
from tests.langchain.foxes import documents as foxes
from tests.remote.serving import serving
from tests.tiny_models import TEXT

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # the package says that it is being sunset
    from langchain_community.cross_encoders.huggingface import HuggingFaceCrossEncoder
    from langchain_community.document_compressors import jina_rerank
    from langchain_community.embeddings.huggingface import HuggingFaceBgeEmbeddings

pytestmark = pytest.mark.reference

QUERY = "what is a panda?"
LINES = [Document(id=str(i), page_content=line) for i, line in enumerate(TEXT.splitlines())]


class Search(BaseRetriever):
    """Finds all its documents."""

    found: list[Document] = LINES

    def _get_relevant_documents(self, query: str, **_: Any) -> list[Document]:
        return self.found


def classic(compressor: Any, found: list[Document] = LINES, query: str = QUERY) -> list[Document]:
    retriever = ContextualCompressionRetriever(
        base_compressor=compressor, base_retriever=Search(found=found)
    )
    return retriever.invoke(query)


def ours(query: str = QUERY, **options: Any) -> list[Document]:
    return BGERerankRetriever(**{"base_retriever": Search(), **options}).invoke(query)


def texts(found: list[Document]) -> list[str]:
    return [document.page_content for document in found]


def relevance(found: list[Document]) -> list[float]:
    return [document.metadata["relevance_score"] for document in found]


def test_cross_encoder_reranker(reranker_base: Path) -> None:
    encoder = HuggingFaceCrossEncoder(model_name=str(reranker_base), model_kwargs={"device": "cpu"})
    expected = classic(CrossEncoderReranker(model=encoder, top_n=3))
    options: dict[str, Any] = {"model": str(reranker_base), "device": "cpu"}
    found = ours(**options, truncation="longest_first", top_n=3)
    assert texts(found) == texts(expected)
    scores = encoder.score([(QUERY, text) for text in texts(expected)])
    assert relevance(found) == pytest.approx(list(scores), abs=1e-4)


def test_a_compressor_of_this_package() -> None:
    reranker = BGERerank(scorer=WordOverlapScorer(), top_n=2)
    expected = classic(reranker, foxes(), "red fox")
    assert ours("red fox", base_retriever=Search(found=foxes()), reranker=reranker) == expected


def test_a_pipeline_of_a_splitter_and_a_reranker() -> None:
    splitter = CharacterTextSplitter(separator=". ", chunk_size=20, chunk_overlap=0)
    pages = [Document(page_content="A lazy dog. The red fox jumps. A red car")]
    reranker = BGERerank(scorer=WordOverlapScorer(), top_n=2)
    expected = classic(
        DocumentCompressorPipeline(transformers=[splitter, reranker]), pages, "red fox"
    )
    assert texts(expected) == ["The red fox jumps", "A red car"]
    search: Any = RunnableLambda(lambda _: pages) | splitter.transform_documents
    assert ours("red fox", base_retriever=search, reranker=reranker) == expected


def test_a_pipeline_of_two_rerankers() -> None:
    first = BGERerank(scorer=WordOverlapScorer(), top_n=4, score_key="first")
    last = BGERerank(scorer=WordOverlapScorer(), top_n=1, normalize=False)
    expected = classic(DocumentCompressorPipeline(transformers=[first, last]), foxes(), "red fox")
    assert len(expected) == 1
    narrowed = BGERerankRetriever(base_retriever=Search(found=foxes()), reranker=first)
    assert ours("red fox", base_retriever=narrowed, reranker=last) == expected


class Embedder(Embeddings):
    """A folder's embeddings by sentence-transformers, one text at a time."""

    def __init__(self, folder: Path) -> None:
        self.model = SentenceTransformer(str(folder), device="cpu")

    def embed_query(self, text: str) -> list[float]:
        vector: list[float] = self.model.encode([text], normalize_embeddings=True)[0].tolist()
        return vector

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


def test_an_embeddings_filter(bge_embedder: Path) -> None:
    kept = EmbeddingsFilter(embeddings=Embedder(bge_embedder), k=4)
    expected = classic(kept)
    options: dict[str, Any] = {"model": str(bge_embedder), "device": "cpu"}
    found = ours(**options, query_instruction="", top_n=4)
    assert texts(found) == texts(expected)
    cosines = [document.state["query_similarity_score"] for document in expected]  # type: ignore[attr-defined]
    assert relevance(found) == pytest.approx(cosines, abs=1e-4)
    between = (cosines[1] + cosines[2]) / 2
    kept.similarity_threshold = between
    assert texts(ours(**options, query_instruction="", top_n=4, score_threshold=between)) == (
        texts(classic(kept))
    )


@pytest.mark.filterwarnings("ignore:The class `HuggingFaceBgeEmbeddings` was deprecated")
def test_embeddings_of_langchain_community(bge_embedder: Path) -> None:
    theirs = HuggingFaceBgeEmbeddings(
        model_name=str(bge_embedder),
        model_kwargs={"device": "cpu"},
        encode_kwargs={"normalize_embeddings": True},
    )
    ours = BGEEmbeddings(
        model=str(bge_embedder),
        device="cpu",
        query_instruction="Represent this question for searching relevant passages: ",
    )
    lines = [document.page_content for document in LINES]
    np.testing.assert_allclose(
        ours.embed_documents(lines), theirs.embed_documents(lines), atol=1e-5, rtol=0
    )
    assert ours.embed_query(QUERY) == pytest.approx(theirs.embed_query(QUERY), abs=1e-5)


def test_a_jina_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving("jina", key="sk-made-up") as served:
        monkeypatch.setattr(jina_rerank, "JINA_API_URL", f"{served.url}/v1/rerank")
        theirs = jina_rerank.JinaRerank(jina_api_key="sk-made-up", top_n=3)
        expected = classic(theirs)
        theirs.session.close()
        found = ours(
            base_url=served.url, dialect="jina", api_key="sk-made-up", model=theirs.model, top_n=3
        )
    assert texts(found) == texts(expected)
    assert relevance(found) == pytest.approx(relevance(expected))


def test_a_retriever_tool() -> None:
    retriever = BGERerankRetriever(base_retriever=Search(found=foxes()), scorer=WordOverlapScorer())
    call = {"name": "search", "args": {"query": "red fox"}, "id": "1", "type": "tool_call"}
    theirs = create_retriever_tool(
        retriever, "search", "Finds.", response_format="content_and_artifact"
    )
    assert retriever.to_tool("search", "Finds.").invoke(call) == theirs.invoke(call)
