"""A server with text-embeddings-inference's protocol, called by two LlamaIndex clients.

    python examples/tei_llama_index.py "When was oxygen named?"
    python examples/tei_llama_index.py --url http://localhost:8080

It answers the same question twice, in the same order: with LlamaIndex's client for such servers,
and with `BGERerank` with the server's address as its model, which also requests raw scores and
checks the answer. Without `--url` a server is started on Ray Serve. The key of an existing server
is read from BGE_RERANK_API_KEY.
"""

import os

from first_stage import arguments, choose_model, open_first_stage
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference
from pydantic import SecretStr

from bge_rerank_integrations.llama_index import BGERerank


def show(client: BaseNodePostprocessor, nodes: list[NodeWithScore], question: str) -> None:
    """Print the three best nodes of this client."""
    print(f"\n{type(client).__name__}: {question}")
    for node in client.postprocess_nodes(nodes, QueryBundle(question)):
        logit = node.metadata.get("rerank_raw_score")
        print(
            f"  {node.score:.4f}  {node.text}" + ("" if logit is None else f" (raw {logit:+.2f})")
        )


def ask(url: str, key: str, nodes: list[NodeWithScore], question: str) -> None:
    """The same nodes through both clients."""
    theirs = TextEmbeddingInference(base_url=url, auth_token=f"Bearer {key}", top_n=3)
    show(theirs, [node.model_copy() for node in nodes], question)  # it writes into its nodes
    ours = BGERerank(model=url, api_key=SecretStr(key), top_n=3, include_logit=True, timeout=60)
    show(ours, nodes, question)


def main() -> None:
    """Find candidates, and have a server rerank them twice."""
    parser = arguments("Ask a served reranker from LlamaIndex.")
    parser.add_argument(
        "question", nargs="?", default="What researcher first used the word oxygen ?"
    )
    parser.add_argument("--url", help="an existing server")
    options = parser.parse_args()
    (found,) = open_first_stage(options.first_stage).candidates([options.question], 20)
    nodes = [
        NodeWithScore(node=TextNode(id_=passage.id, text=passage.text), score=score)
        for passage, score in found
    ]
    if options.url:
        ask(options.url, os.environ.get("BGE_RERANK_API_KEY", ""), nodes, options.question)
        return
    from rerank_server import serving

    with serving(choose_model(options.model)) as server:
        ask(*server, nodes, options.question)


if __name__ == "__main__":
    main()
