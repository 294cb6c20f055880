"""A LlamaIndex query engine with a reranker behind its retriever.

    python examples/llama_index_query_engine.py "When was oxygen named?"

No LLM is needed: `MockLLM` answers with the prompt that it was given.
"""

from first_stage import FirstStage, arguments, choose_model, open_first_stage
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from bge_rerank_integrations.llama_index import BGERerank


class FirstStageRetriever(BaseRetriever):
    """The first stage as a LlamaIndex retriever."""

    def __init__(self, first_stage: FirstStage, *, count: int) -> None:
        super().__init__()
        self._first_stage = first_stage
        self._count = count

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        (found,) = self._first_stage.candidates([query_bundle.query_str], self._count)
        return [
            NodeWithScore(node=TextNode(id_=passage.id, text=passage.text), score=score)
            for passage, score in found
        ]


def build_engine(first_stage: FirstStage, reranker: BGERerank) -> RetrieverQueryEngine:
    """Twenty candidates, reranked; the LLM reads those that the reranker keeps."""
    return RetrieverQueryEngine.from_args(
        FirstStageRetriever(first_stage, count=20),
        node_postprocessors=[reranker],
        llm=MockLLM(),  # your LLM here
    )


def main() -> None:
    """Ask one question and print what was kept, and what an LLM would read."""
    parser = arguments("Ask a LlamaIndex query engine over 1,175 sentences of Wikipedia.")
    parser.add_argument(
        "question", nargs="?", default="What researcher first used the word oxygen?"
    )
    options = parser.parse_args()
    reranker = BGERerank(
        model=choose_model(options.model), top_n=3, keep_retrieval_score=True, include_logit=True
    )
    engine = build_engine(open_first_stage(options.first_stage), reranker)

    response = engine.query(options.question)

    print(f"\n{options.question}")
    for node in response.source_nodes:
        before, logit = node.metadata["retrieval_score"], node.metadata["rerank_raw_score"]
        print(f"  {node.score:.4f} (raw {logit:+.2f}, {options.first_stage} {before:.2f})")
        print(f"    {node.text}")
    print(f"\nThe LLM was given:\n\n{response}")


if __name__ == "__main__":
    main()
