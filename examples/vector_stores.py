"""Qdrant, Chroma and PostgreSQL: BGE vectors find candidates, a BGE reranker puts the best first.

    python examples/vector_stores.py --store qdrant
    python examples/vector_stores.py --store pgvector --framework langchain "your question"

The stores run on this machine: Qdrant and Chroma in memory, PostgreSQL with pgvector in its own
folder, started and stopped by `pgserver`. Embedder and reranker run on the same engine.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Iterator

from first_stage import read_texts

CANDIDATES, KEPT = 20, 3
QUESTION = "What researcher first used the word oxygen ?"
DIMENSIONS = 384  # of bge-small-en-v1.5


def main() -> None:
    """Fill the store, ask one question, show rank before, score and text."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--store", choices=["qdrant", "chroma", "pgvector"], default="qdrant")
    parser.add_argument("--framework", choices=["llama-index", "langchain"], default="llama-index")
    parser.add_argument("--model", default="offline", help="the reranker")
    parser.add_argument("--embedder", default="offline-embedder", help="a BGE embedder")
    options = parser.parse_args()
    search = with_llama_index if options.framework == "llama-index" else with_langchain
    print(f"{options.store} with {options.framework}: {options.question}")
    with database(options.store) as address:
        found = search(options, address)
    for text, score, before in found:
        print(f"  {score:.4f}  was {before:2}  {text}")


@contextlib.contextmanager
def database(store: str) -> Iterator[str]:
    """The address of PostgreSQL while the block runs; empty for a store in memory."""
    if store != "pgvector":
        yield ""
        return
    import pgserver

    with tempfile.TemporaryDirectory() as folder:
        server = pgserver.get_server(folder, cleanup_mode="stop")
        try:
            server.psql("CREATE EXTENSION vector;")
            yield server.get_uri()
        finally:
            server.cleanup()


Found = list[tuple[str, float, int]]
"""Text, score and rank among the candidates, the best first."""


def with_llama_index(options: argparse.Namespace, address: str) -> Found:
    """An index over the store; on PostgreSQL the candidates also come from its full-text search."""
    from llama_index.core import StorageContext, VectorStoreIndex
    from llama_index.core.schema import QueryBundle, TextNode

    from bge_rerank_integrations.llama_index import BGEEmbedding, BGERerank

    hybrid = {}
    if options.store == "qdrant":
        from llama_index.vector_stores.qdrant import QdrantVectorStore
        from qdrant_client import QdrantClient

        store = QdrantVectorStore("passages", client=QdrantClient(":memory:"))
    elif options.store == "chroma":
        import chromadb
        from llama_index.vector_stores.chroma import ChromaVectorStore

        store = ChromaVectorStore(chromadb.EphemeralClient().create_collection("passages"))
    else:
        from llama_index.vector_stores.postgres import PGVectorStore

        hybrid = {"vector_store_query_mode": "hybrid", "sparse_top_k": CANDIDATES}
        store = PGVectorStore(
            connection_string=address.replace("postgresql://", "postgresql+psycopg2://"),
            async_connection_string=address.replace("postgresql://", "postgresql+asyncpg://"),
            table_name="passages",
            embed_dim=DIMENSIONS,
            hybrid_search=True,
            text_search_config="english",
        )
    index = VectorStoreIndex(
        [TextNode(text=passage.text) for passage in read_texts("corpus")],
        embed_model=BGEEmbedding(model=options.embedder),
        storage_context=StorageContext.from_defaults(vector_store=store),
    )
    query = QueryBundle(options.question)
    found = index.as_retriever(similarity_top_k=CANDIDATES, **hybrid).retrieve(query)
    ranks = {node.node_id: rank for rank, node in enumerate(found, start=1)}
    best = BGERerank(model=options.model, top_n=KEPT).postprocess_nodes(found, query)
    return [(node.text, float(node.score or 0), ranks[node.node_id]) for node in best]


def with_langchain(options: argparse.Namespace, address: str) -> Found:
    """A retriever over the store, and a retriever that reranks what the first one finds."""
    from langchain_core.documents import Document

    from bge_rerank_integrations.langchain import BGEEmbeddings, BGERerankRetriever

    documents = [Document(passage.text) for passage in read_texts("corpus")]
    embeddings = BGEEmbeddings(model=options.embedder)
    if options.store == "qdrant":
        from langchain_qdrant import QdrantVectorStore

        store = QdrantVectorStore.from_documents(documents, embeddings, location=":memory:")
    elif options.store == "chroma":
        from langchain_chroma import Chroma

        store = Chroma.from_documents(documents, embeddings)
    else:
        from langchain_postgres import PGVector

        store = PGVector.from_documents(
            documents,
            embeddings,
            connection=address.replace("postgresql://", "postgresql+psycopg://"),
        )
    base = store.as_retriever(search_kwargs={"k": CANDIDATES})
    retriever = BGERerankRetriever(base_retriever=base, model=options.model, top_n=KEPT)
    ranks = {
        document.page_content: rank
        for rank, document in enumerate(base.invoke(options.question), start=1)
    }
    best = retriever.invoke(options.question)
    texts = [document.page_content for document in best]
    scores = [document.metadata["relevance_score"] for document in best]
    return [(text, score, ranks[text]) for text, score in zip(texts, scores, strict=True)]


if __name__ == "__main__":
    main()
