"""A LangChain retriever whose documents are reranked, and a chain that uses it.

python examples/langchain_retriever.py "When was oxygen named?"
"""

from typing import Any

from first_stage import FirstStage, arguments, choose_model, open_first_stage
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough

from bge_rerank_integrations.langchain import BGERerank, BGERerankRetriever


class FirstStageRetriever(BaseRetriever):
    """The first stage as a LangChain retriever."""

    first_stage: Any  # a FirstStage, which pydantic cannot check
    k: int = 4

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        del run_manager  # nothing runs below this
        (found,) = self.first_stage.candidates([query], self.k)
        return [
            Document(id=passage.id, page_content=passage.text, metadata={"retrieval_score": score})
            for passage, score in found
        ]


def build_retriever(first_stage: FirstStage, reranker: BGERerank) -> BGERerankRetriever:
    """Reranks twenty candidates; returns the documents that the reranker keeps."""
    return BGERerankRetriever(
        base_retriever=FirstStageRetriever(first_stage=first_stage),
        candidates=20,
        reranker=reranker,
    )


def build_chain(first_stage: FirstStage, reranker: BGERerank) -> Runnable[str, Any]:
    """A chain from a question to the prompt for an LLM; add `| llm` to get an answer."""
    retriever = build_retriever(first_stage, reranker)
    prompt = PromptTemplate.from_template(
        "Answer from these passages alone.\n\n{passages}\n\nQuestion: {question}"
    )
    return {
        "passages": retriever | (lambda found: "\n".join(one.page_content for one in found)),
        "question": RunnablePassthrough(),
    } | prompt


def main() -> None:
    """Ask one question and print what was kept, and what an LLM would read."""
    parser = arguments("Ask a LangChain retriever over 1,175 sentences of Wikipedia.")
    parser.add_argument(
        "question", nargs="?", default="What researcher first used the word oxygen?"
    )
    options = parser.parse_args()
    reranker = BGERerank(model=choose_model(options.model), top_n=3, include_logit=True)
    first_stage = open_first_stage(options.first_stage)

    documents = build_retriever(first_stage, reranker).invoke(options.question)

    print(f"\n{options.question}")
    for document in documents:
        score, logit = document.metadata["relevance_score"], document.metadata["rerank_raw_score"]
        before = document.metadata["retrieval_score"]
        print(f"  {score:.4f} (raw {logit:+.2f}, {options.first_stage} {before:.2f})")
        print(f"    {document.page_content}")

    print("\nThe same in a chain; an LLM would be given this prompt:\n")
    print(build_chain(first_stage, reranker).invoke(options.question).to_string())


if __name__ == "__main__":
    main()
