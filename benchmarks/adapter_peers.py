"""The frameworks' adapters as contenders: ours and theirs, called as a program calls them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import TRANSFORMERS_4, Pair, Peer, Score


def llama_index_sbert(folder: Path) -> Score:
    """LlamaIndex's adapter to sentence-transformers."""
    from llama_index.postprocessor.sbert_rerank import SentenceTransformerRerank

    return _nodes(SentenceTransformerRerank(model=str(folder), device="cpu", top_n=10**6))


def llama_index_flag(folder: Path) -> Score:
    """LlamaIndex's adapter to FlagEmbedding."""
    from llama_index.postprocessor.flag_embedding_reranker import FlagEmbeddingReranker

    return _nodes(FlagEmbeddingReranker(model=str(folder), top_n=10**6))


def llama_index_ours(folder: Path) -> Score:
    """Our adapter for LlamaIndex."""
    from bge_rerank_integrations.llama_index import BGERerank

    return _nodes(BGERerank(model=str(folder), device="cpu", top_n=None, lazy_load=False))


def _nodes(postprocessor: Any) -> Score:
    from llama_index.core.schema import NodeWithScore, TextNode

    def score(pairs: Sequence[Pair]) -> NDArray[np.float64]:
        nodes = [
            NodeWithScore(node=TextNode(text=passage, id_=str(index)), score=0.0)
            for index, (_, passage) in enumerate(pairs)
        ]
        scores = np.empty(len(pairs))
        for node in postprocessor.postprocess_nodes(nodes, query_str=pairs[0][0]):
            scores[int(node.node.node_id)] = node.score
        return scores

    return score


def langchain_huggingface(folder: Path) -> Score:
    """LangChain's adapters to sentence-transformers."""
    from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
    from langchain_community.cross_encoders import HuggingFaceCrossEncoder

    model = HuggingFaceCrossEncoder(model_name=str(folder), model_kwargs={"device": "cpu"})
    compressor = CrossEncoderReranker(model=model, top_n=10**6)

    def score(pairs: Sequence[Pair]) -> NDArray[np.float64]:
        # it says which documents are best, and not how good they are
        places = np.empty(len(pairs))
        ranked = compressor.compress_documents(_documents(pairs), pairs[0][0])
        for place, document in enumerate(ranked):
            places[int(document.id or 0)] = -place
        return places

    return score


def langchain_ours(folder: Path) -> Score:
    """Our adapter for LangChain."""
    from bge_rerank_integrations.langchain import BGERerank

    compressor = BGERerank(model=str(folder), device="cpu", top_n=None, lazy_load=False)

    def score(pairs: Sequence[Pair]) -> NDArray[np.float64]:
        scores = np.empty(len(pairs))
        for document in compressor.compress_documents(_documents(pairs), pairs[0][0]):
            scores[int(document.id or 0)] = document.metadata["relevance_score"]
        return scores

    return score


def _documents(pairs: Sequence[Pair]) -> list[Any]:
    from langchain_core.documents import Document

    return [
        Document(page_content=passage, id=str(index)) for index, (_, passage) in enumerate(pairs)
    ]


LLAMA_INDEX_OURS = "LlamaIndex: ours"
LANGCHAIN_OURS = "LangChain: ours"

LLAMA_INDEX = {
    LLAMA_INDEX_OURS: Peer(
        "bge_rerank_integrations.llama_index", llama_index_ours, 0.75, scale="sigmoid"
    ),
    "LlamaIndex: SentenceTransformerRerank": Peer(
        "llama_index.postprocessor.sbert_rerank", llama_index_sbert, 0.4, scale="sigmoid"
    ),
    "LlamaIndex: FlagEmbeddingReranker": Peer(
        "llama_index.postprocessor.flag_embedding_reranker",
        llama_index_flag,
        0.12,
        packages=TRANSFORMERS_4,
    ),
}

LANGCHAIN = {
    LANGCHAIN_OURS: Peer(
        "bge_rerank_integrations.langchain", langchain_ours, 0.75, scale="sigmoid"
    ),
    "LangChain: HuggingFaceCrossEncoder": Peer(
        "langchain_community.cross_encoders", langchain_huggingface, 0.4, scale="rank"
    ),
}
